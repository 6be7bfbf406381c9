// Kernels over rows of f32: norms, quantisation, rotary embeddings, activations, sums, copies.
#include "common.cuh"

// One block for each of `groups` equal parts of a row.
struct NormArgs {
    const float *x;
    float *out;
    const float *weight;
    const float *bias;
    // Where the normalised rows go as int8, too; q is null: nowhere. Only with one group a row.
    Acts acts;
    u32 x_stride, out_stride;
    // Elements of a part.
    u32 width;
    u32 groups;
    float eps;
    // Subtract the mean.
    u32 centre;
};

// `out = (x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias` of each part. Blocks of whole warps; the width is a
// multiple of 32 where rows are quantised, so a warp has whole groups.
KERNEL norm_rows(const __grid_constant__ NormArgs a) {
    __shared__ float scratch[WARP];
    wait_for_previous_kernel();
    u32 row = blockIdx.x / a.groups, group = blockIdx.x % a.groups;
    const float *x = a.x + (u64)row * a.x_stride + group * a.width;
    float *out = a.out + (u64)row * a.out_stride + group * a.width;
    float mean = 0.0f;
    if (a.centre) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) sum += x[i];
        mean = block_sum(sum, scratch) / (float)a.width;
    }
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) {
        float centred = x[i] - mean;
        squares = fmaf(centred, centred, squares);
    }
    float factor = 1.0f / sqrtf(block_sum(squares, scratch) / (float)a.width + a.eps);
    // Whole warps stay together to the end: quantisation shuffles.
    for (u32 first = threadIdx.x / WARP * WARP; first < a.width; first += blockDim.x) {
        u32 i = first + threadIdx.x % WARP;
        float y = 0.0f;
        if (i < a.width) {
            y = (x[i] - mean) * factor;
            if (a.weight) y *= a.weight[i];
            if (a.bias) y += a.bias[i];
            out[i] = y;
        }
        if (a.acts.q) quantize_group(a.acts, ((u64)row * a.width + first) / ACT_GROUP, y);
    }
}

struct QuantizeArgs {
    const float *x;
    Acts acts;
    u32 x_stride;
    // A multiple of 32.
    u32 width;
    u32 num_rows;
};

// A warp for each group of 32 elements.
KERNEL quantize_rows(const __grid_constant__ QuantizeArgs a) {
    wait_for_previous_kernel();
    u32 groups = a.width / ACT_GROUP;
    u64 group = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    u64 row = group / groups;
    if (row >= a.num_rows) return;
    float x = a.x[row * a.x_stride + (group % groups) * ACT_GROUP + threadIdx.x % WARP];
    quantize_group(a.acts, group, x);
}

struct RopeArgs {
    float *x;
    // `[rows, half]` each.
    const float *cos;
    const float *sin;
    u32 stride;
    u32 num_heads, head_dim;
    // Pairs of a head: half of what turns.
    u32 half;
    // Pairs are elements `i` and `i + half`, else `2·i` and `2·i + 1`.
    u32 halves;
};

// Turns the pairs of every head in place. x: pairs of all heads; y: rows.
KERNEL rope_rows(const __grid_constant__ RopeArgs a) {
    wait_for_previous_kernel();
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= a.num_heads * a.half) return;
    u32 row = blockIdx.y, head = index / a.half, pair = index % a.half;
    float *x = a.x + (u64)row * a.stride + head * a.head_dim;
    u32 first = a.halves ? pair : 2 * pair, second = a.halves ? pair + a.half : 2 * pair + 1;
    float cos = a.cos[(u64)row * a.half + pair], sin = a.sin[(u64)row * a.half + pair];
    float x0 = x[first], x1 = x[second];
    x[first] = x0 * cos - x1 * sin;
    x[second] = x0 * sin + x1 * cos;
}

// `out = f(a, b)` element by element. x: columns; y: rows.
struct MapArgs {
    const float *a;
    const float *b;
    float *out;
    u32 a_stride, b_stride, out_stride;
    u32 width;
    float factor;
    u32 act;
};

template <class F> DEVICE void map_rows(const MapArgs &a, F f) {
    wait_for_previous_kernel();
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= a.width) return;
    u64 row = blockIdx.y;
    float first = a.a[row * a.a_stride + column];
    float second = a.b ? a.b[row * a.b_stride + column] : 0.0f;
    a.out[row * a.out_stride + column] = f(first, second);
}

KERNEL glu_rows(const __grid_constant__ MapArgs a) {
    map_rows(a, [&](float gate, float up) { return activate(a.act, gate) * up; });
}

KERNEL activation_rows(const __grid_constant__ MapArgs a) {
    map_rows(a, [&](float x, float) { return activate(a.act, x); });
}

KERNEL add_rows(const __grid_constant__ MapArgs a) {
    map_rows(a, [&](float x, float y) { return x + y; });
}

KERNEL scale_rows(const __grid_constant__ MapArgs a) {
    map_rows(a, [&](float x, float) { return x * a.factor; });
}

// `cap · tanh(x / cap)`
KERNEL softcap_rows(const __grid_constant__ MapArgs a) {
    map_rows(a, [&](float x, float) { return a.factor * tanh_by_exp(x / a.factor); });
}

struct GatherArgs {
    const float *x;
    float *out;
    // Row of `x` for each row of `out`.
    const u32 *rows;
    u32 x_stride, out_stride;
    u32 width;
};

// Copies chosen rows. x: columns; y: rows of the output.
KERNEL gather_rows(const __grid_constant__ GatherArgs a) {
    wait_for_previous_kernel();
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= a.width) return;
    a.out[(u64)blockIdx.y * a.out_stride + column] = a.x[(u64)a.rows[blockIdx.y] * a.x_stride + column];
}
