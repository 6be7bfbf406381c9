//! Chooses an executor and sizes it.

use shimmy_kernels::cpu::kv::KV_GROUP;

use crate::error::{Error, Result};
use crate::exec::candle::CandleExecutor;
use crate::exec::cpu::CpuExecutor;
use crate::exec::options::{Backend, ExecOptions, KvSize, WindowKv};
use crate::exec::{Executor, KvTypes, Limits, memory};
use crate::kv::{BLOCK_TOKENS, KvWindow};
use crate::plan::{KvSpec, Plan};

/// Builds the executor that the options ask for. `Auto` takes the cpu executor, and falls back to candle with a warning
/// that names what the cpu executor lacks.
///
/// # Errors
/// [`Error::Unsupported`] when a forced backend can't run the plan, [`Error::OutOfMemory`] when the KV cache doesn't fit.
pub fn build(plan: &Plan, options: &ExecOptions) -> Result<Box<dyn Executor>> {
    match options.backend {
        Backend::Cpu => Ok(Box::new(CpuExecutor::new(plan, options)?)),
        Backend::Candle => Ok(Box::new(CandleExecutor::new(plan, options)?)),
        #[cfg(feature = "cuda")]
        Backend::Cuda => crate::exec::cuda::build(plan, options),
        #[cfg(not(feature = "cuda"))]
        Backend::Cuda => Err(Error::Unsupported("cuda: this binary was built without it".into())),
        Backend::Auto => match CpuExecutor::new(plan, options) {
            Ok(executor) => Ok(Box::new(executor)),
            Err(Error::Unsupported(what)) => {
                tracing::warn!("{what}; falling back to the slower candle executor (--backend cpu refuses instead)");
                Ok(Box::new(CandleExecutor::new(plan, options)?))
            }
            Err(error) => Err(error),
        },
    }
}

/// Bytes that the KV cache takes once all of it has been used.
pub fn kv_bytes(plan: &Plan, limits: &Limits, stored: KvTypes) -> usize {
    let blocks = |spec: &KvSpec| limits.num_blocks(limits.pool_of(spec));
    plan.kv.iter().map(|spec| blocks(spec).saturating_mul(block_bytes(spec, stored))).sum()
}

/// Bytes of the KV cache that one sequence of `context` tokens takes.
pub fn kv_bytes_of_context(plan: &Plan, options: &ExecOptions, stored: KvTypes, context: usize) -> usize {
    let pools = Pools::new(plan, options, stored, context);
    let num_blocks = context.div_ceil(BLOCK_TOKENS);
    let num_window_blocks = pools.window.map_or(0, |window| window.blocks_each.min(num_blocks));
    pools.full_bytes.saturating_mul(num_blocks) + pools.window_bytes.saturating_mul(num_window_blocks)
}

/// Bytes of a block of one layer.
fn block_bytes(spec: &KvSpec, stored: KvTypes) -> usize {
    spec.num_kv_heads * stored.token_bytes(spec.k_dim, spec.v_dim) * BLOCK_TOKENS
}

/// What the layers with a window keep.
#[derive(Debug, Clone, Copy)]
struct Windowed {
    /// The largest window.
    num_tokens: usize,
    /// Most blocks of one sequence.
    blocks_each: usize,
}

/// What blocks take in each pool.
#[derive(Debug, Clone, Copy)]
struct Pools {
    /// Of a block over the layers that keep all tokens.
    full_bytes: usize,
    /// Of a block over those in the window's pool.
    window_bytes: usize,
    /// `None`: all layers keep all tokens.
    window: Option<Windowed>,
    /// Blocks of the longest sequence.
    context_blocks: usize,
    /// Of the window's pool beyond what the contexts need.
    spare_blocks: usize,
}

impl Pools {
    fn new(plan: &Plan, options: &ExecOptions, stored: KvTypes, context: usize) -> Self {
        let context_blocks = context.div_ceil(BLOCK_TOKENS);
        let largest = plan.kv.iter().filter_map(|spec| spec.window).max();
        let window = largest.filter(|_| options.window_kv == WindowKv::Last).map(|num_tokens| Windowed {
            num_tokens,
            blocks_each: KvWindow::blocks_each(num_tokens, options.max_step_tokens),
        });
        // Where the window covers the context, nothing ever falls out of it.
        let window = window.filter(|window| window.blocks_each < context_blocks);
        Self { full_bytes: 0, window_bytes: 0, window, context_blocks, spare_blocks: 0 }.of(plan.kv.iter(), stored)
    }

    /// The same blocks of these layers alone.
    fn of<'a>(self, layers: impl Iterator<Item = &'a KvSpec>, stored: KvTypes) -> Self {
        let (mut full_bytes, mut window_bytes) = (0, 0);
        for spec in layers {
            let is_windowed = self.window.is_some() && spec.window.is_some();
            *(if is_windowed { &mut window_bytes } else { &mut full_bytes }) += block_bytes(spec, stored);
        }
        // Blocks of a pool without layers still cost something to count.
        Self { full_bytes: full_bytes.max(BLOCK_TOKENS), window_bytes, ..self }
    }

    /// The same blocks in a room, for its layers.
    fn in_room(self, plan: &Plan, stored: KvTypes, room: &Room) -> Self {
        let dim = |dim: usize| dim.next_multiple_of(room.head_multiple);
        let padded: Vec<KvSpec> = room
            .caches
            .iter()
            .map(|&cache| &plan.kv[cache])
            .map(|spec| KvSpec { k_dim: dim(spec.k_dim), v_dim: dim(spec.v_dim), ..spec.clone() })
            .collect();
        let pools = self.of(padded.iter(), stored);
        Self { full_bytes: pools.full_bytes + room.table_bytes, ..pools }
    }

    /// Lets the window's pool have some blocks more, if they are cheap beside a budget of so many bytes.
    fn with_spare(self, budget: usize) -> Self {
        let affordable = (budget / SPARE_SHARE).min(MAX_SPARE_BYTES) / self.window_bytes.max(1);
        Self { spare_blocks: affordable, ..self }
    }

    /// Blocks of the window's pool beside so many of the other one: as many contexts fit into both. A part of them more
    /// is for sequences that are shorter than a window, which take as many blocks here as there, and for prefixes.
    fn window_blocks(&self, num_blocks: usize) -> usize {
        let Some(window) = self.window else { return 0 };
        let contexts = self.context_blocks.min(num_blocks).max(1);
        let of_contexts = num_blocks.saturating_mul(window.blocks_each).div_ceil(contexts);
        of_contexts.saturating_add(self.spare_blocks.max(num_blocks / SPARE_PART)).min(num_blocks)
    }

    fn bytes(&self, num_blocks: usize) -> usize {
        let full = self.full_bytes.saturating_mul(num_blocks);
        full.saturating_add(self.window_bytes.saturating_mul(self.window_blocks(num_blocks)))
    }

    /// The most blocks that fit into so many bytes, with those of the window's pool beside them.
    fn blocks_in(&self, bytes: usize) -> usize {
        let (mut fits, mut too_many) = (0, u32::MAX as usize);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            if self.bytes(middle) <= bytes { fits = middle } else { too_many = middle }
        }
        fits
    }
}

/// Memory for the caches of some layers.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Whose it is, for messages: ` of GPU 0`; empty for that of the process.
    pub(super) owner: String,
    /// Which of [`Plan::kv`] lie there.
    pub(super) caches: Vec<usize>,
    /// Bytes; `None`: nobody knows.
    pub(super) available: Option<usize>,
    /// Heads there have a multiple of so many elements.
    pub(super) head_multiple: usize,
    /// What a block costs beside its keys and values.
    pub(super) table_bytes: usize,
}

impl Room {
    /// This process' memory.
    pub(super) fn of_process(caches: Vec<usize>) -> Self {
        Self { available: memory::available(), ..Self::unknown(caches) }
    }

    /// One that takes whatever it is asked to.
    pub(super) fn unknown(caches: Vec<usize>) -> Self {
        Self { owner: String::new(), caches, available: None, head_multiple: 1, table_bytes: 0 }
    }
}

/// Bytes for people, in MiB unless that would be a small number.
pub(super) fn in_mib(bytes: usize) -> String {
    if bytes >= 16 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

/// The window's pool has one block for so many of the other one, beyond what the contexts need.
const SPARE_PART: usize = 8;
/// Or as many as fit into this, which is room for hundreds of short sequences of a small model,
const MAX_SPARE_BYTES: usize = 256 << 20;
/// and into one part of so many of the budget.
const SPARE_SHARE: usize = 4;

/// Without a size, the pool has room for so many full contexts, if they fit into [`SHARE`] of the memory.
const AUTO_CONTEXTS: usize = 8;
/// Of the memory that is available, what a pool of several contexts may take by default: one part of so many. Pages cost
/// nothing until they are written to, but the prefix cache writes to all of them in time.
const SHARE: usize = 4;
/// The same for a pool of one context: a model that can't use its context is worse than a large cache.
const SHARE_OF_ONE: usize = 2;

/// The limits that the options and this machine's memory set, on an executor that stores keys and values as `stored`.
///
/// # Errors
/// [`Error::OutOfMemory`] when an explicit size or `max_context` can't be met; [`Error::InvalidRequest`] for zeros, and for
/// a type of the KV cache that doesn't take the model's heads.
pub fn limits(plan: &Plan, options: &ExecOptions, stored: KvTypes) -> Result<Limits> {
    let limits = limits_in(plan, options, stored, &[Room::of_process((0..plan.kv.len()).collect())])?;
    warn_of_context(plan, options, &limits);
    Ok(limits)
}

/// Says that the context is shorter than it was meant to be.
pub(super) fn warn_of_context(plan: &Plan, options: &ExecOptions, limits: &Limits) {
    let (wanted, got) = (options.max_context.unwrap_or(plan.max_context), limits.max_context);
    if got < wanted {
        tracing::warn!("context limited to {got} of {wanted} tokens by the size of the KV cache");
    }
}

/// [`limits`] with the caches in these rooms.
pub(super) fn limits_in(plan: &Plan, options: &ExecOptions, stored: KvTypes, rooms: &[Room]) -> Result<Limits> {
    let zero = |param| Err(Error::InvalidRequest { param, message: "must be at least 1".into() });
    if options.max_step_tokens == 0 {
        return zero("batch-tokens");
    }
    if options.max_context == Some(0) {
        return zero("ctx");
    }
    let kv = options.kv_types;
    let dims = plan.kv.iter().flat_map(|spec| [(kv.k, spec.k_dim), (kv.v, spec.v_dim)]);
    if let Some((kv, dim)) = dims.into_iter().find(|(kv, dim)| !kv.fits(*dim)) {
        return Err(Error::InvalidRequest {
            param: "kv",
            message: format!(
                "{} stores heads in groups of {KV_GROUP} elements, and this model's have {dim}; f16 and f32 take any",
                kv.name()
            ),
        });
    }
    let wanted_context = options.max_context.unwrap_or(plan.max_context);
    let budget = match options.kv_size {
        KvSize::Bytes(bytes) => Some(bytes),
        KvSize::Auto => {
            rooms.iter().filter_map(|room| room.available).reduce(usize::saturating_add).map(|bytes| bytes / SHARE)
        }
        KvSize::Tokens(_) => None,
    };
    let pools = Pools::new(plan, options, stored, wanted_context).with_spare(budget.unwrap_or(usize::MAX));
    let context_blocks = pools.context_blocks;
    let of_room = |room: &Room| Some((pools.in_room(plan, stored, room), room.available?));
    let in_room = |room: &Room, share: usize| of_room(room).map(|(pools, bytes)| pools.blocks_in(bytes / share));
    let blocks_in = |share: usize| rooms.iter().filter_map(|room| in_room(room, share)).min();
    let num_blocks = match options.kv_size {
        KvSize::Tokens(0) => return zero("kv-tokens"),
        KvSize::Tokens(tokens) => tokens.div_ceil(BLOCK_TOKENS),
        KvSize::Bytes(bytes) if bytes < pools.bytes(1) => {
            let least = pools.bytes(1);
            let message = format!("{bytes} bytes hold no block of {BLOCK_TOKENS} tokens, which takes {least}");
            return Err(Error::InvalidRequest { param: "kv-memory", message });
        }
        KvSize::Bytes(bytes) => pools.blocks_in(bytes),
        KvSize::Auto => {
            let several = context_blocks.saturating_mul(AUTO_CONTEXTS).min(blocks_in(SHARE).unwrap_or(0));
            let one = match options.max_context {
                Some(_) => context_blocks,
                None => context_blocks.min(blocks_in(SHARE_OF_ONE).unwrap_or(usize::MAX)),
            };
            one.max(several)
        }
    };
    if num_blocks == 0 || num_blocks > blocks_in(1).unwrap_or(u32::MAX as usize) {
        // Of the room that holds the fewest blocks.
        let tightest = rooms.iter().min_by_key(|room| in_room(room, 1).unwrap_or(usize::MAX));
        let (pools, available) = tightest.and_then(of_room).unwrap_or((pools, usize::MAX));
        let owner = tightest.map_or("", |room| &room.owner);
        return Err(Error::OutOfMemory(format!(
            "a KV cache of {} tokens takes {}{owner} and {} are available; ask for a smaller --ctx or --kv-memory",
            num_blocks.max(1).saturating_mul(BLOCK_TOKENS),
            in_mib(pools.bytes(num_blocks.max(1))),
            in_mib(available)
        )));
    }
    let tokens = num_blocks * BLOCK_TOKENS;
    let max_context = wanted_context.min(tokens);
    let max_step_tokens = options.max_step_tokens.min(tokens);
    let window = pools
        .window
        .map(|Windowed { num_tokens, .. }| KvWindow { num_tokens, num_blocks: pools.window_blocks(num_blocks) });
    Ok(Limits { max_step_tokens, max_step_outputs: max_step_tokens, num_kv_blocks: num_blocks, window, max_context })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BufferId, OutputKind};

    /// 32 · (16 + 16) · 2 bytes a block in f16: 2 KiB, so that 1000 tokens take 32 blocks, 64 KiB.
    fn plan() -> Plan {
        Plan {
            architecture: "test".into(),
            buffers: vec![],
            weights: vec![],
            ropes: vec![],
            kv: vec![KvSpec { num_kv_heads: 1, k_dim: 16, v_dim: 16, window: None }],
            ops: vec![],
            output: BufferId(0),
            output_kind: OutputKind::Logits,
            hidden: None,
            vocab_size: 1,
            max_context: 1000,
        }
    }

    /// Blocks and context.
    fn sized(kv_size: KvSize, max_context: Option<usize>, available: Option<usize>) -> Result<(usize, usize)> {
        let options = ExecOptions { kv_size, max_context, ..ExecOptions::default() };
        let room = Room { available, ..Room::unknown(vec![0]) };
        limits_in(&plan(), &options, options.kv_types, &[room]).map(|limits| (limits.num_kv_blocks, limits.max_context))
    }

    #[test]
    fn by_default_the_pool_holds_several_contexts_as_far_as_memory_allows() {
        let kib = |kib: usize| Some(kib << 10);
        let auto = |available| sized(KvSize::Auto, None, available).unwrap();
        assert_eq!(auto(kib(1 << 20)), (8 * 32, 1000));
        assert_eq!(auto(kib(4 * 100)), (50, 1000), "a quarter of the memory");
        assert_eq!(auto(kib(128)), (32, 1000), "one context may take half of it");
        assert_eq!(auto(kib(40)), (10, 320), "and gets shorter if it must");
        assert_eq!(auto(None), (32, 1000), "who doesn't know the memory takes one context");
        assert!(matches!(sized(KvSize::Auto, None, kib(3)), Err(Error::OutOfMemory(_))));
    }

    #[test]
    fn a_size_that_was_asked_for_is_kept_or_refused() {
        let kib = |kib: usize| Some(kib << 10);
        assert_eq!(sized(KvSize::Bytes(20 << 10), None, kib(20)).unwrap(), (10, 320));
        assert_eq!(sized(KvSize::Tokens(33), None, kib(4)).unwrap(), (2, 64));
        assert_eq!(sized(KvSize::Auto, Some(64), kib(16)).unwrap(), (2, 64));
        for size in [KvSize::Bytes(22 << 10), KvSize::Tokens(usize::MAX)] {
            let error = sized(size, None, kib(20)).unwrap_err().to_string();
            assert!(error.contains("--kv-memory"), "{error}");
        }
        assert!(matches!(sized(KvSize::Auto, Some(10_000), kib(64)), Err(Error::OutOfMemory(_))));
        for (size, name) in [(KvSize::Bytes(2047), "kv-memory"), (KvSize::Tokens(0), "kv-tokens")] {
            let error = sized(size, None, None).unwrap_err();
            assert!(matches!(error, Error::InvalidRequest { param, .. } if param == name), "{error}");
        }
    }

    #[test]
    fn each_room_must_hold_its_own_layers() {
        let spec = plan().kv[0].clone();
        // Four layers of 2 KiB a block: one in the first room and three in the other.
        let plan = Plan { kv: vec![spec; 4], ..plan() };
        let sized = |kib: [usize; 2], kv_size| {
            let [first, second] = [vec![0], vec![1, 2, 3]].map(Room::unknown);
            let first = Room { available: Some(kib[0] << 10), ..first };
            let owner = " of GPU 7".to_owned();
            let second = Room { available: Some(kib[1] << 10), owner, table_bytes: 1 << 10, ..second };
            let options = ExecOptions { kv_size, ..ExecOptions::default() };
            limits_in(&plan, &options, options.kv_types, &[first, second]).map(|limits| limits.num_kv_blocks)
        };
        assert_eq!(sized([1 << 20, 1 << 20], KvSize::Auto).unwrap(), 8 * 32);
        assert_eq!(sized([80, 1 << 20], KvSize::Auto).unwrap(), 20, "half of the first for one context");
        assert_eq!(sized([1 << 20, 280], KvSize::Auto).unwrap(), 20, "7 KiB a block in the second");
        assert_eq!(sized([40, 140], KvSize::Tokens(640)).unwrap(), 20);
        assert!(sized([39, 140], KvSize::Tokens(640)).unwrap_err().to_string().contains("takes 40 KiB and 39 KiB"));
        let error = sized([40, 139], KvSize::Tokens(640)).unwrap_err().to_string();
        assert!(error.contains("takes 140 KiB of GPU 7 and 139 KiB"), "{error}");
    }

    /// Five layers of six with a window, as Gemma 3 has them: 12 KiB a block over all, 10 KiB of it for the window's pool.
    fn windowed(window: usize) -> Plan {
        let spec = plan().kv[0].clone();
        let kv = (0..6).map(|layer| KvSpec { window: (layer < 5).then_some(window), ..spec.clone() }).collect();
        Plan { kv, max_context: 32 * 1000, ..plan() }
    }

    /// Blocks of both pools, context, and all bytes.
    fn pools(plan: &Plan, options: &ExecOptions, available: usize) -> (usize, usize, usize, usize) {
        let room = Room { available: Some(available), ..Room::unknown((0..plan.kv.len()).collect()) };
        let limits = limits_in(plan, options, options.kv_types, &[room]).unwrap();
        let window = limits.window.map_or(0, |window| window.num_blocks);
        (limits.num_kv_blocks, window, limits.max_context, kv_bytes(plan, &limits, options.kv_types))
    }

    #[test]
    fn a_windows_pool_holds_as_many_contexts_as_the_other_one() {
        let plan = windowed(512);
        let (kib, contexts) = (1 << 10, 8);
        let options = |kv_size| ExecOptions { kv_size, ..ExecOptions::default() };
        // 511 + 512 tokens, which may begin inside a block.
        let blocks_each = 33;
        let (full, window, context, bytes) = pools(&plan, &options(KvSize::Auto), 1 << 40);
        assert_eq!((full, context), (contexts * 1000, 32_000));
        assert_eq!(window, full, "everything may stay where it costs next to nothing");
        assert_eq!(bytes, full * 2 * kib + window * 10 * kib);
        // Memory for one context of six full layers.
        let size = 1000 * 12 * kib;
        let (full, window, context, bytes) = pools(&plan, &options(KvSize::Bytes(size)), 1 << 40);
        assert_eq!(context, 32_000);
        assert!(full > 2500 && window >= blocks_each * full / 1000 + full / 8, "{full} and {window} blocks");
        assert!(bytes <= size && bytes + 23 * kib > size, "{bytes} of {size} bytes");
        // As many tokens as were asked for, and all of a context that fits the window.
        let (full, window, ..) = pools(&plan, &options(KvSize::Tokens(32_000)), 1 << 40);
        assert_eq!((full, window), (1000, 1000));
        let short = ExecOptions { max_context: Some(33 * 32), ..options(KvSize::Auto) };
        assert_eq!(pools(&plan, &short, 1 << 40), (contexts * 33, 0, 33 * 32, contexts * 33 * 12 * kib));
        let kept = ExecOptions { window_kv: WindowKv::All, ..options(KvSize::Bytes(size)) };
        assert_eq!(pools(&plan, &kept, 1 << 40), (1000, 0, 32_000, size));
    }

    #[test]
    fn one_sequence_always_finds_its_window() {
        for window in [1, 31, 512, 4096] {
            let mut plan = windowed(window);
            for all_windowed in [false, true] {
                plan.kv.iter_mut().filter(|_| all_windowed).for_each(|spec| spec.window = Some(window));
                for size in [13 << 10, 64 << 10, 400 << 10, 5 << 20, 100 << 20] {
                    let options = ExecOptions { kv_size: KvSize::Bytes(size), ..ExecOptions::default() };
                    let (full, held, context, bytes) = pools(&plan, &options, 1 << 40);
                    let blocks_each = KvWindow::blocks_each(window, options.max_step_tokens);
                    assert!(held >= full.min(blocks_each) && context <= full * BLOCK_TOKENS, "{window} in {size}");
                    assert!(bytes <= size, "{window} in {size}: {bytes}");
                }
            }
        }
    }

    #[test]
    fn a_context_takes_its_window_once() {
        let (plan, options) = (windowed(512), ExecOptions::default());
        let bytes = |context| kv_bytes_of_context(&plan, &options, options.kv_types, context);
        assert_eq!(bytes(32_000), 1000 * (2 << 10) + 33 * (10 << 10));
        assert_eq!(bytes(320), 10 * (12 << 10));
    }
}
