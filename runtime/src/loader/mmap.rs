//! The one place that maps files: shared, read-only byte ranges. Weights are read in order again and again, so they are best in huge
//! pages: a small one ends the CPU's reading ahead and costs a walk through the page tables (a fifth of the speed of decoding).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Ranges of a copy begin at multiples of this: a cache line.
const COPY_ALIGN: usize = 64;
/// Copied at a time by a thread.
const COPY_BYTES: usize = 4 << 20;

/// A range of a mapped file. Cloning shares the mapping; it is unmapped with its last range.
#[derive(Clone)]
pub struct Bytes {
    source: Arc<Source>,
    range: Range<usize>,
}

enum Source {
    #[cfg_attr(not(unix), allow(dead_code, reason = "the file is read by offset on Unix only"))]
    File(Mmap, File),
    Copy(Mmap),
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
        // Where the file system's cache can have huge pages, what isn't in it yet is read into them.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let range = 0..map.len();
        Ok(Self { source: Arc::new(Source::File(map, file)), range })
    }

    /// The same ranges in memory of their own, which has huge pages whatever the file system. What is given twice is copied once.
    ///
    /// # Errors
    /// The system's, if it has no memory for them or can't read the file, which may have become shorter.
    pub fn copied(ranges: &[Self]) -> io::Result<Vec<Self>> {
        let padded = |bytes: &Self| bytes.len().next_multiple_of(COPY_ALIGN);
        let (mut starts, mut distinct, mut total) = (HashMap::new(), Vec::new(), 0);
        for bytes in ranges {
            starts.entry((bytes.as_ptr(), bytes.len())).or_insert_with(|| {
                distinct.push(bytes);
                total += padded(bytes);
                total - padded(bytes)
            });
        }
        // An empty mapping would be an error.
        let mut map = MmapMut::map_anon(total.max(1))?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (mut rest, mut parts) = (&mut map[..], Vec::new());
        for bytes in distinct {
            let (part, behind) = rest.split_at_mut(padded(bytes));
            parts.extend(
                part[..bytes.len()].chunks_mut(COPY_BYTES).enumerate().map(|(i, to)| (bytes, i * COPY_BYTES, to)),
            );
            rest = behind;
        }
        parts.into_par_iter().try_for_each(|(bytes, offset, to)| bytes.read(offset, to))?;
        let source = Arc::new(Source::Copy(map.make_read_only()?));
        let copy = |bytes: &Self| {
            let start = starts[&(bytes.as_ptr(), bytes.len())];
            Self { source: Arc::clone(&source), range: start..start + bytes.len() }
        };
        Ok(ranges.iter().map(copy).collect())
    }

    /// What is at `offset` of this range; files are read, which leaves their pages out of this process.
    fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        if let Source::File(_, file) = &*self.source {
            return std::os::unix::fs::FileExt::read_exact_at(file, to, (self.range.start + offset) as u64);
        }
        to.copy_from_slice(&self[offset..offset + to.len()]);
        Ok(())
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
            Source::File(map, _) | Source::Copy(map) => map,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_ranges() {
        let content: Vec<u8> = (0..3 * COPY_BYTES + 5).map(|i| (i % 251) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &content).unwrap();
        check_copies(&Bytes::from(content));
        let mapped = Bytes::map(&path).unwrap();
        check_copies(&mapped);
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert_eq!(Bytes::copied(&[mapped]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    fn check_copies(bytes: &Bytes) {
        let ranges =
            [0..3 * COPY_BYTES + 5, 7..7, 1..2, 0..COPY_BYTES, 100..164, 1..2].map(|range| bytes.slice(range).unwrap());
        let copies = Bytes::copied(&ranges).unwrap();
        assert_eq!(copies.len(), ranges.len());
        for (copy, range) in copies.iter().zip(&ranges) {
            assert!(**copy == **range);
            assert_eq!(copy.as_ptr() as usize % COPY_ALIGN, 0);
            assert!(range.is_empty() || copy.as_ptr() != range.as_ptr());
        }
        assert_eq!(copies[2].as_ptr(), copies[5].as_ptr(), "copied once");
        assert!(Bytes::copied(&[]).unwrap().is_empty());
    }
}
