//! The architectures this build knows: one record each, and [`load`], which finds the record for a file.

use std::collections::HashSet;

use crate::arch::decoder;
use crate::arch::gguf::GgufKeys;
use crate::arch::hf::HfKeys;
use crate::arch::names::TensorNames;
use crate::arch::{
    ernie4_5, exaone4, gemma, gemma2, gemma3, granite, hunyuan, llama, mistral, olmo2, qwen2, qwen3, seed_oss, smollm3,
};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::loader::{Metadata, ModelFile};
use crate::plan::{OutputKind, Plan};

/// An architecture: what it is called, what it reads, how its tensors are named. What is in neither list and could change
/// the maths is refused.
pub(crate) struct Architecture {
    /// Ours, in plans and messages.
    pub(crate) name: &'static str,
    /// GGUF files.
    pub(crate) gguf: Option<GgufRecord>,
    /// Hugging Face folders.
    pub(crate) hf: Option<HfRecord>,
}

/// How an architecture is found in GGUF files.
pub(crate) struct GgufRecord {
    /// Values of `general.architecture`.
    pub(crate) names: &'static [&'static str],
    /// Keys (after `<architecture>.`) beyond [`crate::arch::gguf::REQUIRED`] that must be there.
    pub(crate) required: &'static [&'static str],
    /// Keys beyond [`crate::arch::gguf::OPTIONAL`] that are read if they are there.
    pub(crate) optional: &'static [&'static str],
    /// Reads them.
    pub(crate) config: fn(&GgufKeys<'_>) -> Result<ModelConfig>,
    /// Tensor names.
    pub(crate) tensors: &'static TensorNames,
}

/// How an architecture is found in Hugging Face folders.
pub(crate) struct HfRecord {
    /// Values of `model_type`.
    pub(crate) model_types: &'static [&'static str],
    /// Keys that must be there beyond the sizes, which [`HfKeys::decoder`] requires.
    pub(crate) required: &'static [&'static str],
    /// Of the keys that change the maths in some family, those that this one reads.
    pub(crate) optional: &'static [&'static str],
    /// Reads them.
    pub(crate) config: fn(&HfKeys<'_>) -> Result<ModelConfig>,
    /// Tensor names.
    pub(crate) tensors: &'static TensorNames,
}

/// All of them.
const ARCHITECTURES: &[Architecture] = &[
    llama::ARCHITECTURE,
    mistral::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    gemma::ARCHITECTURE,
    gemma2::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    granite::ARCHITECTURE,
    smollm3::ARCHITECTURE,
    olmo2::ARCHITECTURE,
    exaone4::ARCHITECTURE,
    seed_oss::ARCHITECTURE,
    ernie4_5::ARCHITECTURE,
    hunyuan::ARCHITECTURE,
];

/// Names of the supported architectures.
pub fn supported() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|architecture| architecture.name)
}

/// Reads the configuration of a model and builds its plan: up to the logits, or up to the final norm for `Hidden`.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture, a setting or a tensor that this build doesn't know (the message starts with
/// "architecture" if it is the architecture); metadata and tensor errors that name what is missing or wrong.
pub fn load(file: &ModelFile, kind: OutputKind) -> Result<(ModelConfig, Plan)> {
    let (config, names) = match &file.metadata {
        Metadata::Gguf(meta) => {
            let key = "general.architecture";
            let arch = meta.str(key)?.ok_or_else(|| Error::MissingMetadata { key: key.into() })?;
            let record = ARCHITECTURES
                .iter()
                .filter_map(|architecture| architecture.gguf.as_ref())
                .find(|record| record.names.contains(&arch))
                .ok_or_else(|| unknown(arch))?;
            let keys = GgufKeys { file, meta, arch };
            keys.refuse_unread(record.required, record.optional)?;
            ((record.config)(&keys)?, record.tensors)
        }
        Metadata::Hf(meta) => {
            let key = "model_type";
            let arch = meta.config.get(key).and_then(serde_json::Value::as_str);
            let arch = arch.ok_or_else(|| Error::MissingMetadata { key: key.into() })?;
            let record = ARCHITECTURES
                .iter()
                .filter_map(|architecture| architecture.hf.as_ref())
                .find(|record| record.model_types.contains(&arch))
                .ok_or_else(|| unknown(arch))?;
            let keys = HfKeys::new(file, meta)?;
            keys.refuse_unread(record.required, record.optional)?;
            ((record.config)(&keys)?, record.tensors)
        }
    };
    config.validate()?;
    let plan = decoder::build(file, &config, names, kind)?;
    refuse_unread_tensors(file, &plan, names)?;
    Ok((config, plan))
}

fn unknown(arch: &str) -> Error {
    let known = supported().collect::<Vec<_>>().join(", ");
    Error::Unsupported(format!("architecture `{arch}` (this build knows: {known})"))
}

/// A tensor that no op reads means a model that isn't what its metadata says: its results would be wrong.
fn refuse_unread_tensors(file: &ModelFile, plan: &Plan, names: &TensorNames) -> Result<()> {
    let read: HashSet<&str> = plan.weights.iter().map(|weight| weight.name.as_str()).collect();
    for (name, view) in file.tensors() {
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        if read.contains(name) || names.output.contains(&stem) || names.ignores(name) {
            continue;
        }
        return Err(Error::Unsupported(format!(
            "tensor `{name}` {:?}, which `{}` doesn't have: the file holds a variant that this build doesn't know",
            view.shape, plan.architecture
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut seen = HashSet::new();
        for architecture in ARCHITECTURES {
            assert!(seen.insert(architecture.name), "{}", architecture.name);
        }
        for names in [
            ARCHITECTURES.iter().filter_map(|a| a.gguf.as_ref()).flat_map(|r| r.names).collect::<Vec<_>>(),
            ARCHITECTURES.iter().filter_map(|a| a.hf.as_ref()).flat_map(|r| r.model_types).collect(),
        ] {
            let unique: HashSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{names:?}");
        }
    }
}
