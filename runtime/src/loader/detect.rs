//! What a path leads to: the kind of a file by its first bytes, and the model inside a folder. Things that people
//! often give instead of a model are named for what they are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::gguf;

/// Where a model's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A GGUF file, perhaps one part of a split set.
    Gguf(PathBuf),
    /// One safetensors file.
    Safetensors { folder: PathBuf, file: PathBuf },
    /// Sharded safetensors.
    SafetensorsIndex { folder: PathBuf, index: PathBuf },
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Finds the model at `path`.
pub(super) fn find(path: &Path) -> Result<Found> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
    if metadata.is_dir() { find_in_folder(path) } else { find_at_file(path, &metadata) }
}

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    Error::Format { path: path.into(), what: what.into() }
}

fn find_at_file(path: &Path, metadata: &std::fs::Metadata) -> Result<Found> {
    // Checked before opening: opening a named pipe would wait for a writer.
    if !metadata.is_file() {
        return Err(damaged(path, "it is neither a regular file nor a folder"));
    }
    let mut head = Vec::new();
    let io = |source| Error::Io { path: path.into(), source };
    File::open(path).map_err(io)?.take(HEAD_BYTES).read_to_end(&mut head).map_err(io)?;
    match kind(&head) {
        Kind::Gguf => Ok(Found::Gguf(path.into())),
        Kind::Safetensors => {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
                _ => PathBuf::from("."),
            };
            if !folder.join("config.json").is_file() {
                return Err(damaged(path, "a safetensors model needs its config.json in the same folder"));
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let index = folder.join(INDEX);
            // A shard stands for the set that it belongs to.
            if name != SINGLE && name.contains("-of-") && index.is_file() {
                return Ok(Found::SafetensorsIndex { folder, index });
            }
            Ok(Found::Safetensors { folder, file: path.into() })
        }
        Kind::Json => {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let folder = path.parent().unwrap_or(Path::new("."));
            if name == INDEX {
                return Ok(Found::SafetensorsIndex { folder: folder.into(), index: path.into() });
            }
            Err(damaged(path, "it is a JSON file, not a model: give the folder that it is in"))
        }
        Kind::Other(what) => Err(damaged(path, what)),
    }
}

/// Refuses what does not begin like a GGUF file.
pub(super) fn require_gguf(path: &Path, bytes: &[u8]) -> Result<()> {
    match kind(bytes) {
        Kind::Gguf => Ok(()),
        Kind::Other(what) => Err(damaged(path, what)),
        Kind::Safetensors | Kind::Json => Err(damaged(path, "it is not a GGUF file")),
    }
}

/// How much of a file is looked at.
const HEAD_BYTES: u64 = 512;

enum Kind {
    Gguf,
    Safetensors,
    Json,
    /// What it is instead and what to do.
    Other(String),
}

fn kind(head: &[u8]) -> Kind {
    let other = |what: &str| Kind::Other(what.into());
    let text = String::from_utf8_lossy(&head[..head.len().min(HEAD_BYTES as usize)]).trim_start().to_ascii_lowercase();
    match head {
        [] => other("the file is empty: download it again"),
        [b'G', b'G', b'U', b'F', ..] => Kind::Gguf,
        [b'F', b'U', b'G', b'G', ..] => other("big-endian GGUF is not supported"),
        // ggml, ggmf, ggjt and ggla, as little-endian words.
        [b'l' | b'f', b'm', b'g', b'g', ..] | [b't', b'j', b'g', b'g', ..] | [b'a', b'l', b'g', b'g', ..] => {
            other("it is a GGML file from before GGUF, which is not supported: convert the original model to GGUF")
        }
        [_, _, _, _, _, _, _, _, b'{', ..] => Kind::Safetensors,
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => other(
            "it is a PyTorch checkpoint or a ZIP archive, which is not supported: use the model's safetensors or GGUF \
             files",
        ),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            other("it is a compressed file: unpack it first")
        }
        _ if text.starts_with("version https://git-lfs") => other(
            "it is a Git LFS pointer, not the model itself: fetch the file with `git lfs pull` or download it directly",
        ),
        _ if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<head") => {
            other("it is an HTML page, not a model: the download led to a web page instead of the file")
        }
        _ if text.starts_with('{') => Kind::Json,
        _ if head.len() < 8 => Kind::Other(format!("the file has only {} bytes: download it again", head.len())),
        _ => Kind::Other(format!(
            "it is not a model file: it begins with the bytes {:02x?}, not with GGUF or a safetensors header",
            &head[..8]
        )),
    }
}

fn find_in_folder(folder: &Path) -> Result<Found> {
    let io = |source| Error::Io { path: folder.into(), source };
    let mut gguf = Vec::new();
    let mut safetensors = Vec::new();
    let mut pytorch = false;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // Projectors and imatrices are companions of a model.
        if name.ends_with(".gguf") && !name.starts_with("mmproj") && !name.contains("imatrix") {
            gguf.push(path);
        } else if name.ends_with(".safetensors") {
            safetensors.push(path);
        } else if name.starts_with("pytorch_model") || name.ends_with(".pth") {
            pytorch = true;
        }
    }
    if folder.join("config.json").is_file() {
        let folder = folder.to_path_buf();
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.is_file() {
            return Ok(Found::Safetensors { folder, file: single });
        }
        if index.is_file() {
            return Ok(Found::SafetensorsIndex { folder, index });
        }
        if let [_] = safetensors.as_slice() {
            return Ok(Found::Safetensors { folder, file: safetensors.remove(0) });
        }
    }
    // Of a split set the first part stands for all.
    gguf.retain(|path| gguf::split_name(path).is_none_or(|(_, number, _)| number == 1));
    gguf.sort();
    match gguf.as_slice() {
        [_] => Ok(Found::Gguf(gguf.remove(0))),
        [] if pytorch => Err(damaged(
            folder,
            "it holds a PyTorch checkpoint, which is not supported: download the model's safetensors or GGUF files",
        )),
        [] if !safetensors.is_empty() => Err(damaged(
            folder,
            format!("it holds {} safetensors files, but not {SINGLE} or {INDEX} with config.json", safetensors.len()),
        )),
        [] => Err(damaged(folder, "it holds no model: no .gguf file, and no config.json with safetensors files")),
        several => {
            let names = several.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>().join(", ");
            Err(damaged(folder, format!("it holds {} GGUF models ({names}): name one of them", several.len())))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn message(path: &Path) -> String {
        find(path).unwrap_err().to_string()
    }

    #[test]
    fn things_that_are_no_model_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let cases: [(&[u8], &str); 14] = [
            (b"", "the file is empty"),
            (b"GG", "only 2 bytes"),
            (b"\n <!DOCTYPE html><html>", "HTML page"),
            (b"<html lang=en>", "HTML page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
            (b"PK\x03\x04\x00\x00\x00\x00archive/data.pkl", "PyTorch checkpoint"),
            (b"\x80\x02}q\x00(X\x00\x00", "PyTorch checkpoint"),
            (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00", "compressed"),
            (b"tjgg\x03\x00\x00\x00\x00", "from before GGUF"),
            (b"lmgg\x03\x00\x00\x00\x00", "from before GGUF"),
            (b"FUGG\x03\x00\x00\x00\x00", "big-endian"),
            (b"{\"architectures\": []}", "JSON file"),
            (b"\x7fELF\x02\x01\x01\x00\x00", "begins with the bytes [7f, 45, 4c, 46"),
            (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "needs its config.json"),
        ];
        for (bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = message(&path);
            assert!(message.contains(expected) && message.contains("model.gguf"), "{message}");
        }
        assert!(matches!(find(&folder.path().join("absent")), Err(Error::Io { .. })));
        assert!(message(Path::new("/dev/null")).contains("neither a regular file nor a folder"));
    }

    #[test]
    fn magic_counts_not_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        std::fs::write(&path, b"GGUF\x03\x00\x00\x00").unwrap();
        assert_eq!(find(&path).unwrap(), Found::Gguf(path));
    }

    #[test]
    fn folders() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), b"GGUF").unwrap();
        assert!(message(folder.path()).contains("it holds no model"));
        write("pytorch_model.bin");
        assert!(message(folder.path()).contains("PyTorch checkpoint"));
        write("a-00001-of-00002.gguf");
        write("a-00002-of-00002.gguf");
        write("mmproj-a.gguf");
        let first = folder.path().join("a-00001-of-00002.gguf");
        assert_eq!(find(folder.path()).unwrap(), Found::Gguf(first));
        write("b.gguf");
        assert!(message(folder.path()).contains("2 GGUF models (a-00001-of-00002.gguf, b.gguf)"));
        write("config.json");
        write("model.safetensors.index.json");
        assert!(matches!(find(folder.path()).unwrap(), Found::SafetensorsIndex { .. }));
        write("model.safetensors");
        assert!(matches!(find(folder.path()).unwrap(), Found::Safetensors { .. }));
    }
}
