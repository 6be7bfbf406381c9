// The tensor cores' instructions, for capability 8.0 and newer. A matrix of 8 rows of 16 bytes lies over a warp as its lanes
// hold it after `load_matrices`; `multiply_*` adds the product of 16 rows (`a`) and 8 columns (`b`) to four sums a lane.
#pragma once
#include "common.cuh"

#if __CUDA_ARCH__ >= 800

DEVICE u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// Four matrices of 8 rows of 16 bytes: lane `l` gives the address in shared memory of row `l % 8` of matrix `l / 8`.
DEVICE void load_matrices(u32 (&m)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(row)
                 : "memory");
}

// The same, each matrix of 16-bit elements turned over.
DEVICE void load_transposed(u32 (&m)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(row)
                 : "memory");
}

DEVICE void multiply_s8_k32(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void multiply_s8_k16(int (&c)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

DEVICE void multiply_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Goes along K in steps of `STEP`: `put` stores in shared memory what `fetch(k)` brought to registers, and while `multiply`
// works on it the next step is on its way. `k` is where a step begins.
template <u32 STEP, class Fetch, class Put, class Multiply>
DEVICE void along_k(u32 cols, Fetch fetch, Put put, Multiply multiply) {
    fetch(0);
    for (u32 k = 0; k < cols; k += STEP) {
        // Everyone is done with the step before.
        __syncthreads();
        put();
        __syncthreads();
        if (k + STEP < cols) fetch(k + STEP);
        multiply();
    }
}

#endif
