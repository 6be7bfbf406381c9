//! Files to [`ModelFile`]: metadata and named tensor views over a memory map. Nothing is copied; nothing is
//! believed: every size and offset is checked against the file before it is used.
//!
//! [`gguf`]: GGUF v2 and v3, split files. [`safetensors`]: one file or a sharded folder with `config.json`. `detect`:
//! what a path leads to.

mod detect;
pub mod gguf;
pub mod mmap;
pub mod safetensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shimmy_kernels::quant::QuantType;

use crate::error::{Error, Result};
use detect::Found;
pub use gguf::{GgufMetadata, StringArray};
pub use mmap::Bytes;
pub use safetensors::HfMetadata;

/// One tensor of a file: where its bytes are and how to read them.
#[derive(Debug, Clone)]
pub struct TensorView {
    /// Element or block type.
    pub dtype: QuantType,
    /// Row-major, outermost axis first: `[rows, cols]` for a matrix whose rows are contiguous. (GGUF stores it reversed.)
    pub shape: Vec<usize>,
    /// Exactly the tensor's bytes, inside the mapping. Aligned to `general.alignment` (32 unless a file says otherwise)
    /// in GGUF, to nothing in safetensors.
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
#[expect(clippy::large_enum_variant, reason = "there is one in an opened model")]
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
    tensors: BTreeMap<String, TensorView>,
    /// Tensors of types that this crate has no name for, with the type's name.
    unreadable: BTreeMap<String, String>,
    parts: Vec<PathBuf>,
}

impl ModelFile {
    /// Opens a GGUF file (any of a split model's parts), a `.safetensors` file with `config.json` beside it, or a
    /// folder with `config.json` and safetensors or with one GGUF model. What a file is, its first bytes tell, not its
    /// name. Only headers are read.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be read, [`Error::Format`] with what is wrong when it is damaged or something else.
    pub fn open(path: &Path) -> Result<Self> {
        match detect::find(path)? {
            Found::Gguf(file) => {
                let gguf::GgufFile { metadata, tensors, parts } = gguf::open(&file)?;
                let path = parts.first().cloned().unwrap_or(file);
                Ok(Self { path, metadata: Metadata::Gguf(metadata), tensors, unreadable: BTreeMap::new(), parts })
            }
            Found::Safetensors { folder, file } => {
                let metadata = Metadata::Hf(HfMetadata::read(&folder)?);
                let safetensors::Tensors { tensors, unreadable, parts } = safetensors::open_file(&file)?;
                Ok(Self { path: folder, metadata, tensors, unreadable, parts })
            }
            Found::SafetensorsIndex { folder, index } => {
                let metadata = Metadata::Hf(HfMetadata::read(&folder)?);
                let safetensors::Tensors { tensors, unreadable, parts } = safetensors::open_index(&index)?;
                Ok(Self { path: folder, metadata, tensors, unreadable, parts })
            }
        }
    }

    /// Opens a whole GGUF file that is in memory; of a split set, only that part.
    ///
    /// # Errors
    /// [`Error::Format`] with what is wrong.
    pub fn from_gguf_bytes(bytes: Vec<u8>) -> Result<Self> {
        let path = PathBuf::from("(memory)");
        detect::require_gguf(&path, &bytes)?;
        let opened = gguf::open_bytes(&Bytes::from(bytes));
        let (metadata, tensors) = opened.map_err(|what| Error::Format { path: path.clone(), what })?;
        let metadata = Metadata::Gguf(metadata);
        Ok(Self { path, metadata, tensors, unreadable: BTreeMap::new(), parts: Vec::new() })
    }

    /// Opens a whole safetensors file that is in memory, with the metadata that its folder would give.
    ///
    /// # Errors
    /// [`Error::Format`] with what is wrong.
    pub fn from_safetensors_bytes(bytes: Vec<u8>, metadata: HfMetadata) -> Result<Self> {
        let path = PathBuf::from("(memory)");
        let opened = safetensors::open_bytes(&Bytes::from(bytes));
        let (tensors, unreadable) = opened.map_err(|what| Error::Format { path: path.clone(), what })?;
        Ok(Self { path, metadata: Metadata::Hf(metadata), tensors, unreadable, parts: Vec::new() })
    }

    /// The files that hold the tensors, in order.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// Tensors that can't be used since their type is not known here, with the type's name. Files may hold some that
    /// no architecture asks for, such as attention masks.
    pub fn unreadable(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(name, dtype)| (name.as_str(), dtype.as_str()))
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
    /// [`Error::MissingTensor`], [`Error::TensorShape`]; [`Error::Unsupported`] if its type is not known here.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorView> {
        let view = self.tensor(name).ok_or_else(|| match self.unreadable.get(name) {
            Some(dtype) => Error::Unsupported(format!("tensor `{name}` has the type {dtype}")),
            None => Error::MissingTensor { name: name.into() },
        })?;
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
