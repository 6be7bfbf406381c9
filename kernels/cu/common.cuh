// What all kernels share: integer names, conversions, reductions, and the rules below.
//
// - A kernel takes one struct by value, which `kernels/src/cuda/ops` repeats in Rust, field by field.
// - Rows are f32, row-major, `stride` elements from row to row. Quantised rows are int8 with an f32 scale for 32
//   elements and exact sums of 16 (see `ActRows` in kernels/src/cpu/matrix.rs, which means the same).
// - Where the result is compared bit by bit between batch sizes, products and sums are spelled as fmaf, in one order.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__

// Lanes of a warp, and what a shuffle among all of them names.
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

#define INFINITE __int_as_float(0x7f800000)

// Elements that share a scale in quantised activations.
constexpr u32 ACT_GROUP = 32;

// Waits until the kernel before this one is done, where kernels overlap (programmatic dependent launch), and lets the
// next one begin. A kernel calls it before it reads what another has written.
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

DEVICE float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Two halves of a word, the lower one first.
DEVICE float2 halves_to_floats(u32 bits) {
    float2 x;
    // Spelled out, for what the compiler makes of it needs a newer driver.
    asm("{\n\t.reg .b16 low, high;\n\tmov.b32 {low, high}, %2;\n\tcvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(x.x), "=f"(x.y)
        : "r"(bits));
    return x;
}

// Values beyond the largest half become that: an infinity would spoil a whole softmax.
DEVICE u16 float_to_half(float x) {
    // A NaN compares with nothing and stays one.
    x = x > 65504.0f ? 65504.0f : x;
    x = x < -65504.0f ? -65504.0f : x;
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

DEVICE float bf16_to_float(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Streams: weights are read once a step and shouldn't push activations out of the L1 cache.
DEVICE int4 load_stream(const void *address) {
    int4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

template <class T> DEVICE T load(const void *address) { return __ldg((const T *)address); }

DEVICE float warp_sum(float x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

DEVICE float warp_max(float x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

DEVICE int warp_sum(int x, u32 width) {
    for (u32 lanes = width / 2; lanes; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

DEVICE u32 warp_max(u32 x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Sum over a block of whole warps, at most 32 of them. `scratch` has a place for each; every thread gets the sum.
DEVICE float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    if (blockDim.x == WARP) return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? scratch[threadIdx.x % WARP] : 0.0f;
    return warp_sum(x);
}

// `tanh x = 1 − 2 / (e^{2x} + 1)`, as on the CPU.
DEVICE float tanh_by_exp(float x) { return 1.0f - 2.0f / (expf(x > 44.0f ? 88.0f : x + x) + 1.0f); }

// In the order of `Activation` in kernels/src/cpu/vector.rs.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

DEVICE float activate(u32 act, float x) {
    switch (act) {
    case SILU: return x / (1.0f + expf(-x));
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanh_by_exp(0.7978845608028654f * x * fmaf(x * x, 0.044715f, 1.0f)));
    default: return fmaxf(x, 0.0f);
    }
}

// Quantised rows.
struct Acts {
    // `[rows, cols]`
    i8 *q;
    // `[rows, cols / 32]`
    float *d;
    // `[rows, cols / 16]`
    i16 *sums;
};

// Quantises 32 elements, one a lane: element `lane` of group `group` among all groups of all rows.
DEVICE void quantize_group(const Acts &acts, u64 group, float x) {
    u32 lane = threadIdx.x % WARP;
    float largest = __uint_as_float(warp_max(__float_as_uint(x) & 0x7fffffffu));
    float inverse = 127.0f / largest;
    // All zero (or so small that the quotient overflows), or not finite: then the scale says so and the codes are 0.
    bool is_normal = inverse >= 1.17549435e-38f && inverse <= 3.402823466e38f;
    int code = is_normal ? __float2int_rn(x * inverse) : 0;
    acts.q[group * ACT_GROUP + lane] = (i8)code;
    int sum = warp_sum(code, 16);
    if (lane % 16 == 0) acts.sums[group * 2 + lane / 16] = (i16)sum;
    if (lane == 0) {
        bool is_finite = largest <= 3.402823466e38f;
        float scale = __uint_as_float(__float_as_uint(largest / 127.0f) & ~3u);
        acts.d[group] = is_normal ? scale : is_finite ? 0.0f : largest;
    }
}
