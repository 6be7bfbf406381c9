// What sampling needs of rows of logits, so that the rows themselves stay on the device: the best tokens of each, sums of
// their weights, and a token drawn from all. A weight is e^((logit − max) / temperature), computed and summed operation by
// operation as runtime/src/sample does it: the tokens are the host's, bit for bit, so nothing here may be fused.
//
// 1. `best_of_groups` reads the rows: the best token of each group of neighbouring columns.
// 2. `best_of_rows`: a group whose best is worse than the N-th best of all groups' has none of the N best tokens, so N
//    groups are looked at, however the logits lie. Ranks are all different, so ties need no thought.
// 3. `sum_weights`, `finish_rows`: for rows whose task wants a sum or a draw.
#include "common.cuh"

// What is asked of a row.
enum Task { SUM = 1, DRAW = 2 };

struct RowTask {
    // In [0, 1): which token a draw takes.
    double uniform;
    // Of the draw; above 0.
    float temperature;
    u32 tasks;
};

struct RowResult {
    // Σ of the weights at temperature 1.
    double sum;
    // The token that was drawn, and its logit.
    u32 token;
    float logit;
};

struct LogitsArgs {
    // `[rows, stride]`
    const float *logits;
    // Ranks: `[rows, num_groups]`
    u64 *groups;
    // `[rows, 2, num_chunks]`: at temperature 1, and for the draw.
    double *sums;
    // `[rows]`
    const RowTask *tasks;
    // `[rows]`
    RowResult *results;
    // Ranks, best first: `[rows, num_best]`; 0 where a row has fewer tokens.
    u64 *best;
    u32 stride;
    // Columns that are tokens.
    u32 width;
    u32 num_groups;
    // Columns of a group: 2 to this, at most 256.
    u32 group_shift;
    // At most 1024. Where there are fewer groups, they are of one column.
    u32 num_best;
    u32 num_chunks;
};

// Orders tokens: the higher logit, of equal ones the lower id. NaN is above everything, so that it is found. Never 0.
DEVICE u64 rank_of(float logit, u32 id) {
    // −0 and 0 are equal.
    u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)(logit != logit ? 0xffffffffu : ordered) << 32 | ~id;
}

DEVICE float logit_of(u64 rank) {
    u32 ordered = (u32)(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// A group's columns are dealt out to lanes, 8 to each where there are so many. x: lanes of all groups; y: rows.
KERNEL __launch_bounds__(256) best_of_groups(const __grid_constant__ LogitsArgs a) {
    wait_for_previous_kernel();
    u32 lane_shift = a.group_shift > 3 ? a.group_shift - 3 : 0, lanes = 1u << lane_shift;
    u32 index = blockIdx.x * blockDim.x + threadIdx.x, group = index >> lane_shift, lane = index & (lanes - 1);
    u32 end = min((group + 1) << a.group_shift, a.width);
    const float *row = a.logits + (u64)blockIdx.y * a.stride;
    u64 best = 0;
    if (group < a.num_groups)
        for (u32 id = (group << a.group_shift) + lane; id < end; id += lanes) best = max(best, rank_of(row[id], id));
    for (u32 step = lanes / 2; step; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
    if (group < a.num_groups && lane == 0) a.groups[(u64)blockIdx.y * a.num_groups + group] = best;
}

constexpr u32 BEST_THREADS = 1024;
constexpr u32 MAX_GROUPS = 4096, GROUPS_EACH = MAX_GROUPS / BEST_THREADS;
constexpr u32 MAX_BEST = 1024;
// Tokens that are sorted.
constexpr u32 LIST = 2048;
constexpr u32 RANK_BITS = 64;

// How many ranks of all threads reach some rank, of which this thread has `mine`. `sum` was 0.
DEVICE u32 block_count(u32 mine, u32 *sum) {
    mine = (u32)warp_sum((int)mine, WARP);
    if (threadIdx.x % WARP == 0 && mine) atomicAdd(sum, mine);
    __syncthreads();
    return *sum;
}

// A rank, not below `from`, that at least `wanted` and at most `most` ranks reach; at least `wanted` reach `from`. `count`
// is how many of this thread's reach a rank; `counts` has a zero for each bit and one more.
template <class Count> DEVICE u64 rank_reached_by(u32 wanted, u32 most, u64 from, u32 *counts, Count count) {
    if (block_count(count(from), &counts[RANK_BITS]) <= most) return from;
    // The highest rank that so many reach, from the top bit down, unless one on the way serves.
    u64 found = 0;
    for (u32 bit = RANK_BITS; bit--;) {
        u64 next = found | 1ull << bit;
        if (next > from) {
            u32 all = block_count(count(next), &counts[bit]);
            if (all < wanted) continue;
            if (all <= most) return next;
        }
        found = next;
    }
    return found;
}

// A block for each row.
KERNEL __launch_bounds__(BEST_THREADS) best_of_rows(const __grid_constant__ LogitsArgs a) {
    __shared__ u64 list[LIST];
    __shared__ u32 counts[2][RANK_BITS + 1];
    __shared__ u16 groups[MAX_BEST];
    __shared__ u32 num_groups, num_listed;
    wait_for_previous_kernel();
    u32 thread = threadIdx.x;
    const float *row = a.logits + (u64)blockIdx.x * a.stride;
    const u64 *from_groups = a.groups + (u64)blockIdx.x * a.num_groups;
    if (thread < 2 * (RANK_BITS + 1)) counts[thread / (RANK_BITS + 1)][thread % (RANK_BITS + 1)] = 0;
    if (thread == 0) num_groups = num_listed = 0;
    u64 mine[GROUPS_EACH];
#pragma unroll
    for (u32 i = 0; i < GROUPS_EACH; i++) {
        u32 group = i * BEST_THREADS + thread;
        mine[i] = group < a.num_groups ? from_groups[group] : 0;
    }
    __syncthreads();

    // The groups to look at: as many as tokens are wanted, or all.
    auto count_groups = [&](u64 rank) {
        u32 n = 0;
#pragma unroll
        for (u32 i = 0; i < GROUPS_EACH; i++) n += mine[i] >= rank;
        return n;
    };
    u64 threshold = rank_reached_by(a.num_best, a.num_best, 1, counts[0], count_groups);
#pragma unroll
    for (u32 i = 0; i < GROUPS_EACH; i++)
        if (mine[i] >= threshold) groups[atomicAdd(&num_groups, 1)] = (u16)(i * BEST_THREADS + thread);
    __syncthreads();
    u32 num_columns = num_groups << a.group_shift;
    auto each = [&](auto use) {
        for (u32 i = thread; i < num_columns; i += BEST_THREADS) {
            u32 id = ((u32)groups[i >> a.group_shift] << a.group_shift) + (i & ((1u << a.group_shift) - 1));
            if (id < a.width) use(rank_of(row[id], id));
        }
    };

    // Mostly a few more tokens than are wanted reach the threshold, but they may be very many.
    auto count_tokens = [&](u64 rank) {
        u32 n = 0;
        each([&](u64 other) { n += other >= rank; });
        return n;
    };
    threshold = rank_reached_by(a.num_best, LIST, threshold, counts[1], count_tokens);
    each([&](u64 rank) {
        if (rank >= threshold) list[atomicAdd(&num_listed, 1)] = rank;
    });
    __syncthreads();
    u32 len = num_listed, size = 2;
    while (size < len) size *= 2;
    for (u32 i = len + thread; i < size; i += BEST_THREADS) list[i] = 0;
    // Bitonic, descending.
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 step = run / 2; step; step /= 2) {
            __syncthreads();
            if (thread >= size / 2) continue;
            u32 i = 2 * thread - (thread & (step - 1));
            u64 first = list[i], second = list[i + step];
            if ((first < second) == ((i & run) == 0)) list[i] = second, list[i + step] = first;
        }
    }
    __syncthreads();
    for (u32 i = thread; i < a.num_best; i += BEST_THREADS)
        a.best[(u64)blockIdx.x * a.num_best + i] = i < len ? list[i] : 0;
}

// e^x for x ≤ 0: `exp_nonpositive` of runtime/src/sample/math.rs.
DEVICE float exp_nonpositive(float x) {
    constexpr float ROUND = 12582912.0f;
    float clamped = x < -87.0f ? -87.0f : x;
    float rounded = __fadd_rn(__fmul_rn(clamped, 1.44269504088896340736f), ROUND);
    float n = __fsub_rn(rounded, ROUND);
    float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 355.0f / 512.0f)), __fmul_rn(n, -2.1219444e-4f));
    float p = 1.0f / 5040.0f;
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 720.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6.0f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    u32 exponent = (__float_as_uint(rounded) - __float_as_uint(ROUND) + 127) << 23;
    return x < -87.0f ? 0.0f : __fmul_rn(p, __uint_as_float(exponent));
}

DEVICE float weight_of(float logit, float max, float temperature) {
    return exp_nonpositive(__fdiv_rn(__fsub_rn(logit, max), temperature));
}

// Columns whose weights are summed together, and sums under way in each.
constexpr u32 CHUNK = 1024, LANES = 16;
constexpr u32 SUM_THREADS = 256;

// 16 threads for each chunk. x: chunks; y: rows; z: at temperature 1, and for the draw.
KERNEL __launch_bounds__(SUM_THREADS) sum_weights(const __grid_constant__ LogitsArgs a) {
    wait_for_previous_kernel();
    u32 is_draw = blockIdx.z, row = blockIdx.y;
    RowTask task = a.tasks[row];
    if (!(task.tasks & (is_draw ? DRAW : SUM))) return;
    float temperature = is_draw ? task.temperature : 1.0f, max = logit_of(a.best[(u64)row * a.num_best]);
    u32 chunk = blockIdx.x * (SUM_THREADS / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    u32 end = min((chunk + 1) * CHUNK, a.width);
    const float *logits = a.logits + (u64)row * a.stride;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = chunk * CHUNK + lane; i < end; i += LANES) sum = __fadd_rn(sum, weight_of(logits[i], max, temperature));
    double all = 0.0;
#pragma unroll
    for (u32 i = 0; i < LANES; i++) all = __dadd_rn(all, (double)__shfl_sync(ALL_LANES, sum, i, LANES));
    if (lane == 0 && chunk < a.num_chunks) a.sums[((u64)row * 2 + is_draw) * a.num_chunks + chunk] = all;
}

constexpr u32 MAX_CHUNKS = 1024;

// The chunk that a draw falls into, and what is left of its target there: by one thread, as the host does it.
DEVICE u32 chunk_by_steps(const double *sums, u32 num_chunks, double uniform, double &target) {
    double all = 0.0;
    for (u32 i = 0; i < num_chunks; i++) all = __dadd_rn(all, sums[i]);
    target = __dmul_rn(uniform, all);
    u32 chosen = 0;
    for (u32 i = 0; i < num_chunks; i++) {
        if (!(sums[i] > 0.0)) continue;
        chosen = i;
        if (target < sums[i]) break;
        target = __dsub_rn(target, sums[i]);
    }
    return chosen;
}

// The same for the token in its chunk.
DEVICE u32 token_by_steps(const float *weights, u32 len, double target) {
    u32 chosen = 0;
    for (u32 i = 0; i < len; i++) {
        if (!(weights[i] > 0.0f)) continue;
        chosen = i;
        target = __dsub_rn(target, (double)weights[i]);
        if (target < 0.0) break;
    }
    return chosen;
}

// A value among many, and what is left of a target before it.
struct Place {
    u32 index;
    double left;
    // Farther from both neighbours than all rounding: in steps it would be the same one.
    bool is_sure;
};

// Where a warp finds `target` in the running sum of the values, a stretch for each lane.
template <class T> DEVICE Place place_of(const T *values, u32 len, double target, double slack) {
    u32 lane = threadIdx.x % WARP, each = (len + WARP - 1) / WARP;
    u32 begin = min(lane * each, len), end = min(begin + each, len);
    double after = 0.0;
    for (u32 i = begin; i < end; i++) after += (double)values[i];
    for (u32 step = 1; step < WARP; step *= 2) {
        double other = __shfl_up_sync(ALL_LANES, after, step);
        if (lane >= step) after += other;
    }
    // Of a lane what its neighbour has after it, so that no target falls between them.
    double before = __shfl_up_sync(ALL_LANES, after, 1);
    if (lane == 0) before = 0.0;
    Place place = {0, 0.0, false};
    bool is_mine = before <= target && target < after;
    if (is_mine) {
        for (u32 i = begin; i < end; i++) {
            double next = before + (double)values[i];
            if (target < next) {
                place = {i, target - before, target - before > slack && next - target > slack};
                break;
            }
            before = next;
        }
    }
    u32 who = __ballot_sync(ALL_LANES, is_mine);
    u32 from = who ? __ffs(who) - 1 : 0;
    place.index = __shfl_sync(ALL_LANES, place.index, from);
    place.left = __shfl_sync(ALL_LANES, place.left, from);
    place.is_sure = __shfl_sync(ALL_LANES, (u32)place.is_sure, from);
    return place;
}

// Of all weights: far more than a thousand roundings of doubles come to, and so little that steps are hardly ever taken.
constexpr double SLACK = 1e-10;

// A block for each row. Sums in the host's order are a thread's work, which takes long: a draw takes a warp, and steps only
// where the warp can't be sure.
KERNEL __launch_bounds__(SUM_THREADS) finish_rows(const __grid_constant__ LogitsArgs a) {
    __shared__ double sums[MAX_CHUNKS];
    __shared__ float weights[CHUNK];
    __shared__ u32 shared_chunk;
    wait_for_previous_kernel();
    u32 row = blockIdx.x, thread = threadIdx.x;
    RowTask task = a.tasks[row];
    RowResult result = {0.0, 0, 0.0f};
    const double *from = a.sums + (u64)row * 2 * a.num_chunks;
    if (task.tasks & SUM) {
        for (u32 i = thread; i < a.num_chunks; i += SUM_THREADS) sums[i] = from[i];
        __syncthreads();
        if (thread == 0)
            for (u32 i = 0; i < a.num_chunks; i++) result.sum = __dadd_rn(result.sum, sums[i]);
        __syncthreads();
    }
    if (task.tasks & DRAW) {
        for (u32 i = thread; i < a.num_chunks; i += SUM_THREADS) sums[i] = from[a.num_chunks + i];
        __syncthreads();
        Place chunk = {0, 0.0, false};
        double all = 0.0;
        if (thread < WARP) {
            for (u32 i = thread; i < a.num_chunks; i += WARP) all += sums[i];
            for (u32 lanes = WARP / 2; lanes; lanes /= 2) all += __shfl_xor_sync(ALL_LANES, all, lanes);
            chunk = place_of(sums, a.num_chunks, task.uniform * all, SLACK * all);
            if (thread == 0) {
                double target;
                shared_chunk = chunk.is_sure ? chunk.index : chunk_by_steps(sums, a.num_chunks, task.uniform, target);
            }
        }
        __syncthreads();
        u32 start = shared_chunk * CHUNK, len = min(CHUNK, a.width - start);
        const float *logits = a.logits + (u64)row * a.stride + start;
        float max = logit_of(a.best[(u64)row * a.num_best]);
        for (u32 i = thread; i < len; i += SUM_THREADS) weights[i] = weight_of(logits[i], max, task.temperature);
        __syncthreads();
        if (thread < WARP) {
            Place token = {0, 0.0, false};
            if (chunk.is_sure) token = place_of(weights, len, chunk.left, SLACK * all);
            if (thread == 0) {
                u32 chosen = token.index;
                if (!token.is_sure) {
                    double target;
                    chunk_by_steps(sums, a.num_chunks, task.uniform, target);
                    chosen = token_by_steps(weights, len, target);
                }
                result.token = start + chosen, result.logit = logits[chosen];
            }
        }
    }
    if (thread == 0) a.results[row] = result;
}
