// Attention of many rows on the tensor cores (after Dao 2023): a block takes the queries of some neighbouring rows of one
// sequence and of all heads that share a KV head, and goes along the positions once. Queries and weights are rounded to
// f16, as keys and values are; scores, sums and results are f32.
#include "attend_args.cuh"
#include "tensor_core.cuh"

#if __CUDA_ARCH__ >= 800

// Warps of a block, each with 16 queries, which are rows times heads of the group: `TILE_QUERIES` of launch.rs in all.
constexpr u32 TILE_WARPS = 4;
// Bytes of 32 tokens of an octet.
constexpr u32 OCTET_BYTES = KV_BLOCK * 16;

// Copies 16 bytes to shared memory in the background, or clears them.
DEVICE void copy_or_clear(u32 to, const u8 *from, bool exists) {
    u32 bytes = exists ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All groups but the last one have arrived.
DEVICE void wait_for_all_but_one() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
DEVICE void wait_for_all() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

DEVICE u32 pack(float low, float high) { return (u32)float_to_half(low) | (u32)float_to_half(high) << 16; }

// Heads of up to D elements, a multiple of 16. x: tiles; y: KV heads. Dynamic shared memory: two stages of keys and values.
template <u32 D> DEVICE void attend_tile(const AttendArgs &a) {
    extern __shared__ __align__(16) u8 tile_shared[];
    wait_for_previous_kernel();
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = a.num_heads / a.num_kv_heads;
    u32 first_row = a.tiles[2 * blockIdx.x], num_queries = a.tiles[2 * blockIdx.x + 1] * group, kv_head = blockIdx.y;
    u32 k_octets = a.k_dim / 8, v_octets = a.v_dim / 8;
    u32 shared = shared_address(tile_shared), stage_bytes = (k_octets + v_octets) * OCTET_BYTES;

    // A lane has two queries, 8 apart: where they are, what they see, and their part of the products' left side.
    u32 begin[2], end[2], row[2], head[2];
    bool exists[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 query = warp * 16 + i * 8 + lane / 4;
        exists[i] = query < num_queries;
        // Of those beyond the last, the last again: their results go nowhere.
        query = min(query, num_queries - 1);
        row[i] = first_row + query / group, head[i] = kv_head * group + query % group;
        Seen seen = seen_by(a, row[i]);
        begin[i] = seen.begin, end[i] = seen.end;
    }
    u32 queries[D / 16][4];
#pragma unroll
    for (u32 step = 0; step < D / 16; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 d = step * 16 + i / 2 * 8 + lane % 4 * 2;
            if (d >= a.k_dim) {
                queries[step][i] = 0;
                continue;
            }
            const float *q = a.q + (u64)row[i % 2] * a.q_stride + head[i % 2] * a.k_dim + d;
            queries[step][i] = pack(q[0] * a.scale, q[1] * a.scale);
        }
    }

    // The positions that any query of the tile sees, and those that were written.
    u32 last_row = first_row + a.tiles[2 * blockIdx.x + 1] - 1;
    u32 first_block = seen_by(a, first_row).begin / KV_BLOCK;
    u32 num_blocks = (seen_by(a, last_row).end + KV_BLOCK - 1) / KV_BLOCK;
    u32 written = a.rows.ends[first_row];
    const u32 *table = a.rows.blocks + a.rows.tables[first_row];
    auto fetch = [&](u32 block, u32 stage) {
        u64 at = (u64)table[block] * a.num_kv_heads + kv_head;
        const u8 *k = a.k_cache + at * k_octets * OCTET_BYTES, *v = a.v_cache + at * v_octets * OCTET_BYTES;
        u32 to = shared + stage * stage_bytes, pieces = (k_octets + v_octets) * KV_BLOCK;
        for (u32 i = threadIdx.x; i < pieces; i += TILE_WARPS * WARP) {
            bool is_key = i < k_octets * KV_BLOCK;
            const u8 *from = is_key ? k + i * 16 : v + (i - k_octets * KV_BLOCK) * 16;
            // What nobody wrote may be anything, and nothing times a NaN is one.
            copy_or_clear(to + i * 16, from, block * KV_BLOCK + i % KV_BLOCK < written);
        }
        close_group();
    };

    float max[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f}, values[D / 8][4];
#pragma unroll
    for (u32 n = 0; n < D / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) values[n][i] = 0.0f;

    fetch(first_block, first_block % 2);
    for (u32 block = first_block; block < num_blocks; block++) {
        if (block + 1 < num_blocks) {
            fetch(block + 1, (block + 1) % 2);
            wait_for_all_but_one();
        } else {
            wait_for_all();
        }
        __syncthreads();
        u32 keys = shared + block % 2 * stage_bytes, from_values = keys + k_octets * OCTET_BYTES;

        float scores[4][4];
#pragma unroll
        for (u32 n = 0; n < 4; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
        for (u32 step = 0; step < D / 16; step++) {
            if (step * 16 >= a.k_dim) break;
#pragma unroll
            for (u32 n = 0; n < 4; n += 2) {
                u32 b[4];
                u32 octet = 2 * step + lane / 8 % 2, token = 8 * (n + lane / 16) + lane % 8;
                load_matrices(b, keys + octet * OCTET_BYTES + token * 16);
                multiply_f16(scores[n], queries[step], b[0], b[1]);
                multiply_f16(scores[n + 1], queries[step], b[2], b[3]);
            }
        }
        float top[2] = {max[0], max[1]};
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 position = block * KV_BLOCK + n * 8 + lane % 4 * 2 + i % 2;
                float score = scores[n][i];
                if (a.softcap != 0.0f) score = a.softcap * tanh_by_exp(score / a.softcap);
                score = position >= begin[i / 2] && position < end[i / 2] ? score : -INFINITE;
                scores[n][i] = score;
                top[i / 2] = fmaxf(top[i / 2], score);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            top[i] = fmaxf(top[i], __shfl_xor_sync(ALL_LANES, top[i], 1));
            top[i] = fmaxf(top[i], __shfl_xor_sync(ALL_LANES, top[i], 2));
            // A query that has seen nothing yet has nothing to shrink.
            float shrink = max[i] == -INFINITE ? 0.0f : expf(max[i] - top[i]);
            max[i] = top[i];
            sum[i] *= shrink;
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) values[n][2 * i] *= shrink, values[n][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float weight = scores[n][i] == -INFINITE ? 0.0f : expf(scores[n][i] - max[i / 2]);
                scores[n][i] = weight;
                sum[i / 2] += weight;
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float(&low)[4] = scores[2 * half], (&high)[4] = scores[2 * half + 1];
            u32 weights[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
            for (u32 n = 0; n < D / 8; n += 2) {
                if (n * 8 >= a.v_dim) break;
                u32 b[4];
                u32 octet = n + lane / 16, token = 16 * half + lane / 8 % 2 * 8 + lane % 8;
                load_transposed(b, from_values + octet * OCTET_BYTES + token * 16);
                multiply_f16(values[n], weights, b[0], b[1]);
                multiply_f16(values[n + 1], weights, b[2], b[3]);
            }
        }
        // The stage is free for the block after the next.
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 1);
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);
        if (!exists[i]) continue;
        float factor = normaliser(a, head[i], max[i], sum[i]);
        float *out = a.out + (u64)row[i] * a.out_stride + head[i] * a.v_dim + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
            if (n * 8 >= a.v_dim) break;
            out[n * 8] = values[n][2 * i] * factor, out[n * 8 + 1] = values[n][2 * i + 1] * factor;
        }
    }
}

#define ATTEND_TILE(dim)                                                                                               \
    KERNEL __launch_bounds__(TILE_WARPS *WARP) attend_tile_##dim(const __grid_constant__ AttendArgs a) {               \
        attend_tile<dim>(a);                                                                                           \
    }
ATTEND_TILE(64)
ATTEND_TILE(128)
ATTEND_TILE(256)

#endif
