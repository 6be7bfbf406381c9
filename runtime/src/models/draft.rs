//! A draft model beside a model: whether their vocabularies are one, and how large its KV cache is.

use std::path::PathBuf;

use super::load::Build;
use crate::engine::DraftExecutor;
use crate::error::{Error, Result};
use crate::exec::{ExecOptions, KvSize, Limits, WindowKv, kv_bytes};
use crate::kv::BLOCK_TOKENS;
use crate::loader::ModelFile;
use crate::plan::OutputKind;
use crate::text::Tokenizer;

/// Token lists may differ in length by so many: makers fill them up to round numbers with tokens that never come.
const MOST_PADDING: usize = 1024;

/// Which draft model to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftOptions {
    /// File or folder.
    pub path: PathBuf,
    /// For messages.
    pub name: String,
}

/// A draft model that is loaded beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedDraft {
    /// Its name.
    pub name: String,
    /// Tokens that its KV cache holds.
    pub kv_tokens: usize,
    /// What the KV cache takes once all of it has been used.
    pub kv_bytes: usize,
}

/// Opens and checks the draft model of a model with this tokenizer and these limits. Its KV cache holds as many tokens as the
/// model's own, so that every sequence which runs can be followed.
///
/// # Errors
/// [`Error::InvalidRequest`] on the parameter `draft-model` when the vocabularies differ; what is wrong with the file; what
/// doesn't fit into memory.
pub(super) fn load(
    draft: &DraftOptions,
    exec: &ExecOptions,
    tokenizer: &Tokenizer,
    limits: &Limits,
    build: &Build<'_>,
) -> Result<(DraftExecutor, LoadedDraft)> {
    let file = ModelFile::open(&draft.path)?;
    let own = Tokenizer::for_model(&file)?;
    if let Some(difference) = difference(tokenizer, &own) {
        let message = format!(
            "`{}` has another vocabulary: {difference}; take a smaller model of the same family, or none",
            draft.name
        );
        return Err(Error::InvalidRequest { param: "draft-model", message });
    }
    let (_, plan) = crate::arch::load(&file, OutputKind::Logits)?;
    let exec = ExecOptions {
        max_context: Some(limits.max_context.min(plan.max_context)),
        kv_size: KvSize::Tokens(limits.num_kv_blocks * BLOCK_TOKENS),
        // It goes back behind guesses that were wrong.
        window_kv: WindowKv::All,
        ..exec.clone()
    };
    let executor = build(&plan, &exec).map_err(|error| match error {
        Error::OutOfMemory(what) => Error::OutOfMemory(format!("for the draft model `{}`: {what}", draft.name)),
        error => error,
    })?;
    let kv_tokens = executor.limits().num_kv_blocks * BLOCK_TOKENS;
    let kv_bytes = kv_bytes(&plan, &executor.limits(), executor.kv_types());
    tracing::info!(draft = draft.name, executor = executor.name(), kv_tokens, kv_mib = kv_bytes >> 20, "draft model");
    let loaded = LoadedDraft { name: draft.name.clone(), kv_tokens, kv_bytes };
    Ok((DraftExecutor { executor, vocab_size: own.vocab_size().min(plan.vocab_size) }, loaded))
}

/// Where the vocabularies part. Which tokens end an answer may differ: that is for the model alone to say, and its chat and
/// base versions don't agree on it.
fn difference(model: &Tokenizer, draft: &Tokenizer) -> Option<String> {
    let (ours, theirs) = (model.vocab_size(), draft.vocab_size());
    if ours.abs_diff(theirs) > MOST_PADDING {
        return Some(format!("it has {theirs} tokens instead of {ours}"));
    }
    let id = (0..ours.min(theirs) as u32).find(|&id| model.token_text(id) != draft.token_text(id))?;
    let text = |tokenizer: &Tokenizer| tokenizer.token_text(id).map_or("nothing".into(), |text| format!("{text:?}"));
    Some(format!("its token {id} is {} instead of {}", text(draft), text(model)))
}
