//! Builds a [`Program`]: shapes are checked, barriers placed, memory allocated.

use super::attend::{CUT_ROWS, MAX_PARTS};
use super::*;
use crate::cpu::attention::TileScratch;
use crate::cpu::team::{MAX_PIECE_CALLS, MAX_PIECES};
use crate::cpu::{ACT_GROUP, PACK_ROWS, PackedActs, RoundedActs, SUM_GROUP};
use crate::program::builder::CacheShape;
use crate::program::input::InputCheck;
use crate::program::instr::Access;

impl Program {
    /// Checks everything and allocates the memory. `output` is what a step returns; `None` for a stage of a program that isn't its last.
    ///
    /// # Errors
    /// [`ProgramError::Instr`] with what doesn't fit; [`ProgramError::Step`] when the workers can't be started.
    pub fn new(
        kernels: CpuKernels,
        num_workers: usize,
        builder: ProgramBuilder,
        output: impl Into<Option<Span>>,
        size: ProgramSize,
    ) -> Result<Self, ProgramError> {
        let output = output.into();
        builder.check_all(output.as_ref(), &size)?;
        check_size(&builder, &size).map_err(ProgramError::Step)?;

        let mut arena_len = 0;
        let buffers: Vec<BufferSlot> = builder
            .buffers
            .iter()
            .map(|&(width, rows)| {
                let offset = arena_len;
                // Rows of other buffers never share a cache line with this one's.
                arena_len = (offset + width * size.max_rows(rows)).next_multiple_of(16);
                BufferSlot { offset, width, rows }
            })
            .collect();
        let act_rows = size.max_tokens.max(size.max_outputs);
        let (mut q_len, mut d_len, mut sums_len) = (0, 0, 0);
        let (mut packed_q_len, mut packed_d_len, mut packed_sums_len) = (0, 0, 0);
        let mut pairs_len = 0;
        let acts = builder
            .acts
            .iter()
            .map(|&k| {
                let (packed_q, packed_d, packed_sums) = (packed_q_len, packed_d_len, packed_sums_len);
                let (d, sums, pairs) = (d_len, sums_len, pairs_len);
                let slot = ActSlot { k, q: q_len, d, sums, packed_q, packed_d, packed_sums, pairs };
                // Many rows go into one kind of them.
                let (quantized, rounded) = if kernels.rounds_many() { (0, act_rows) } else { (act_rows, 0) };
                let [q, d, sums] = PackedActs::lengths(quantized, k);
                pairs_len += RoundedActs::len(rounded, k);
                packed_q_len = (packed_q_len + q).next_multiple_of(64);
                packed_d_len = (packed_d_len + d).next_multiple_of(16);
                packed_sums_len = (packed_sums_len + sums).next_multiple_of(32);
                q_len = (q_len + k * act_rows).next_multiple_of(64);
                d_len = (d_len + k / ACT_GROUP * act_rows).next_multiple_of(16);
                sums_len = (sums_len + k / SUM_GROUP * act_rows).next_multiple_of(32);
                slot
            })
            .collect();
        let mut kv_bytes = 0;
        let caches = builder
            .caches
            .iter()
            .map(|&CacheShape { pool, num_kv_heads, k_dim, v_dim }| {
                let num_blocks = size.num_blocks_in(pool);
                let k = kv_bytes;
                let v = k + num_blocks * num_kv_heads * size.kv.k.block_bytes(k_dim);
                kv_bytes = v + num_blocks * num_kv_heads * size.kv.v.block_bytes(v_dim);
                CacheSlot { pool, num_kv_heads, k_dim, v_dim, k, v }
            })
            .collect();
        // Of the attention with the most: rows whose contexts are cut, heads, parts.
        let cut_rows = size.max_tokens.min(CUT_ROWS);
        let parts_len = |instr: &Instr| match instr {
            Instr::Attend { cache, num_heads, .. } => {
                cut_rows * num_heads * MAX_PARTS * (builder.caches[cache.0].v_dim + 2)
            }
            _ => 0,
        };
        let parts_len = builder.instrs.iter().map(parts_len).max().unwrap_or(0);
        let max_kv_heads = builder.caches.iter().map(|cache| cache.num_kv_heads).max().unwrap_or(0);
        let max_dim = builder.caches.iter().map(|cache| cache.k_dim.max(cache.v_dim)).max().unwrap_or(0);
        let max_cols = builder.weights.iter().map(|w| w.cols).max().unwrap_or(0);
        let max_width = builder.buffers.iter().map(|&(width, _)| width).max().unwrap_or(0);

        let pairs = if kernels.has_lanes() { quantized_pairs(&builder, output) } else { Vec::new() };
        let team = Team::new(num_workers)
            .map_err(|error| ProgramError::Step(format!("worker threads can't be started: {error}")))?;
        let scratch = (0..team.num_workers())
            .map(|_| {
                Own::new(WorkerScratch {
                    matmul: Scratch::for_shapes(max_cols),
                    attention: TileScratch::new(max_dim),
                    seq_pieces: Vec::with_capacity(size.max_tokens),
                    row: vec![0.0; max_width],
                    lanes: Lines::zeros(if pairs.is_empty() { 0 } else { glu::LANES_LEN }),
                })
            })
            .collect();
        let packs = |instr: &Instr| packed_input(&kernels, &builder, instr);
        let packed_width = builder.instrs.iter().filter_map(packs).map(|x| x.width).max().unwrap_or(0);
        let memory = Memory {
            arena: Region::zeroed(arena_len),
            act_q: Region::zeroed(q_len),
            act_d: Region::zeroed(d_len),
            act_sums: Region::zeroed(sums_len),
            packed_q: Region::zeroed(packed_q_len),
            packed_d: Region::zeroed(packed_d_len),
            packed_sums: Region::zeroed(packed_sums_len),
            pairs: Region::zeroed(pairs_len),
            packed_floats: Region::zeroed(act_rows.next_multiple_of(PACK_ROWS) * packed_width),
            kv: Region::zeroed(kv_bytes),
            parts: Region::zeroed(parts_len),
            arrivals: (0..cut_rows * max_kv_heads).map(|_| AtomicU32::new(0)).collect(),
            scratch,
            check: InputCheck::new(&builder, &size),
        };
        let instrs = place_barriers(&builder, packs, kernels.rounds_many(), &pairs);
        let code = Code {
            vectors: kernels.vectors(),
            kernels,
            buffers,
            acts,
            caches,
            weights: builder.weights,
            vectors_data: builder.vectors,
            instrs,
            output,
            hidden: builder.hidden,
            size,
            rope_halves: builder.rope_halves,
        };
        Ok(Program { code, memory, team })
    }
}

/// What the team's counters allow.
fn check_size(builder: &ProgramBuilder, size: &ProgramSize) -> Result<(), String> {
    // Attention: at most a piece for each row and KV head, and the parts of a few. A matmul has far fewer.
    let max_kv_heads = builder.caches.iter().map(|cache| cache.num_kv_heads).max().unwrap_or(0);
    if (size.max_tokens + CUT_ROWS * MAX_PARTS) * max_kv_heads >= MAX_PIECES || builder.instrs.len() >= MAX_PIECE_CALLS
    {
        return Err(format!("{} tokens a step, {max_kv_heads} KV heads: too many", size.max_tokens));
    }
    Ok(())
}

/// The input of a matmul that takes many f32 rows packed.
fn packed_input(kernels: &CpuKernels, builder: &ProgramBuilder, instr: &Instr) -> Option<Span> {
    let Instr::MatMul { x: MatMulX::Float(x), parts, .. } = instr else { return None };
    let takes_packed = |part: &MatMulPart| !kernels.rounds(builder.weights[part.weight.0].dtype, x.width);
    parts.iter().any(takes_packed).then_some(*x)
}

/// Gated matmuls whose result only the quantisation behind them reads, by the index of the matmul.
fn quantized_pairs(builder: &ProgramBuilder, output: Option<Span>) -> Vec<usize> {
    let instrs = &builder.instrs;
    let is_pair = |at: usize| {
        let (
            Some(Instr::MatMul { x: MatMulX::Act(x), parts, then: MatMulThen::Glu(_), .. }),
            Some(Instr::Quantize { x: quantized, act }),
        ) = (instrs.get(at), instrs.get(at + 1))
        else {
            return false;
        };
        let [gate, up] = &parts[..] else { return false };
        gate.out == *quantized && x != act && gate.bias.is_none() && up.bias.is_none()
    };
    let mut pairs: Vec<usize> = (0..instrs.len()).filter(|&at| is_pair(at)).collect();
    // Buffers that are read after a step, or touched by anything but such a pair, in whatever columns.
    let read_after = [output, builder.hidden].into_iter().flatten().map(|span| span.buf);
    let mut others: Vec<BufId> = read_after.chain(builder.crossing.iter().copied()).collect();
    for (at, instr) in instrs.iter().enumerate() {
        let is_own = pairs.contains(&at) || at.checked_sub(1).is_some_and(|before| pairs.contains(&before));
        if !is_own {
            others.extend(instr.reads().iter().chain(&instr.writes()).map(|span| span.buf));
        }
    }
    pairs.retain(|&at| instrs[at].writes().iter().all(|out| !others.contains(&out.buf)));
    pairs
}

/// The steps, with what is to be packed before its instruction. The team meets before each that touches what another worker may
/// still be at since the last barrier.
fn place_barriers(
    builder: &ProgramBuilder,
    packs: impl Fn(&Instr) -> Option<Span>,
    rounds: bool,
    pairs: &[usize],
) -> Vec<Step> {
    let mut since: Vec<Access> = Vec::new();
    let mut steps = Vec::new();
    let mut place = |work: Work, accesses: Vec<Access>| {
        let barrier = since.iter().any(|earlier| accesses.iter().any(|later| earlier.conflicts(later)));
        if barrier {
            since.clear();
        }
        since.extend(accesses);
        steps.push(Step { barrier, work });
    };
    for (at, instr) in builder.instrs.iter().enumerate() {
        let rows_of = |buf: BufId| builder.buffers[buf.0].1;
        let mut accesses = instr.accesses(rows_of);
        if let Some(x) = packs(instr) {
            place(Work::PackFloats(x), Access::of_packing(&x, rows_of(x.buf)));
            accesses.push(Access::of_packed());
        }
        if let (Instr::Quantize { x, .. }, true) = (instr, rounds) {
            accesses.push(Access::of_rows(x, rows_of(x.buf)));
        }
        let is_second = at.checked_sub(1).is_some_and(|before| pairs.contains(&before));
        let work = match (instr, builder.instrs.get(at + 1)) {
            (_, Some(Instr::Quantize { act, .. })) if pairs.contains(&at) => {
                accesses.push(Access::of_quantizing(*act));
                Work::GluQuantize(instr.clone(), *act)
            }
            (Instr::Quantize { x, act }, _) if is_second => Work::QuantizeFew(*x, *act),
            _ => Work::Instr(instr.clone()),
        };
        place(work, accesses);
    }
    steps
}
