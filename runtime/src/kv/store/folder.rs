//! The folder of `--kv-cache-dir`: one file for each model and layout of its blocks, all together within a limit.
//!
//! A file is named by the content of the model, so that a model that was replaced under its old name finds nothing of the old
//! one. Hashing a model takes as long as reading it; the hash is noted beside the blocks with size and time of its files.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::MAGIC;
use super::{BlockStore, OpenError};

/// Name of files with blocks.
const EXTENSION: &str = "kv";

/// A folder for computed prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvFolder {
    /// Where.
    pub path: PathBuf,
    /// Most bytes of all its files.
    pub max_bytes: u64,
}

impl KvFolder {
    /// The store of the model in these files, whose blocks have this layout: whatever changes keys and values or the order of
    /// their bytes must be named in it. `name` is for people who look into the folder.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &self,
        name: &str,
        model_files: &[PathBuf],
        layout: &str,
        block_bytes: usize,
    ) -> Result<BlockStore, OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        self.create()?;
        let content = self.content_hash(model_files).map_err(io_error(&self.path))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&content);
        hasher.update(layout.as_bytes());
        let key = hasher.finalize();
        let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
        let name: String = name.chars().take(80).map(safe).collect();
        let path = self.path.join(format!("{name}-{}.{EXTENSION}", &key.to_hex()[..16]));
        let max_bytes = self.make_room(&path).map_err(io_error(&self.path))?;
        BlockStore::open(&path, key.as_bytes(), block_bytes, usize::try_from(max_bytes).unwrap_or(usize::MAX))
    }

    /// Makes the folder if there is none. Whoever reads the cache reads the prompts: a new one is for its owner only.
    ///
    /// # Errors
    /// [`OpenError::Io`].
    pub fn create(&self) -> Result<(), OpenError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.path).map_err(|source| OpenError::Io { path: self.path.clone(), source })
    }

    /// Deletes the files of other models that were not written to for longest until the folder is within its limit, and says how
    /// many bytes the file at `path` may take. Files that a process uses stay.
    fn make_room(&self, path: &Path) -> io::Result<u64> {
        let mut others: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        let mut own = 0;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if !metadata.is_file() || entry.path().extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            if entry.path() == path {
                own = metadata.len();
            } else {
                others.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
            }
        }
        others.sort_unstable();
        let mut total: u64 = own + others.iter().map(|(_, len, _)| len).sum::<u64>();
        let mut kept = 0;
        for (_, len, path) in others {
            if total > self.max_bytes && is_unused_store(&path) {
                tracing::info!("{}: deleted to make room for other models' cached prompts", path.display());
                fs::remove_file(&path)?;
                total -= len;
            } else {
                kept += len;
            }
        }
        Ok(self.max_bytes.saturating_sub(kept))
    }

    /// A hash of everything in these files.
    fn content_hash(&self, files: &[PathBuf]) -> io::Result<[u8; 32]> {
        let mut state = blake3::Hasher::new();
        for file in files {
            let metadata = fs::metadata(file)?;
            let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            state.update(file.canonicalize()?.as_os_str().as_encoded_bytes());
            state.update(&metadata.len().to_le_bytes());
            state.update(&modified.as_nanos().to_le_bytes());
        }
        let note = self.path.join(format!("{}.model", &state.finalize().to_hex()[..32]));
        if let Some(hash) = fs::read_to_string(&note).ok().and_then(|text| blake3::Hash::from_hex(text.trim()).ok()) {
            return Ok(*hash.as_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 16 << 20];
        for path in files {
            let mut file = fs::File::open(path)?;
            loop {
                let len = match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                hasher.update_rayon(&buffer[..len]);
            }
        }
        let hash = hasher.finalize();
        // Without the note the model is hashed again: slower, not wrong.
        if let Err(error) = fs::write(&note, hash.to_hex().as_str()) {
            tracing::warn!("{}: {error}", note.display());
        }
        Ok(*hash.as_bytes())
    }
}

/// It is a store, by its first bytes and not only by its name, and no process has it open.
fn is_unused_store(path: &Path) -> bool {
    let Ok(mut file) = fs::File::open(path) else { return false };
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).is_ok() && magic == MAGIC && file.try_lock().is_ok()
}
