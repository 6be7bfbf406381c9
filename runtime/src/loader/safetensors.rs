//! safetensors files and the Hugging Face folders they come in.
//!
//! Format: <https://huggingface.co/docs/safetensors>. The header is parsed by the `safetensors` crate, which checks
//! that the tensors lie back to back and fill the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::Value;
use shimmy_kernels::quant::QuantType;

use crate::error::{Error, Result};

use super::TensorView;
use super::mmap::Bytes;

/// The largest side file (`config.json` and the like) that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// `config.json` and its companions in a Hugging Face folder.
#[derive(Debug, Clone, Default)]
pub struct HfMetadata {
    /// The folder.
    pub folder: PathBuf,
    /// `config.json`, an object.
    pub config: Value,
    /// `generation_config.json`, an object.
    pub generation: Option<Value>,
    /// `tokenizer_config.json`, an object.
    pub tokenizer_config: Option<Value>,
    /// `chat_template.jinja`; without one, `chat_template` of `tokenizer_config.json`: its text, or the entry named
    /// `default` if it is a list.
    pub chat_template: Option<String>,
}

impl HfMetadata {
    /// Reads the side files of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read, [`Error::Format`] if it is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = folder.join("config.json");
        let config = read_object(&config)?.ok_or_else(|| Error::Format {
            path: folder.into(),
            what: "it has no config.json, which describes the safetensors model: download it as well".into(),
        })?;
        let generation = read_object(&folder.join("generation_config.json"))?;
        let tokenizer_config = read_object(&folder.join("tokenizer_config.json"))?;
        let chat_template = match read_text(&folder.join("chat_template.jinja"))? {
            Some(text) => Some(text),
            None => tokenizer_config.as_ref().and_then(chat_template),
        };
        Ok(Self { folder: folder.into(), config, generation, tokenizer_config, chat_template })
    }

    /// A further JSON file of the folder; `None` if it isn't there.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read, [`Error::Format`] if it is not JSON.
    pub fn read_side_file(&self, name: &str) -> Result<Option<Value>> {
        read_json(&self.folder.join(name))
    }
}

fn chat_template(tokenizer_config: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match tokenizer_config.get("chat_template")? {
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            text(default.get("template")?)
        }
        value => text(value),
    }
}

/// The text of a side file; `None` if it isn't there.
fn read_text(path: &Path) -> Result<Option<String>> {
    let io = |source| Error::Io { path: path.into(), source };
    let damaged = |what: String| Error::Format { path: path.into(), what };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if !metadata.is_file() {
        return Err(damaged("it is not a regular file".into()));
    }
    if metadata.len() > MAX_JSON_BYTES {
        return Err(damaged(format!("it has {} bytes; at most {MAX_JSON_BYTES} are read", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map(Some).map_err(|error| damaged(format!("it is not UTF-8: {error}")))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let value = serde_json::from_str(&text);
    value.map(Some).map_err(|error| Error::Format { path: path.into(), what: format!("it is not JSON: {error}") })
}

fn read_object(path: &Path) -> Result<Option<Value>> {
    let value = read_json(path)?;
    if value.as_ref().is_some_and(|value| !value.is_object()) {
        return Err(Error::Format { path: path.into(), what: "it is not a JSON object".into() });
    }
    Ok(value)
}

/// The tensors of one or more safetensors files.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) tensors: BTreeMap<String, TensorView>,
    /// Tensors of types that we have no name for, with the type's name.
    pub(super) unreadable: BTreeMap<String, String>,
    pub(super) parts: Vec<PathBuf>,
}

impl Tensors {
    fn add(&mut self, path: &Path) -> Result<()> {
        let damaged = |what: String| Error::Format { path: path.into(), what };
        let (tensors, unreadable) = open_bytes(&Bytes::map(path)?).map_err(damaged)?;
        for name in tensors.keys().chain(unreadable.keys()) {
            if self.contains(name) {
                return Err(damaged(format!("tensor `{}` is in an earlier file as well", name.escape_debug())));
            }
        }
        self.tensors.extend(tensors);
        self.unreadable.extend(unreadable);
        self.parts.push(path.into());
        Ok(())
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.unreadable.contains_key(name)
    }
}

/// Opens one file.
pub(super) fn open_file(path: &Path) -> Result<Tensors> {
    let mut tensors = Tensors::default();
    tensors.add(path)?;
    Ok(tensors)
}

/// Opens the files that a `model.safetensors.index.json` names.
pub(super) fn open_index(index: &Path) -> Result<Tensors> {
    let damaged = |what: String| Error::Format { path: index.into(), what };
    let value = read_object(index)?.ok_or_else(|| damaged("it is gone".into()))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| damaged("it has no `weight_map` object".into()))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_plain_name(name));
        let name = name.ok_or_else(|| {
            damaged(format!("`weight_map` gives {file} for `{}`; it must be a file name", tensor.escape_debug()))
        })?;
        files.insert(name);
    }
    let mut tensors = Tensors::default();
    for name in &files {
        let path = index.with_file_name(name);
        if !path.is_file() {
            return Err(damaged(format!("it names {name}, which is missing: put it beside it")));
        }
        tensors.add(&path)?;
    }
    match map.keys().find(|name| !tensors.contains(name)) {
        Some(name) => Err(damaged(format!("tensor `{}` is in none of the files", name.escape_debug()))),
        None => Ok(tensors),
    }
}

/// Whether a name from a file is one path component, so that it can't lead out of the folder.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    single && components.next().is_none() && !name.contains(['/', '\\', '\0'])
}

type Views = (BTreeMap<String, TensorView>, BTreeMap<String, String>);

/// Tensors of one whole file in memory; the second map as [`Tensors::unreadable`].
///
/// # Errors
/// What is wrong with it.
pub(super) fn open_bytes(file: &Bytes) -> Result<Views, String> {
    let (header_bytes, header) = SafeTensors::read_metadata(file).map_err(|error| explain(&error, file))?;
    // No overflow: `read_metadata` found these bytes in the file.
    let data_at = header_bytes + 8;
    let mut tensors = BTreeMap::new();
    let mut unreadable = BTreeMap::new();
    for (name, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let range = data_at.checked_add(start).zip(data_at.checked_add(end));
        // `read_metadata` compares sums that may wrap, so its word is not enough.
        let data = range.and_then(|(start, end)| file.slice(start..end));
        let data = data.ok_or_else(|| format!("tensor `{}` is outside the file", name.escape_debug()))?;
        match quant_type(info.dtype) {
            Some(dtype) => {
                tensors.insert(name, TensorView { dtype, shape: info.shape.clone(), data });
            }
            None => {
                unreadable.insert(name, info.dtype.to_string());
            }
        }
    }
    Ok((tensors, unreadable))
}

fn quant_type(dtype: Dtype) -> Option<QuantType> {
    Some(match dtype {
        Dtype::F32 => QuantType::F32,
        Dtype::F16 => QuantType::F16,
        Dtype::BF16 => QuantType::BF16,
        Dtype::F64 => QuantType::F64,
        Dtype::I8 => QuantType::I8,
        Dtype::I16 => QuantType::I16,
        Dtype::I32 => QuantType::I32,
        Dtype::I64 => QuantType::I64,
        _ => return None,
    })
}

fn explain(error: &SafeTensorError, file: &[u8]) -> String {
    let claimed = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or(0);
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            format!(
                "its header should have {claimed} bytes, but the file has {}: it is truncated or damaged, \
                 download it again",
                file.len()
            )
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            "its tensors don't end where the file ends: it is truncated or damaged, download it again".into()
        }
        error => format!("its header is damaged, download it again: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::loader::{Metadata, ModelFile};

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn one(name: &str) -> Vec<u8> {
        file(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#), &[1; 8])
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn hf(file: &ModelFile) -> &HfMetadata {
        let Metadata::Hf(metadata) = &file.metadata else { unreachable!("not a Hugging Face folder") };
        metadata
    }

    #[test]
    fn single_file_with_companions() {
        let weights = one("w");
        let folder = folder(&[
            ("config.json", br#"{"model_type":"llama","rms_norm_eps":1e-05}"#),
            ("generation_config.json", br#"{"eos_token_id":[1,2]}"#),
            (
                "tokenizer_config.json",
                br#"{"chat_template":[{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]}"#,
            ),
            ("model.safetensors", &weights),
            ("golden.safetensors", &one("other")),
        ]);
        for path in [folder.path().to_path_buf(), folder.path().join("model.safetensors")] {
            let file = ModelFile::open(&path).unwrap();
            assert_eq!(file.path, folder.path());
            assert_eq!(file.require("w", &[2]).unwrap().data[..], [1; 8]);
            assert_eq!(hf(&file).config["rms_norm_eps"].as_f64(), Some(1e-5));
            assert_eq!(hf(&file).generation.as_ref().unwrap()["eos_token_id"][1], 2);
            assert_eq!(hf(&file).chat_template.as_deref(), Some("D"));
        }
        let other = ModelFile::open(&folder.path().join("golden.safetensors")).unwrap();
        assert!(other.tensor("other").is_some() && other.tensor("w").is_none());
        std::fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
        assert_eq!(hf(&ModelFile::open(folder.path()).unwrap()).chat_template.as_deref(), Some("J"));
    }

    #[test]
    fn shards_open_from_folder_shard_or_index() {
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        let folder = folder(&[
            ("config.json", b"{}"),
            (INDEX, index.as_bytes()),
            ("model-00001-of-00002.safetensors", &one("a")),
            ("model-00002-of-00002.safetensors", &one("b")),
        ]);
        let path = folder.path();
        for path in [path.to_path_buf(), path.join("model-00002-of-00002.safetensors"), path.join(INDEX)] {
            let file = ModelFile::open(&path).unwrap();
            assert_eq!((file.tensors().len(), file.parts().len()), (2, 2));
        }
        let fails_with = |expected: &str| {
            let message = ModelFile::open(folder.path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        std::fs::write(path.join("model-00002-of-00002.safetensors"), one("a")).unwrap();
        fails_with("tensor `a` is in an earlier file as well");
        std::fs::write(path.join("model-00002-of-00002.safetensors"), one("c")).unwrap();
        fails_with("tensor `b` is in none of the files");
        std::fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap();
        fails_with("names model-00002-of-00002.safetensors, which is missing");
        for evil in ["../x.safetensors", "/etc/x", "a/b", "..", ".", "", "./x", "x/", "a\\b"] {
            let value = serde_json::json!({ "weight_map": { "a": evil } });
            std::fs::write(path.join(INDEX), value.to_string()).unwrap();
            fails_with("it must be a file name");
        }
    }

    const INDEX: &str = "model.safetensors.index.json";

    #[test]
    fn types_without_a_name_are_kept_aside() {
        let header = r#"{"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}"#;
        let file = ModelFile::from_safetensors_bytes(file(header, &[0; 4]), HfMetadata::default()).unwrap();
        assert_eq!(file.tensors().len(), 1);
        assert_eq!(file.unreadable().collect::<Vec<_>>(), [("mask", "BOOL")]);
        assert_eq!(
            file.require("mask", &[2]).unwrap_err().to_string(),
            "not supported: tensor `mask` has the type BOOL"
        );
    }
}
