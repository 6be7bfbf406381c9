// What the kernels of attention take.
#pragma once
#include "kv.cuh"

struct AttendArgs {
    const float *q;
    float *out;
    const u8 *k_cache;
    const u8 *v_cache;
    // `[num_heads]`, or null.
    const float *sinks;
    // `[rows][num_heads][splits][octets of a value · 8 + 2]`: weighted values, maximum, sum.
    float *parts;
    RowsInKv rows;
    // Of tiles: the first row and the number of rows of each.
    const u32 *tiles;
    u32 q_stride, out_stride;
    u32 num_heads, num_kv_heads;
    u32 k_dim, v_dim;
    u32 k_kind, v_kind;
    float scale;
    // 0: none.
    float softcap;
    // Positions seen, the own one included; 0: all.
    u32 window;
    u32 causal;
    // Positions of a split, a multiple of 32.
    u32 split;
    u32 num_splits;
};

// The positions that a row sees.
struct Seen {
    u32 begin, end;
};

DEVICE Seen seen_by(const AttendArgs &a, u32 row) {
    u32 position = a.rows.positions[row], end = a.causal ? position + 1 : a.rows.ends[row];
    u32 begin = 0;
    if (a.window) {
        begin = position + 1 > a.window ? position + 1 - a.window : 0;
        end = min(end, position + a.window);
    }
    return {begin, end};
}

// The result of a head from its state. A sink is one more score without a value.
DEVICE float normaliser(const AttendArgs &a, u32 head, float max, float sum) {
    if (!a.sinks) return 1.0f / sum;
    float sink = a.sinks[head], top = fmaxf(max, sink);
    return expf(max - top) / (sum * expf(max - top) + expf(sink - top));
}
