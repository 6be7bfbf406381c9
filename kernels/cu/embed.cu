// Rows of a table of weights as f32: what a token is at first.
#include "quant.cuh"

struct EmbedArgs {
    Planes table;
    float *out;
    // A row of the table for each row of the output.
    const u32 *tokens;
    u32 out_stride;
    u32 width;
    float factor;
    u32 unused;
};

// A thread for a unit of 32 elements. x: units; y: rows.
template <class Q> DEVICE void embed(const EmbedArgs &a) {
    constexpr u32 UNITS = Q::LEN / 32;
    wait_for_previous_kernel();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.width / 32) return;
    u64 row = a.tokens[blockIdx.y];
    Unit u;
    Q::load_unit(a.table, row * (a.width / Q::LEN) + i / UNITS, i % UNITS, u);
    float *out = a.out + (u64)blockIdx.y * a.out_stride + i / UNITS * Q::LEN;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
#pragma unroll
        for (u32 e = 0; e < 16; e++) {
            float q = (float)(i8)(u.q[h][e / 4] >> e % 4 * 8);
            // Two roundings, as the CPU makes them.
            float value = __fadd_rn(__fmul_rn(u.scale[h], q), u.min[h]);
            out[u.at[h] + e] = value * a.factor;
        }
    }
}

#define EMBED(type, name)                                                                                              \
    KERNEL embed_##name(const __grid_constant__ EmbedArgs a) { embed<type>(a); }
EACH_QUANT(EMBED)

// A thread for an element. x: elements; y: rows.
template <class F> DEVICE void embed_float(const EmbedArgs &a, F at) {
    wait_for_previous_kernel();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.width) return;
    u64 element = (u64)a.tokens[blockIdx.y] * a.width + i;
    a.out[(u64)blockIdx.y * a.out_stride + i] = at(a.table.plane[0], element) * a.factor;
}

KERNEL embed_f32(const __grid_constant__ EmbedArgs a) {
    embed_float(a, [](const u8 *table, u64 i) { return __ldg((const float *)table + i); });
}
KERNEL embed_f16(const __grid_constant__ EmbedArgs a) {
    embed_float(a, [](const u8 *table, u64 i) { return half_to_float(__ldg((const u16 *)table + i)); });
}
KERNEL embed_bf16(const __grid_constant__ EmbedArgs a) {
    embed_float(a, [](const u8 *table, u64 i) { return bf16_to_float(__ldg((const u16 *)table + i)); });
}
