// Attention over the paged KV cache: storing keys and values, and attending in one pass with an online softmax (Milakov
// & Gimelshein 2018), over splits of the positions that are merged afterwards. This file's kernels take each row by itself,
// for any head size up to 256 and every type of the cache: decode, and whatever `attention_tiles.cu` doesn't take.
#include "attend_args.cuh"

struct StoreArgs {
    const float *k;
    const float *v;
    u8 *k_cache;
    u8 *v_cache;
    RowsInKv rows;
    u32 k_stride, v_stride;
    u32 num_kv_heads;
    u32 k_dim, v_dim;
    u32 k_kind, v_kind;
    u32 unused;
};

// A warp for one token and head: keys in blocks of z = 0, values of z = 1. x: heads; y: rows.
KERNEL store_kv(const __grid_constant__ StoreArgs a) {
    wait_for_previous_kernel();
    bool is_value = blockIdx.z;
    u32 row = blockIdx.y, head = blockIdx.x, lane = threadIdx.x;
    u32 position = a.rows.positions[row];
    u32 block = a.rows.blocks[a.rows.tables[row] + position / KV_BLOCK];
    u32 dim = is_value ? a.v_dim : a.k_dim, kind = is_value ? a.v_kind : a.k_kind;
    const float *from = (is_value ? a.v + (u64)row * a.v_stride : a.k + (u64)row * a.k_stride) + head * dim;
    u32 octets = (dim + 7) / 8;
    u8 *to = (is_value ? a.v_cache : a.k_cache) + ((u64)block * a.num_kv_heads + head) * kv_block_bytes(kind, octets);
    for (u32 first = 0; first < octets * 8; first += WARP) {
        u32 element = first + lane;
        store_element(to, kind, octets, element, position % KV_BLOCK, element < dim ? from[element] : 0.0f);
    }
}

constexpr u32 ATTEND_WARPS = 4;

// G query heads of one KV head, one row, one split. Dynamic shared memory, in floats: queries `[G][octets of a key · 8]`,
// then states `[warps][G][octets of a value · 8 + 2]`. x: splits; y: KV heads, times groups of G of their query heads; z: rows.
template <u32 G> DEVICE void attend_rows(const AttendArgs &a, u32 k_kind, u32 v_kind) {
    extern __shared__ float shared[];
    wait_for_previous_kernel();
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 group = a.num_heads / a.num_kv_heads, tiles = (group + G - 1) / G;
    u32 row = blockIdx.z, kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles;
    u32 first_head = kv_head * group + tile * G, heads = min(G, group - tile * G);
    u32 k_octets = (a.k_dim + 7) / 8, v_octets = (a.v_dim + 7) / 8;
    u32 part_len = v_octets * 8 + 2;
    float *queries = shared, *states = shared + G * k_octets * 8;
    Seen seen = seen_by(a, row);
    u32 table = a.rows.tables[row];
    u32 begin = min(seen.begin + blockIdx.x * a.split, seen.end), end = min(begin + a.split, seen.end);

    for (u32 i = threadIdx.x; i < G * k_octets * 8; i += blockDim.x) {
        u32 g = i / (k_octets * 8), d = i % (k_octets * 8);
        bool exists = g < heads && d < a.k_dim;
        queries[i] = exists ? a.q[(u64)row * a.q_stride + (first_head + g) * a.k_dim + d] * a.scale : 0.0f;
    }
    __syncthreads();

    // Lanes that take tokens of one octet of the values side by side.
    u32 together = 1;
    while (together * 2 * v_octets <= WARP) together *= 2;
    u32 octet = lane / together, first_token = lane % together;
    float max[G], sum[G], values[G][8];
#pragma unroll
    for (u32 g = 0; g < G; g++) {
        max[g] = -INFINITE, sum[g] = 0.0f;
#pragma unroll
        for (u32 e = 0; e < 8; e++) values[g][e] = 0.0f;
    }
    u64 k_bytes = kv_block_bytes(k_kind, k_octets), v_bytes = kv_block_bytes(v_kind, v_octets);
    for (u32 index = begin / KV_BLOCK + warp; index * KV_BLOCK < end; index += ATTEND_WARPS) {
        u64 block = (u64)a.rows.blocks[table + index] * a.num_kv_heads + kv_head;
        u32 position = index * KV_BLOCK + lane;
        bool is_seen = position >= begin && position < end;
        const u8 *k = a.k_cache + block * k_bytes;
        float scores[G];
#pragma unroll
        for (u32 g = 0; g < G; g++) scores[g] = 0.0f;
        if (is_seen) {
            for (u32 o = 0; o < k_octets; o++) {
                float key[8];
                load_octet(k, k_kind, k_octets, o, lane, key);
#pragma unroll
                for (u32 g = 0; g < G; g++) {
                    const float4 *query = (const float4 *)(queries + (g * k_octets + o) * 8);
                    float4 low = query[0], high = query[1];
                    scores[g] = fmaf(low.x, key[0], scores[g]);
                    scores[g] = fmaf(low.y, key[1], scores[g]);
                    scores[g] = fmaf(low.z, key[2], scores[g]);
                    scores[g] = fmaf(low.w, key[3], scores[g]);
                    scores[g] = fmaf(high.x, key[4], scores[g]);
                    scores[g] = fmaf(high.y, key[5], scores[g]);
                    scores[g] = fmaf(high.z, key[6], scores[g]);
                    scores[g] = fmaf(high.w, key[7], scores[g]);
                }
            }
        }
        float weights[G];
#pragma unroll
        for (u32 g = 0; g < G; g++) {
            float score = scores[g];
            if (a.softcap != 0.0f) score = a.softcap * tanh_by_exp(score / a.softcap);
            score = is_seen ? score : -INFINITE;
            // At least one position of the block is seen.
            float top = fmaxf(max[g], warp_max(score));
            float shrink = expf(max[g] - top);
            weights[g] = expf(score - top);
            max[g] = top;
            sum[g] = fmaf(sum[g], shrink, weights[g]);
#pragma unroll
            for (u32 e = 0; e < 8; e++) values[g][e] *= shrink;
        }
        const u8 *v = a.v_cache + block * v_bytes;
        for (u32 first = 0; first < KV_BLOCK; first += together) {
            u32 token = first + first_token, at = index * KV_BLOCK + token;
            bool counts = octet < v_octets && at >= begin && at < end;
            float value[8];
            if (counts) load_octet(v, v_kind, v_octets, octet, token, value);
#pragma unroll
            for (u32 g = 0; g < G; g++) {
                float weight = __shfl_sync(ALL_LANES, weights[g], token);
                // What nobody wrote may be anything, and nothing times a NaN is one.
                if (counts) {
#pragma unroll
                    for (u32 e = 0; e < 8; e++) values[g][e] = fmaf(weight, value[e], values[g][e]);
                }
            }
        }
    }

    // The lanes' sums, then the warps' states.
#pragma unroll
    for (u32 g = 0; g < G; g++) {
        float total = warp_sum(sum[g]);
        float *state = states + (warp * G + g) * part_len;
#pragma unroll
        for (u32 e = 0; e < 8; e++) {
            float value = values[g][e];
            for (u32 lanes = 1; lanes < together; lanes *= 2) value += __shfl_xor_sync(ALL_LANES, value, lanes);
            if (first_token == 0 && octet < v_octets) state[octet * 8 + e] = value;
        }
        if (lane == 0) state[v_octets * 8] = max[g], state[v_octets * 8 + 1] = total;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < heads * part_len; i += blockDim.x) {
        u32 g = i / part_len, d = i % part_len;
        const float *state = states + g * part_len;
        float top = -INFINITE;
#pragma unroll
        for (u32 w = 0; w < ATTEND_WARPS; w++) top = fmaxf(top, state[w * G * part_len + v_octets * 8]);
        float value = 0.0f, total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < ATTEND_WARPS; w++) {
            const float *of_warp = state + w * G * part_len;
            float own = of_warp[v_octets * 8];
            float factor = own == -INFINITE ? 0.0f : expf(own - top);
            value = fmaf(of_warp[d], factor, value);
            total = fmaf(of_warp[v_octets * 8 + 1], factor, total);
        }
        u32 head = first_head + g;
        if (a.num_splits > 1) {
            float *part = a.parts + (((u64)row * a.num_heads + head) * a.num_splits + blockIdx.x) * part_len;
            part[d] = d < v_octets * 8 ? value : d == v_octets * 8 ? top : total;
        } else if (d < a.v_dim) {
            a.out[(u64)row * a.out_stride + head * a.v_dim + d] = value * normaliser(a, head, top, total);
        }
    }
}

#define ATTEND(name, heads, k_kind, v_kind)                                                                            \
    KERNEL __launch_bounds__(ATTEND_WARPS *WARP, 2) attend_##name##_##heads(const __grid_constant__ AttendArgs a) {       \
        attend_rows<heads>(a, k_kind, v_kind);                                                                         \
    }
#define EACH_HEADS(name, k_kind, v_kind)                                                                               \
    ATTEND(name, 1, k_kind, v_kind)                                                                                    \
    ATTEND(name, 2, k_kind, v_kind) ATTEND(name, 4, k_kind, v_kind) ATTEND(name, 8, k_kind, v_kind)
EACH_HEADS(f16, KV_F16, KV_F16)
EACH_HEADS(q8_0, KV_Q8_0, KV_Q8_0)
EACH_HEADS(q4_0, KV_Q4_0, KV_Q4_0)
// Any pair of types.
EACH_HEADS(mixed, a.k_kind, a.v_kind)

// Merges the splits of a row and head. x: heads; y: rows; threads: elements of a value.
KERNEL merge_splits(const __grid_constant__ AttendArgs a) {
    wait_for_previous_kernel();
    u32 head = blockIdx.x, row = blockIdx.y, len = (a.v_dim + 7) / 8 * 8, part_len = len + 2;
    const float *parts = a.parts + ((u64)row * a.num_heads + head) * a.num_splits * part_len;
    float top = -INFINITE, total = 0.0f, value = 0.0f;
    for (u32 s = 0; s < a.num_splits; s++) top = fmaxf(top, parts[s * part_len + len]);
    for (u32 s = 0; s < a.num_splits; s++) {
        const float *part = parts + s * part_len;
        float own = part[len];
        // A split without a position that is seen.
        if (own == -INFINITE) continue;
        float factor = expf(own - top);
        total = fmaf(part[len + 1], factor, total);
        if (threadIdx.x < a.v_dim) value = fmaf(part[threadIdx.x], factor, value);
    }
    if (threadIdx.x < a.v_dim)
        a.out[(u64)row * a.out_stride + head * a.v_dim + threadIdx.x] = value * normaliser(a, head, top, total);
}
