// What the matmul kernels take: up to three matrices of one type on the same rows, as one launch.
#pragma once
#include "quant.cuh"

// What is done with the columns that were just computed: see `MatMulThen` in kernels/src/cpu/program/instr.rs.
enum Then { DONE = 0, ADD_TO = 1, GLU = 2 };

struct Part {
    Planes w;
    float *out;
    // Null: none.
    const float *bias;
    // Rows of the matrix, which are columns of the output.
    u32 width;
    u32 out_stride;
    // The first block that works on this part.
    u32 first_block;
    u32 unused;
};

struct MatmulArgs {
    Part parts[3];
    Acts acts;
    // The same rows as f32, where they are not quantised.
    const float *x;
    // Where `ADD_TO` adds.
    float *sum;
    u32 x_stride, sum_stride;
    u32 num_parts;
    // Columns of the matrices.
    u32 cols;
    // Rows of activations.
    u32 num_rows;
    u32 then;
    u32 act;
    u32 unused;
};

// The part that a block works on.
DEVICE u32 part_of_block(const MatmulArgs &a) {
    u32 part = 0;
    if (a.num_parts > 1 && blockIdx.x >= a.parts[1].first_block) part = 1;
    if (a.num_parts > 2 && blockIdx.x >= a.parts[2].first_block) part = 2;
    return part;
}

// Stores one element of the product of a part: row `row`, column `column`.
DEVICE void finish(const MatmulArgs &a, const Part &part, u32 row, u32 column, float value) {
    if (part.bias) value += part.bias[column];
    part.out[(u64)row * part.out_stride + column] = value;
    if (a.then == ADD_TO) a.sum[(u64)row * a.sum_stride + column] += value;
}

// The same for the products of gate and up.
DEVICE void finish_glu(const MatmulArgs &a, u32 row, u32 column, float gate, float up) {
    if (a.parts[0].bias) gate += a.parts[0].bias[column];
    if (a.parts[1].bias) up += a.parts[1].bias[column];
    a.parts[0].out[(u64)row * a.parts[0].out_stride + column] = activate(a.act, gate) * up;
    a.parts[1].out[(u64)row * a.parts[1].out_stride + column] = up;
}
