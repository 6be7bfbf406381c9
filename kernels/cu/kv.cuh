// The paged KV cache: how a block of 32 tokens of one KV head lies in memory.
//
// Keys and values alike are octets, 8 elements of one token: `[octets][32 tokens]`, so that lanes that take tokens and
// lanes that take octets both read whole sectors, and 8 tokens of an octet are a matrix as the tensor cores load it. A
// head's size is rounded up to whole octets. Of the quantised types f16 scales follow: `[elements / 32][32 tokens]`.
#pragma once
#include "common.cuh"

constexpr u32 KV_BLOCK = 32;

// In the order of `KvType` in kernels/src/cpu/kv.rs.
enum KvKind { KV_F32 = 0, KV_F16 = 1, KV_Q8_0 = 2, KV_Q4_0 = 3 };

DEVICE u32 octet_bytes(u32 kind) { return 32u >> kind; }

// Bytes of a block of one head of `octets` octets.
DEVICE u64 kv_block_bytes(u32 kind, u32 octets) {
    u64 codes = (u64)octets * KV_BLOCK * octet_bytes(kind);
    return kind >= KV_Q8_0 ? codes + octets / 4 * KV_BLOCK * 2 : codes;
}

DEVICE const u8 *octet_at(const u8 *block, u32 kind, u32 octet, u32 token) {
    return block + (octet * KV_BLOCK + token) * octet_bytes(kind);
}

DEVICE float kv_scale(const u8 *block, u32 kind, u32 octets, u32 octet, u32 token) {
    const u8 *scales = block + octets * KV_BLOCK * octet_bytes(kind);
    return half_to_float(*(const u16 *)(scales + (octet / 4 * KV_BLOCK + token) * 2));
}

// Reads an octet of a token.
DEVICE void load_octet(const u8 *block, u32 kind, u32 octets, u32 octet, u32 token, float (&x)[8]) {
    const u8 *from = octet_at(block, kind, octet, token);
    switch (kind) {
    case KV_F32: {
        float4 low = *(const float4 *)from, high = *(const float4 *)(from + 16);
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
        break;
    }
    case KV_F16: {
        uint4 v = *(const uint4 *)from;
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float2 two = halves_to_floats(words[i]);
            x[2 * i] = two.x, x[2 * i + 1] = two.y;
        }
        break;
    }
    case KV_Q8_0: {
        uint2 v = *(const uint2 *)from;
        float scale = kv_scale(block, kind, octets, octet, token);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = (float)(i8)((i < 4 ? v.x : v.y) >> i % 4 * 8) * scale;
        break;
    }
    default: {
        u32 v = *(const u32 *)from;
        float scale = kv_scale(block, kind, octets, octet, token);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = ((float)(v >> i * 4 & 15) - 8.0f) * scale;
    }
    }
}

// Writes the octet of a token from 8 lanes that have an element each; of quantised types 32 lanes have the elements of
// one scale. Lanes beyond the head's end bring zeros; their octets may not exist.
DEVICE void store_element(u8 *block, u32 kind, u32 octets, u32 element, u32 token, float x) {
    u32 octet = element / 8, place = element % 8;
    u8 *to = (u8 *)octet_at(block, kind, octet, token);
    bool exists = octet < octets;
    if (kind == KV_F32) {
        if (exists) ((float *)to)[place] = x;
    } else if (kind == KV_F16) {
        if (exists) ((u16 *)to)[place] = float_to_half(x);
    } else {
        // As `KvType::quantize`: four bits reach one further down than up, so the largest element gets the −8. Of equal
        // magnitudes the first element counts.
        float largest = x;
#pragma unroll
        for (u32 lanes = 1; lanes < WARP; lanes *= 2) {
            float other = __shfl_xor_sync(ALL_LANES, largest, lanes);
            bool is_first = (threadIdx.x & lanes) == 0;
            largest = fabsf(other) > fabsf(largest) || (fabsf(other) == fabsf(largest) && !is_first) ? other : largest;
        }
        bool is_q4 = kind == KV_Q4_0;
        u16 bits = float_to_half(is_q4 ? largest / -8.0f : fabsf(largest) / 127.0f);
        float scale = half_to_float(bits);
        float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
        float code = rintf(x * inverse);
        // A NaN becomes 0.
        int q = code == code ? (int)fminf(fmaxf(code, is_q4 ? -8.0f : -127.0f), is_q4 ? 7.0f : 127.0f) : 0;
        if (is_q4) {
            u32 nibble = (u32)(q + 8) << place * 4;
#pragma unroll
            for (u32 lanes = 1; lanes < 8; lanes *= 2) nibble |= __shfl_xor_sync(ALL_LANES, nibble, lanes);
            if (exists && place == 0) *(u32 *)to = nibble;
        } else if (exists) {
            to[place] = (u8)q;
        }
        if (exists && element % 32 == 0) {
            u8 *scales = block + octets * KV_BLOCK * octet_bytes(kind);
            *(u16 *)(scales + (octet / 4 * KV_BLOCK + token) * 2) = bits;
        }
    }
}

// Where the rows of a step stand.
struct RowsInKv {
    // Position of each row in its sequence.
    const u32 *positions;
    // End of what the row's sequence has in the cache after this step.
    const u32 *ends;
    // Where each row's block table begins in `blocks`: a block for each 32 positions.
    const u32 *tables;
    const u32 *blocks;
};
