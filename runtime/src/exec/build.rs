//! Chooses an executor and sizes it.

use shimmy_kernels::cpu::kv::KV_GROUP;

use crate::error::{Error, Result};
use crate::exec::candle::CandleExecutor;
use crate::exec::cpu::CpuExecutor;
use crate::exec::options::{Backend, ExecOptions};
use crate::exec::{Executor, KvType, Limits};
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
pub fn kv_bytes_per_token(plan: &Plan, kv: KvType) -> usize {
    plan.kv.iter().map(|spec| spec.num_kv_heads * (kv.token_bytes(spec.k_dim) + kv.token_bytes(spec.v_dim))).sum()
}

/// The limits that the options and this machine's memory set.
///
/// Without `kv_tokens` the pool holds one full context, or as much of it as fits into half of the memory that is
/// available now.
///
/// # Errors
/// [`Error::OutOfMemory`] when an explicit `kv_tokens` or `max_context` can't be met; [`Error::InvalidRequest`] for zeros,
/// and for a type of the KV cache that doesn't take the model's heads.
pub fn limits(plan: &Plan, options: &ExecOptions) -> Result<Limits> {
    let zero = |param| Err(Error::InvalidRequest { param, message: "must be at least 1".into() });
    if options.max_step_tokens == 0 {
        return zero("batch-tokens");
    }
    if options.max_context == Some(0) || options.kv_tokens == Some(0) {
        return zero("ctx");
    }
    let kv = options.kv_type;
    if let Some(dim) = plan.kv.iter().flat_map(|spec| [spec.k_dim, spec.v_dim]).find(|&dim| !kv.fits(dim)) {
        return Err(Error::InvalidRequest {
            param: "kv",
            message: format!(
                "{} stores heads in groups of {KV_GROUP} elements, and this model's have {dim}; f16 and f32 take any",
                kv.name()
            ),
        });
    }
    let per_token = kv_bytes_per_token(plan, kv).max(1);
    let affordable = available_memory().map_or(usize::MAX, |bytes| bytes / 2 / per_token);
    let wanted_context = options.max_context.unwrap_or(plan.max_context);
    let tokens = match options.kv_tokens {
        Some(tokens) => tokens.next_multiple_of(BLOCK_TOKENS),
        None if options.max_context.is_some() => wanted_context.next_multiple_of(BLOCK_TOKENS),
        None => wanted_context.next_multiple_of(BLOCK_TOKENS).min(affordable / BLOCK_TOKENS * BLOCK_TOKENS),
    };
    if tokens == 0 || tokens > affordable.saturating_mul(2) {
        let mib = |tokens: usize| tokens.saturating_mul(per_token) >> 20;
        return Err(Error::OutOfMemory(format!(
            "a KV cache of {} tokens takes {} MiB and {} MiB are available; ask for a smaller --ctx",
            tokens.max(BLOCK_TOKENS),
            mib(tokens.max(BLOCK_TOKENS)),
            mib(affordable) * 2
        )));
    }
    let max_context = wanted_context.min(tokens);
    if max_context < wanted_context {
        tracing::warn!("context limited to {max_context} of {wanted_context} tokens by the memory that is available");
    }
    let max_step_tokens = options.max_step_tokens.min(tokens);
    Ok(Limits { max_step_tokens, max_step_outputs: max_step_tokens, num_kv_blocks: tokens / BLOCK_TOKENS, max_context })
}

/// `MemAvailable` of Linux, in bytes; `None` where the system doesn't tell.
fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}
