//! What a file says of itself, read from its header alone and without an architecture's help, so that `list` and
//! `inspect` can speak about files that nothing here can run.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::loader::{Metadata, ModelFile};

/// Tensors of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TypeCount {
    /// Tensors.
    pub tensors: usize,
    /// Elements in them.
    pub elements: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A model in a few numbers.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// `general.architecture` or `model_type`.
    pub architecture: Option<String>,
    /// What its makers call it.
    pub title: Option<String>,
    /// Positions the model was made for.
    pub context: Option<usize>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Tensors.
    pub tensors: usize,
    /// The type that holds most elements: what people call the file's type.
    pub dtype: Option<String>,
    /// By type.
    pub types: BTreeMap<String, TypeCount>,
    /// Whether the file brings a chat template.
    pub chat_template: bool,
}

impl Summary {
    /// Sums an opened file up.
    ///
    /// # Errors
    /// [`crate::Error::BadMetadata`] when one of the keys has another type than it must.
    pub fn of(file: &ModelFile) -> Result<Self> {
        let mut types: BTreeMap<String, TypeCount> = BTreeMap::new();
        for (_, view) in file.tensors() {
            let count = types.entry(view.dtype.name().to_owned()).or_default();
            count.tensors += 1;
            count.elements += view.num_elements() as u64;
            count.bytes += view.data.len() as u64;
        }
        let dtype = types.iter().max_by_key(|(_, count)| count.elements).map(|(name, _)| name.clone());
        let mut summary = Self {
            format: "safetensors",
            architecture: None,
            title: None,
            context: None,
            parameters: types.values().map(|count| count.elements).sum(),
            tensor_bytes: file.tensor_bytes(),
            tensors: file.tensors().len(),
            dtype,
            types,
            chat_template: false,
        };
        match &file.metadata {
            Metadata::Gguf(metadata) => {
                summary.format = "gguf";
                summary.architecture = metadata.str("general.architecture")?.map(str::to_owned);
                summary.title = metadata.str("general.name")?.map(str::to_owned);
                if let Some(architecture) = &summary.architecture {
                    summary.context = metadata.usize(&format!("{architecture}.context_length"))?;
                }
                summary.chat_template = metadata.contains("tokenizer.chat_template");
            }
            Metadata::Hf(metadata) => {
                // Multi-modal configs keep the decoder's numbers one level down.
                let text = metadata.config.get("text_config").unwrap_or(&metadata.config);
                let string = |key: &str| metadata.config.get(key).and_then(|v| v.as_str()).map(str::to_owned);
                summary.architecture = string("model_type");
                summary.title = string("_name_or_path").filter(|name| !name.is_empty());
                let context = ["max_position_embeddings", "n_positions"].iter().find_map(|key| text.get(key)?.as_u64());
                summary.context = context.and_then(|context| context.try_into().ok());
                summary.chat_template = metadata.chat_template.is_some();
            }
        }
        Ok(summary)
    }
}
