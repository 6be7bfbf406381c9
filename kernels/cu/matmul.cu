// Matmuls of many rows on the tensor cores. Quantised rows on quantised weights multiply as int8, which is exact inside a
// group, as on the CPU and in matvec.cu; F16 and BF16 weights take rows rounded to their type. Sums are f32.
//
// A block of 256 threads makes a tile of N columns (rows of the matrix) times M rows. It goes along K in steps: weights are
// unpacked to int8 and their scales to f32 on the way to shared memory, while the tensor cores work on the step before.
#include "matmul_args.cuh"
#include "tensor_core.cuh"

#if __CUDA_ARCH__ >= 800

constexpr u32 THREADS = 256;
// Bytes behind each row in shared memory, so that the 8 rows of a matrix lie in different banks.
constexpr u32 PAD = 16;

// Tile and warps: the warps divide N, M and the step of K among themselves.
struct Few {
    enum : u32 { N = 32, M = 16, WARPS_N = 2, WARPS_M = 1, WARPS_K = 4 };
};
struct Many {
    enum : u32 { N = 128, M = 64, WARPS_N = 4, WARPS_M = 2, WARPS_K = 1 };
};

// What a warp computes: fragments of 16 columns times 8 rows, four sums a lane in each.
template <class T> struct Fragments {
    enum : u32 { N = T::N / (16 * T::WARPS_N), M = T::M / (8 * T::WARPS_M) };
    // Floats that `store` wants in shared memory.
    enum : u32 { SHARED = T::WARPS_K == 1 ? 1 : T::WARPS_K * T::M * T::N };
    float sums[N][M][4];
    u32 first_n, first_m, warp_k;

    DEVICE Fragments() {
        u32 warp = threadIdx.x / WARP;
        first_n = warp % T::WARPS_N * (16 * N);
        first_m = warp / T::WARPS_N % T::WARPS_M * (8 * M);
        warp_k = warp / (T::WARPS_N * T::WARPS_M);
#pragma unroll
        for (u32 n = 0; n < N; n++)
#pragma unroll
            for (u32 m = 0; m < M; m++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) sums[n][m][i] = 0.0f;
    }

    // Column and row in the tile of sum `i` of a fragment.
    DEVICE u32 column(u32 n, u32 i) const { return first_n + n * 16 + threadIdx.x % WARP / 4 + i / 2 * 8; }
    DEVICE u32 row(u32 m, u32 i) const { return first_m + m * 8 + threadIdx.x % 4 * 2 + i % 2; }

    // Loads the matrices of 32 bytes along K, beginning at byte `k` of each row of shared memory.
    DEVICE void load(const u8 *weights, const u8 *rows, u32 stride, u32 k, u32 (&a)[N][4], u32 (&b)[M / 2][4]) const {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 n = 0; n < N; n++)
            load_matrices(a[n], shared_address(weights + (first_n + n * 16 + lane % 16) * stride + k + lane / 16 * 16));
#pragma unroll
        for (u32 m = 0; m < M; m += 2)
            load_matrices(b[m / 2], shared_address(rows + (first_m + m * 8 + lane / 16 * 8 + lane % 8) * stride + k +
                                                   lane / 8 % 2 * 16));
    }

    // Hands out the sums. Warps that divided K add theirs up in shared memory, which nobody uses any more.
    DEVICE void store(const MatmulArgs &a, const Part &part, u32 column0, u32 row0, float *shared) const {
        if constexpr (T::WARPS_K == 1) {
#pragma unroll
            for (u32 n = 0; n < N; n++)
#pragma unroll
                for (u32 m = 0; m < M; m++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) put(a, part, column0 + column(n, i), row0 + row(m, i), sums[n][m][i]);
        } else {
            __syncthreads();
#pragma unroll
            for (u32 n = 0; n < N; n++)
#pragma unroll
                for (u32 m = 0; m < M; m++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++)
                        shared[(warp_k * T::M + row(m, i)) * T::N + column(n, i)] = sums[n][m][i];
            __syncthreads();
            for (u32 i = threadIdx.x; i < T::M * T::N; i += THREADS) {
                float sum = 0.0f;
#pragma unroll
                for (u32 k = 0; k < T::WARPS_K; k++) sum += shared[k * T::M * T::N + i];
                put(a, part, column0 + i % T::N, row0 + i / T::N, sum);
            }
        }
    }

    DEVICE static void put(const MatmulArgs &a, const Part &part, u32 column, u32 row, float value) {
        if (column < part.width && row < a.num_rows) finish(a, part, row, column, value);
    }
};

// One step along K in shared memory.
template <class Q, class T> struct QuantisedStep {
    // Elements: one of 32 for each group of warps, and as many units as threads at least.
    enum : u32 { K = T::N * 4 >= THREADS ? 128 : 256, STRIDE = K + PAD, GROUPS = K / Q::GROUP };
    u8 weights[T::N * STRIDE];
    u8 rows[T::M * STRIDE];
    float scales[GROUPS][T::N];
    float mins[Q::MIN ? GROUPS : 1][T::N];
    float row_scales[K / ACT_GROUP][T::M];
    // Sums times scales.
    float row_sums[Q::MIN ? GROUPS : 1][T::M];
};

template <class Q, class T> DEVICE void matmul_quantised(const MatmulArgs &a) {
    using Step = QuantisedStep<Q, T>;
    constexpr u32 K = Step::K, UNITS = Q::LEN / 32, UNITS_K = K / 32;
    constexpr u32 MY_UNITS = T::N * UNITS_K / THREADS, MY_ROWS = T::M * K / 16 / THREADS;
    constexpr u32 MY_SCALES = (T::M * UNITS_K + THREADS - 1) / THREADS;
    __shared__ union {
        Step step;
        float sums[Fragments<T>::SHARED];
    } shared;
    Step &step = shared.step;

    const Part &part = a.parts[part_of_block(a)];
    u32 column0 = (blockIdx.x - part.first_block) * T::N, row0 = blockIdx.y * T::M;
    u64 blocks = a.cols / Q::LEN;
    u32 units = a.cols / 32;
    Fragments<T> tile;
    wait_for_previous_kernel();

    Unit my_units[MY_UNITS];
    int4 my_rows[MY_ROWS];
    float my_scales[MY_SCALES];
    float my_sums[MY_SCALES][2];
    // Of rows and columns beyond the last, the last again: their results go nowhere. Beyond K: zeros.
    auto fetch = [&](u32 k) {
#pragma unroll
        for (u32 j = 0; j < MY_UNITS; j++) {
            u32 i = j * THREADS + threadIdx.x, unit = k / 32 + i % UNITS_K;
            u64 row = min(column0 + i / UNITS_K, part.width - 1);
            if (unit < units) {
                Q::load_unit(part.w, row * blocks + unit / UNITS, unit % UNITS, my_units[j]);
#pragma unroll
                for (u32 h = 0; h < 2; h++) my_units[j].at[h] += unit / UNITS * Q::LEN - k;
            } else {
                my_units[j] = {};
                my_units[j].at[0] = unit * 32 - k, my_units[j].at[1] = unit * 32 - k + 16;
            }
        }
#pragma unroll
        for (u32 j = 0; j < MY_ROWS; j++) {
            u32 i = j * THREADS + threadIdx.x, at = k + i % (K / 16) * 16;
            u64 row = min(row0 + i / (K / 16), a.num_rows - 1);
            my_rows[j] = at < a.cols ? *(const int4 *)(a.acts.q + row * a.cols + at) : make_int4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 j = 0; j < MY_SCALES; j++) {
            u32 i = j * THREADS + threadIdx.x, group = k / 32 + i / T::M;
            u64 row = min(row0 + i % T::M, a.num_rows - 1);
            bool exists = i < T::M * UNITS_K && group < units;
            my_scales[j] = exists ? a.acts.d[row * units + group] : 0.0f;
            if (Q::MIN) {
#pragma unroll
                for (u32 h = 0; h < 2; h++)
                    my_sums[j][h] = exists ? (float)a.acts.sums[(row * units + group) * 2 + h] * my_scales[j] : 0.0f;
            }
        }
    };
    auto put = [&] {
#pragma unroll
        for (u32 j = 0; j < MY_UNITS; j++) {
            u32 n = (j * THREADS + threadIdx.x) / UNITS_K;
            const Unit &u = my_units[j];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                *(int4 *)(step.weights + n * Step::STRIDE + u.at[h]) = make_int4(u.q[h][0], u.q[h][1], u.q[h][2], u.q[h][3]);
                // Of a group of 32 the two halves, which may be in two threads, have the same.
                if (u.at[h] % Q::GROUP) continue;
                step.scales[u.at[h] / Q::GROUP][n] = u.scale[h];
                if (Q::MIN) step.mins[u.at[h] / Q::GROUP][n] = u.min[h];
            }
        }
#pragma unroll
        for (u32 j = 0; j < MY_ROWS; j++) {
            u32 i = j * THREADS + threadIdx.x;
            *(int4 *)(step.rows + i / (K / 16) * Step::STRIDE + i % (K / 16) * 16) = my_rows[j];
        }
#pragma unroll
        for (u32 j = 0; j < MY_SCALES; j++) {
            u32 i = j * THREADS + threadIdx.x, group = i / T::M, m = i % T::M;
            if (i >= T::M * UNITS_K) continue;
            step.row_scales[group][m] = my_scales[j];
            if constexpr (Q::MIN && Q::GROUP == 32) step.row_sums[group][m] = my_sums[j][0] + my_sums[j][1];
            if constexpr (Q::MIN && Q::GROUP == 16)
                step.row_sums[2 * group][m] = my_sums[j][0], step.row_sums[2 * group + 1][m] = my_sums[j][1];
        }
    };
    // Adds the integer products of a group to the sums of a fragment.
    auto add = [&](u32 n, u32 m, const int (&c)[4], u32 k, u32 group) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 column = tile.column(n, i), row = tile.row(m, i);
            float &sum = tile.sums[n][m][i];
            sum = fmaf(step.scales[group][column] * step.row_scales[k][row], (float)c[i], sum);
            if (Q::MIN) sum = fmaf(step.mins[group][column], step.row_sums[group][row], sum);
        }
    };

    auto multiply = [&] {
#pragma unroll 1
        for (u32 unit = tile.warp_k; unit < UNITS_K; unit += T::WARPS_K) {
            u32 weights[Fragments<T>::N][4], rows[Fragments<T>::M / 2][4];
            tile.load(step.weights, step.rows, Step::STRIDE, unit * 32, weights, rows);
#pragma unroll
            for (u32 n = 0; n < Fragments<T>::N; n++) {
#pragma unroll
                for (u32 m = 0; m < Fragments<T>::M; m++) {
                    const u32(&b)[4] = rows[m / 2];
                    if constexpr (Q::GROUP == 32) {
                        int c[4] = {0, 0, 0, 0};
                        multiply_s8_k32(c, weights[n], b[m % 2 * 2], b[m % 2 * 2 + 1]);
                        add(n, m, c, unit, unit);
                    } else {
#pragma unroll
                        for (u32 h = 0; h < 2; h++) {
                            int c[4] = {0, 0, 0, 0};
                            multiply_s8_k16(c, weights[n][2 * h], weights[n][2 * h + 1], b[m % 2 * 2 + h]);
                            add(n, m, c, unit, 2 * unit + h);
                        }
                    }
                }
            }
        }
    };
    along_k<K>(a.cols, fetch, put, multiply);
    tile.store(a, part, column0, row0, shared.sums);
}

struct F16 {
    DEVICE static u16 round(float x) { return float_to_half(x); }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply_f16(c, a, b0, b1); }
};
struct Bf16 {
    DEVICE static u16 round(float x) {
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
        return bits;
    }
    DEVICE static void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply_bf16(c, a, b0, b1); }
};

// 16-bit floats: 16 elements are the 32 bytes of a fragment.
template <class W, class T> DEVICE void matmul_float(const MatmulArgs &a) {
    // Elements along K of a step; pieces of 8 that each thread brings.
    constexpr u32 K = T::WARPS_K * 16 < 64 ? 64 : T::WARPS_K * 16, STRIDE = K * 2 + PAD, PIECES = K / 8;
    constexpr u32 MY_WEIGHTS = T::N * PIECES / THREADS, MY_ROWS = (T::M * PIECES + THREADS - 1) / THREADS;
    __shared__ __align__(16) union {
        struct {
            u8 weights[T::N * STRIDE];
            u8 rows[T::M * STRIDE];
        } step;
        float sums[Fragments<T>::SHARED];
    } shared;
    const Part &part = a.parts[part_of_block(a)];
    u32 column0 = (blockIdx.x - part.first_block) * T::N, row0 = blockIdx.y * T::M;
    Fragments<T> tile;
    wait_for_previous_kernel();

    int4 my_weights[MY_WEIGHTS];
    float my_rows[MY_ROWS][8];
    auto fetch = [&](u32 k) {
#pragma unroll
        for (u32 j = 0; j < MY_WEIGHTS; j++) {
            u32 i = j * THREADS + threadIdx.x, at = k + i % PIECES * 8;
            u64 row = min(column0 + i / PIECES, part.width - 1);
            my_weights[j] = at < a.cols ? load_stream(part.w.plane[0] + (row * a.cols + at) * 2) : make_int4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 j = 0; j < MY_ROWS; j++) {
            u32 i = j * THREADS + threadIdx.x, at = k + i % PIECES * 8;
            u64 row = min(row0 + i / PIECES, a.num_rows - 1);
            bool exists = i < T::M * PIECES && at < a.cols;
#pragma unroll
            for (u32 e = 0; e < 8; e++) my_rows[j][e] = exists ? a.x[row * a.x_stride + at + e] : 0.0f;
        }
    };
    auto put = [&] {
#pragma unroll
        for (u32 j = 0; j < MY_WEIGHTS; j++) {
            u32 i = j * THREADS + threadIdx.x;
            *(int4 *)(shared.step.weights + i / PIECES * STRIDE + i % PIECES * 16) = my_weights[j];
        }
#pragma unroll
        for (u32 j = 0; j < MY_ROWS; j++) {
            u32 i = j * THREADS + threadIdx.x;
            if (i >= T::M * PIECES) continue;
            u32 words[4];
#pragma unroll
            for (u32 e = 0; e < 4; e++)
                words[e] = (u32)W::round(my_rows[j][2 * e]) | (u32)W::round(my_rows[j][2 * e + 1]) << 16;
            *(uint4 *)(shared.step.rows + i / PIECES * STRIDE + i % PIECES * 16) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
    };

    auto multiply = [&] {
#pragma unroll
        for (u32 unit = tile.warp_k; unit < K / 16; unit += T::WARPS_K) {
            u32 weights[Fragments<T>::N][4], rows[Fragments<T>::M / 2][4];
            tile.load(shared.step.weights, shared.step.rows, STRIDE, unit * 32, weights, rows);
#pragma unroll
            for (u32 n = 0; n < Fragments<T>::N; n++)
#pragma unroll
                for (u32 m = 0; m < Fragments<T>::M; m++)
                    W::multiply(tile.sums[n][m], weights[n], rows[m / 2][m % 2 * 2], rows[m / 2][m % 2 * 2 + 1]);
        }
    };
    along_k<K>(a.cols, fetch, put, multiply);
    tile.store(a, part, column0, row0, shared.sums);
}

#define MATMUL(type, name)                                                                                             \
    KERNEL __launch_bounds__(THREADS) matmul_##name##_16(const __grid_constant__ MatmulArgs a) {                       \
        matmul_quantised<type, Few>(a);                                                                                \
    }                                                                                                                  \
    KERNEL __launch_bounds__(THREADS) matmul_##name##_64(const __grid_constant__ MatmulArgs a) {                       \
        matmul_quantised<type, Many>(a);                                                                               \
    }
EACH_QUANT(MATMUL)

#define MATMUL_FLOAT(type, name)                                                                                       \
    KERNEL __launch_bounds__(THREADS) matmul_##name##_16(const __grid_constant__ MatmulArgs a) {                       \
        matmul_float<type, Few>(a);                                                                                    \
    }                                                                                                                  \
    KERNEL __launch_bounds__(THREADS) matmul_##name##_64(const __grid_constant__ MatmulArgs a) {                       \
        matmul_float<type, Many>(a);                                                                                   \
    }
MATMUL_FLOAT(F16, f16)
MATMUL_FLOAT(Bf16, bf16)

#endif
