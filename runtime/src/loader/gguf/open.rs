//! GGUF files and split sets to metadata and tensor views.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gguf_rs::{ByteOrder, GGUFContainer};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::loader::TensorView;
use crate::loader::mmap::Bytes;

use super::metadata::{GgufMetadata, Pair};
use super::scan::{Place, scan, shown};
use super::splice::SplicedHeader;

/// More parts than any model was ever split into; the limit keeps a damaged count from becoming a long search.
const MAX_PARTS: usize = 10_000;

/// An opened GGUF file or split set.
#[derive(Debug)]
pub(in crate::loader) struct GgufFile {
    /// Of the first part.
    pub(in crate::loader) metadata: GgufMetadata,
    pub(in crate::loader) tensors: BTreeMap<String, TensorView>,
    /// In order; one if the model isn't split.
    pub(in crate::loader) parts: Vec<PathBuf>,
}

/// Opens a GGUF file; of a split set, any part opens them all.
pub(in crate::loader) fn open(path: &Path) -> Result<GgufFile> {
    let file = open_part(path)?;
    let Some(count) = file.metadata.usize("split.count")?.filter(|&count| count > 1) else {
        return Ok(GgufFile { metadata: file.metadata, tensors: file.tensors, parts: vec![path.into()] });
    };
    open_split(path, file, count)
}

struct Part {
    metadata: GgufMetadata,
    tensors: BTreeMap<String, TensorView>,
}

fn open_part(path: &Path) -> Result<Part> {
    let (metadata, tensors) =
        open_bytes(&Bytes::map(path)?).map_err(|what| Error::Format { path: path.into(), what })?;
    Ok(Part { metadata, tensors })
}

/// Metadata and tensors of one whole file in memory.
///
/// # Errors
/// What is wrong with it.
pub(in crate::loader) fn open_bytes(file: &Bytes) -> Result<(GgufMetadata, BTreeMap<String, TensorView>), String> {
    let scan = scan(file)?;
    let header = SplicedHeader::new(file, &scan);
    // The scan has accepted this header, so a refusal by `gguf-rs` is a difference between the two that we don't know.
    let model = GGUFContainer::new(ByteOrder::LE, Box::new(header), u64::MAX)
        .decode()
        .map_err(|error| format!("the header can't be decoded: {error}"))?;
    if model.tensors().len() != scan.tensors.len() {
        return Err(format!("decoded {} tensors of {}", model.tensors().len(), scan.tensors.len()));
    }

    let decoded = model.metadata();
    let pairs = scan.pairs.into_iter().map(|(key, place)| {
        let value = match &place {
            Place::Scalar { .. } => decoded.get(&key).cloned().unwrap_or(Value::Null),
            Place::Array(_) => Value::Null,
        };
        (key, Pair { file: file.clone(), place, decoded: value })
    });
    let metadata = GgufMetadata::new(pairs.collect());

    let mut tensors = BTreeMap::new();
    for (record, place) in model.tensors().iter().zip(scan.tensors) {
        let about = || format!("tensor {}", shown(&record.name));
        let data = file.slice(place.bytes).ok_or_else(|| format!("{} is outside the file", about()))?;
        let axes = record.shape.iter().rev().map(|&axis| usize::try_from(axis));
        let shape = axes.collect::<Result<Vec<_>, _>>().map_err(|_| format!("{} is too large", about()))?;
        tensors.insert(record.name.clone(), TensorView { dtype: place.dtype, shape, data });
    }
    Ok((metadata, tensors))
}

/// `model-00002-of-00005.gguf` to (`model`, 2, 5).
pub(in crate::loader) fn split_name(path: &Path) -> Option<(&str, usize, usize)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        if plain { digits.parse().ok() } else { None }
    };
    Some((prefix, parse(number)?, parse(count)?))
}

fn open_split(path: &Path, file: Part, count: usize) -> Result<GgufFile> {
    let damaged = |path: &Path, what: String| Error::Format { path: path.into(), what };
    if count > MAX_PARTS {
        return Err(damaged(path, format!("`split.count` is {count}; at most {MAX_PARTS} parts are supported")));
    }
    let Some((prefix, number, of)) = split_name(path) else {
        return Err(damaged(
            path,
            format!(
                "it is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf: rename it back"
            ),
        ));
    };
    if of != count {
        return Err(damaged(path, format!("its name says {of} parts, but its `split.count` is {count}")));
    }

    let mut opened = Some(file);
    let mut parts = Vec::new();
    let mut tensors = BTreeMap::new();
    let mut metadata = None;
    for index in 0..count {
        let part_path = path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1));
        // The file that was asked for is open already; its place among the parts is checked like any other's.
        let part = match opened.take_if(|_| index + 1 == number) {
            Some(part) => part,
            None if part_path.is_file() => open_part(&part_path)?,
            None => {
                return Err(damaged(
                    path,
                    format!("part {} of {count} is missing: put {} beside it", index + 1, part_path.display()),
                ));
            }
        };
        if part.metadata.usize("split.count")? != Some(count) {
            return Err(damaged(
                &part_path,
                format!("its `split.count` is not {count} like that of {}", path.display()),
            ));
        }
        if part.metadata.usize("split.no")? != Some(index) {
            let got = part.metadata.usize("split.no")?.map_or("missing".into(), |no| no.to_string());
            return Err(damaged(&part_path, format!("its `split.no` is {got}; its name asks for {index}")));
        }
        if index == 0 {
            metadata = Some(part.metadata);
        }
        for (name, view) in part.tensors {
            if tensors.contains_key(&name) {
                return Err(damaged(&part_path, format!("tensor {} is in an earlier part as well", shown(&name))));
            }
            tensors.insert(name, view);
        }
        parts.push(part_path);
    }
    let metadata = metadata.unwrap_or_default();
    if let Some(expected) = metadata.usize("split.tensors.count")?
        && expected != tensors.len()
    {
        return Err(damaged(
            path,
            format!("the {count} parts hold {} tensors; `split.tensors.count` is {expected}", tensors.len()),
        ));
    }
    Ok(GgufFile { metadata, tensors, parts })
}
