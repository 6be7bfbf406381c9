//! Files to [`ModelFile`]: metadata and named tensor views over a memory map. Nothing is copied; nothing is
//! believed: every size and offset is checked against the file before it is used.
//!
//! [`gguf`]: GGUF v2 and v3, split files. [`safetensors`]: one file or a sharded folder with `config.json`.

pub mod gguf;
pub mod mmap;
pub mod safetensors;

use std::path::{Path, PathBuf};

use shimmy_kernels::quant::QuantType;

use crate::error::{Error, Result};
pub use gguf::GgufMetadata;
pub use mmap::Bytes;
pub use safetensors::HfMetadata;

/// One tensor of a file: where its bytes are and how to read them.
#[derive(Debug, Clone)]
pub struct TensorView {
    /// Element or block type.
    pub dtype: QuantType,
    /// Row-major, outermost axis first: `[rows, cols]` for a matrix whose rows are contiguous. (GGUF stores it reversed.)
    pub shape: Vec<usize>,
    /// Exactly the tensor's bytes, inside the mapping.
    pub data: Bytes,
}

impl TensorView {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where a model's numbers about itself come from.
#[derive(Debug, Clone)]
pub enum Metadata {
    /// Key-value pairs of a GGUF header.
    Gguf(GgufMetadata),
    /// `config.json` and its companions in a Hugging Face folder.
    Hf(HfMetadata),
}

/// A model on disk, opened and checked.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The GGUF file (the first, if split), or the folder with `config.json`.
    pub path: PathBuf,
    /// What it says of itself.
    pub metadata: Metadata,
    /// Sorted by name.
    tensors: std::collections::BTreeMap<String, TensorView>,
}

impl ModelFile {
    /// Opens a GGUF file (any of a split model's parts), a `.safetensors` file or a folder that holds one of them.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be read, [`Error::Format`] with what is wrong when it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        Err(Error::Unsupported("loader".into()))
    }

    /// The tensor `name`, if the file has it.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        self.tensors.get(name)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorView)> {
        self.tensors.iter().map(|(name, view)| (name.as_str(), view))
    }

    /// The tensor `name` with this shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`].
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorView> {
        let view = self.tensor(name).ok_or_else(|| Error::MissingTensor { name: name.into() })?;
        if view.shape != shape {
            return Err(Error::TensorShape { name: name.into(), expected: shape.into(), got: view.shape.clone() });
        }
        Ok(view)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|view| view.data.len() as u64).sum()
    }
}
