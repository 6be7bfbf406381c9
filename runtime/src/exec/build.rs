//! Chooses an executor and sizes it.

use shimmy_kernels::cpu::kv::KV_GROUP;

use crate::error::{Error, Result};
use crate::exec::candle::CandleExecutor;
use crate::exec::cpu::CpuExecutor;
use crate::exec::options::{Backend, ExecOptions, KvSize};
use crate::exec::{Executor, KvTypes, Limits};
use crate::kv::BLOCK_TOKENS;
use crate::plan::Plan;

/// Builds the executor that the options ask for. `Auto` takes the cpu executor, and falls back to candle with a warning
/// that names what the cpu executor lacks.
///
/// # Errors
/// [`Error::Unsupported`] when a forced backend can't run the plan, [`Error::OutOfMemory`] when the KV cache doesn't fit.
pub fn build(plan: &Plan, options: &ExecOptions) -> Result<Box<dyn Executor>> {
    match options.backend {
        Backend::Cpu => Ok(Box::new(CpuExecutor::new(plan, options)?)),
        Backend::Candle => Ok(Box::new(CandleExecutor::new(plan, options)?)),
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

/// Bytes of keys and values that one token takes over all layers.
pub fn kv_bytes_per_token(plan: &Plan, kv: KvTypes) -> usize {
    plan.kv.iter().map(|spec| spec.num_kv_heads * kv.token_bytes(spec.k_dim, spec.v_dim)).sum()
}

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
    limits_in(plan, options, stored, available_memory())
}

/// [`limits`] with so many bytes of memory available; `None`: nobody knows.
fn limits_in(plan: &Plan, options: &ExecOptions, stored: KvTypes, available: Option<usize>) -> Result<Limits> {
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
    let block_bytes = kv_bytes_per_token(plan, stored).max(1) * BLOCK_TOKENS;
    let blocks_in = |share: usize| available.map(|bytes| bytes / share / block_bytes);
    let wanted_context = options.max_context.unwrap_or(plan.max_context);
    let context_blocks = wanted_context.div_ceil(BLOCK_TOKENS);
    let num_blocks = match options.kv_size {
        KvSize::Tokens(0) => return zero("kv-tokens"),
        KvSize::Tokens(tokens) => tokens.div_ceil(BLOCK_TOKENS),
        KvSize::Bytes(bytes) if bytes < block_bytes => {
            let message = format!("{bytes} bytes hold no block of {BLOCK_TOKENS} tokens, which takes {block_bytes}");
            return Err(Error::InvalidRequest { param: "kv-memory", message });
        }
        KvSize::Bytes(bytes) => bytes / block_bytes,
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
        let mib = |blocks: usize| blocks.saturating_mul(block_bytes) >> 20;
        return Err(Error::OutOfMemory(format!(
            "a KV cache of {} tokens takes {} MiB and {} MiB are available; ask for a smaller --ctx or --kv-memory",
            num_blocks.max(1).saturating_mul(BLOCK_TOKENS),
            mib(num_blocks.max(1)),
            available.unwrap_or(usize::MAX) >> 20
        )));
    }
    let tokens = num_blocks * BLOCK_TOKENS;
    let max_context = wanted_context.min(tokens);
    if max_context < wanted_context {
        tracing::warn!("context limited to {max_context} of {wanted_context} tokens by the size of the KV cache");
    }
    let max_step_tokens = options.max_step_tokens.min(tokens);
    Ok(Limits { max_step_tokens, max_step_outputs: max_step_tokens, num_kv_blocks: num_blocks, max_context })
}

/// `MemAvailable` of Linux, in bytes; `None` where the system doesn't tell.
fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BufferId, KvSpec, OutputKind};

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
            vocab_size: 1,
            max_context: 1000,
        }
    }

    /// Blocks and context.
    fn sized(kv_size: KvSize, max_context: Option<usize>, available: Option<usize>) -> Result<(usize, usize)> {
        let options = ExecOptions { kv_size, max_context, ..ExecOptions::default() };
        limits_in(&plan(), &options, options.kv_types, available)
            .map(|limits| (limits.num_kv_blocks, limits.max_context))
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
}
