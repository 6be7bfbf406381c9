// Matmuls of few rows of activations, where reading the weights is all that takes time: a warp for each row of the
// matrix, units of 32 elements dealt to its lanes. A row's sum is made in the same order for every number of rows.
#include "matmul_args.cuh"

// Warps of a block.
constexpr u32 WARPS = 4;

// Integer dot products of row `row` of a matrix with R rows of activations; of rows beyond the last, the last again.
template <class Q, u32 R> DEVICE void dot_quantised(const MatmulArgs &a, const Planes &w, u64 row, float (&sums)[R]) {
    constexpr u32 UNITS = Q::LEN / 32;
    u32 units = a.cols / 32;
    u64 first = row * (a.cols / Q::LEN);
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = 0.0f;
#pragma unroll(R <= 2 ? 2 : 1)
    for (u32 i = threadIdx.x % WARP; i < units; i += WARP) {
        Unit u;
        Q::load_unit(w, first + i / UNITS, i % UNITS, u);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            u64 m = min(r, a.num_rows - 1);
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 at = i / UNITS * Q::LEN + u.at[h];
                int4 x = *(const int4 *)(a.acts.q + m * a.cols + at);
                int dot = __dp4a(u.q[h][0], x.x, 0);
                dot = __dp4a(u.q[h][1], x.y, dot);
                dot = __dp4a(u.q[h][2], x.z, dot);
                dot = __dp4a(u.q[h][3], x.w, dot);
                float d = a.acts.d[m * (a.cols / ACT_GROUP) + at / ACT_GROUP];
                sums[r] = fmaf(d * u.scale[h], (float)dot, sums[r]);
                if (Q::MIN) {
                    float sum = (float)a.acts.sums[m * (a.cols / 16) + at / 16];
                    sums[r] = fmaf(d * u.min[h], sum, sums[r]);
                }
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = warp_sum(sums[r]);
}

// The same on f32 rows and the exact values of the weights.
template <class Q, u32 R> DEVICE void dot_exact(const MatmulArgs &a, const Planes &w, u64 row, float (&sums)[R]) {
    constexpr u32 UNITS = Q::LEN / 32;
    u64 first = row * (a.cols / Q::LEN);
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = 0.0f;
    for (u32 i = threadIdx.x % WARP; i < a.cols / 32; i += WARP) {
        Unit u;
        Q::load_unit(w, first + i / UNITS, i % UNITS, u);
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 at = i / UNITS * Q::LEN + u.at[h];
            float values[16];
#pragma unroll
            for (u32 e = 0; e < 16; e++) {
                // Two roundings, as where rows are dequantised.
                float q = (float)(i8)(u.q[h][e / 4] >> e % 4 * 8);
                values[e] = __fadd_rn(__fmul_rn(u.scale[h], q), u.min[h]);
            }
#pragma unroll 1
            for (u32 r = 0; r < min(R, a.num_rows); r++) {
                const float *x = a.x + (u64)r * a.x_stride + at;
                float sum = 0.0f;
#pragma unroll
                for (u32 e = 0; e < 16; e++) sum = fmaf(values[e], x[e], sum);
#pragma unroll
                for (u32 s = 0; s < R; s++) sums[s] += s == r ? sum : 0.0f;
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = warp_sum(sums[r]);
}

struct WeightF32 {
    enum : u32 { BYTES = 4 };
    DEVICE static float at(const u8 *row, u64 i) { return __ldg((const float *)row + i); }
};
struct WeightF16 {
    enum : u32 { BYTES = 2 };
    DEVICE static float at(const u8 *row, u64 i) { return half_to_float(__ldg((const u16 *)row + i)); }
    DEVICE static float from(u32 bits) { return half_to_float((u16)bits); }
};
struct WeightBf16 {
    enum : u32 { BYTES = 2 };
    DEVICE static float at(const u8 *row, u64 i) { return bf16_to_float(__ldg((const u16 *)row + i)); }
    DEVICE static float from(u32 bits) { return bf16_to_float((u16)bits); }
};

// Dot products of a row of floats with R rows of f32. Lanes take 16 bytes where rows begin at a multiple of them.
template <class W, u32 R> DEVICE void dot_float(const MatmulArgs &a, const Planes &w, u64 row, float (&sums)[R]) {
    constexpr u32 STEP = 16 / W::BYTES;
    const u8 *weights = w.plane[0] + row * a.cols * W::BYTES;
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = 0.0f;
    u32 lane = threadIdx.x % WARP;
    u32 whole = a.cols % STEP ? 0 : a.cols;
    for (u32 at = lane * STEP; at < whole; at += WARP * STEP) {
        int4 bits = load_stream(weights + (u64)at * W::BYTES);
#pragma unroll
        for (u32 e = 0; e < STEP; e++) {
            float value;
            if constexpr (W::BYTES == 4) {
                value = __int_as_float(word_of(bits, e));
            } else {
                value = W::from((u32)word_of(bits, e / 2) >> e % 2 * 16);
            }
#pragma unroll
            for (u32 r = 0; r < R; r++) {
                u64 m = min(r, a.num_rows - 1);
                sums[r] = fmaf(value, a.x[m * a.x_stride + at + e], sums[r]);
            }
        }
    }
    for (u32 at = whole + lane; at < a.cols; at += WARP) {
        float value = W::at(weights, at);
#pragma unroll
        for (u32 r = 0; r < R; r++) {
            u64 m = min(r, a.num_rows - 1);
            sums[r] = fmaf(value, a.x[m * a.x_stride + at], sums[r]);
        }
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) sums[r] = warp_sum(sums[r]);
}

// A warp's row: its products by `dot`, then what follows.
template <u32 R, class Dot> DEVICE void matvec(const MatmulArgs &a, Dot dot) {
    const Part &part = a.parts[part_of_block(a)];
    u32 column = (blockIdx.x - part.first_block) * WARPS + threadIdx.x / WARP;
    wait_for_previous_kernel();
    if (column >= part.width) return;
    float sums[R] = {}, gates[R];
    // One copy of the code for both matrices of a GLU.
#pragma unroll 1
    for (u32 p = 0; p < (a.then == GLU ? 2 : 1); p++) {
#pragma unroll
        for (u32 r = 0; r < R; r++) gates[r] = sums[r];
        dot(p ? a.parts[1].w : part.w, (u64)column, sums);
    }
#pragma unroll
    for (u32 r = 0; r < R; r++) {
        if (threadIdx.x % WARP != r || r >= a.num_rows) continue;
        if (a.then == GLU) {
            finish_glu(a, r, column, gates[r], sums[r]);
        } else {
            finish(a, part, r, column, sums[r]);
        }
    }
}

// Without a number of blocks ptxas keeps some registers in memory for the sake of more of them.
#define BOUNDS __launch_bounds__(WARPS *WARP, 4)

#define MATVEC(type, name, rows)                                                                                       \
    KERNEL BOUNDS matvec_##name##_##rows(const __grid_constant__ MatmulArgs a) {                                       \
        matvec<rows>(a, [&](const Planes &w, u64 row, float(&sums)[rows]) { dot_quantised<type, rows>(a, w, row, sums); }); \
    }
#define EACH_ROWS(type, name) MATVEC(type, name, 1) MATVEC(type, name, 2) MATVEC(type, name, 4) MATVEC(type, name, 8)
EACH_QUANT(EACH_ROWS)

#define MATVEC_EXACT(type, name)                                                                                       \
    KERNEL BOUNDS matvec_exact_##name##_4(const __grid_constant__ MatmulArgs a) {                                      \
        matvec<4>(a, [&](const Planes &w, u64 row, float(&sums)[4]) { dot_exact<type, 4>(a, w, row, sums); });         \
    }
EACH_QUANT(MATVEC_EXACT)

#define MATVEC_FLOAT(type, name, rows)                                                                                 \
    KERNEL BOUNDS matvec_##name##_##rows(const __grid_constant__ MatmulArgs a) {                                       \
        matvec<rows>(a, [&](const Planes &w, u64 row, float(&sums)[rows]) { dot_float<type, rows>(a, w, row, sums); });     \
    }
#define EACH_FLOAT_ROWS(type, name)                                                                                    \
    MATVEC_FLOAT(type, name, 1) MATVEC_FLOAT(type, name, 2) MATVEC_FLOAT(type, name, 4) MATVEC_FLOAT(type, name, 8)
EACH_FLOAT_ROWS(WeightF32, f32)
EACH_FLOAT_ROWS(WeightF16, f16)
EACH_FLOAT_ROWS(WeightBf16, bf16)
