//! The one place that maps files: shared, read-only byte ranges.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A range of a mapped file. Cloning shares the mapping; it is unmapped with its last range.
#[derive(Clone)]
pub struct Bytes {
    source: Arc<Source>,
    range: Range<usize>,
}

enum Source {
    Map(Mmap),
    Memory(Vec<u8>),
}

/// Bytes in memory that stand for a file, for code that made them itself.
impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { source: Arc::new(Source::Memory(bytes)), range }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

impl Bytes {
    /// Maps a whole file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if it is no regular file or has no bytes.
    #[allow(unsafe_code, reason = "mapping a file is the purpose of this module")]
    pub fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        // Asked before opening: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(io)?;
        let damaged = |what: &str| Error::Format { path: path.into(), what: what.into() };
        if !metadata.is_file() {
            return Err(damaged("it is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(damaged("the file is empty: download it again"));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: `Mmap::map` asks that the file isn't changed or cut while it is mapped. No program can prove that of
        // a file that others may open. We map read-only and hold model files, which tools replace (a new inode) rather
        // than rewrite; every offset is checked against the length at mapping time, so only truncation by somebody
        // else during use can fault (SIGBUS), as with every runtime that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::Map(map)), range })
    }

    /// A part of this range; `None` if it isn't inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { source: Arc::clone(&self.source), range: start..start + range.len() })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole: &[u8] = match &*self.source {
            Source::Map(map) => map,
            Source::Memory(bytes) => bytes,
        };
        &whole[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
