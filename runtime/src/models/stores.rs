//! Where the computed prompts of models go when they leave memory: a folder, if one was named, else a little memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::engine::SharedStore;
use crate::kv::BlockStore;
use crate::kv::store::folder::KvFolder;

/// What stays in memory of an unloaded model.
const MEMORY_BYTES: usize = 256 << 20;

/// The stores of all models of a process. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct KvStores {
    folder: Option<KvFolder>,
    /// By everything that tells models and layouts of blocks apart.
    open: Arc<Mutex<HashMap<String, SharedStore>>>,
}

impl KvStores {
    /// Stores in memory.
    pub fn memory() -> Self {
        Self::default()
    }

    /// Stores in files.
    pub fn folder(folder: KvFolder) -> Self {
        Self { folder: Some(folder), open: Arc::default() }
    }

    /// They are in files.
    pub fn are_files(&self) -> bool {
        self.folder.is_some()
    }

    /// The store of a model, the same for each of its lives. A model whose files have changed is another one. `None` after a
    /// warning if there is none: a model without it works all the same.
    pub(super) fn for_model(
        &self,
        name: &str,
        files: &[PathBuf],
        layout: &str,
        block_bytes: usize,
    ) -> Option<SharedStore> {
        let identity = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(format!("{} {} {}", path.canonicalize().ok()?.display(), metadata.len(), modified.as_nanos()))
        };
        let files_key: Option<Vec<String>> = files.iter().map(identity).collect();
        let key = format!("{layout} {block_bytes} {}", files_key.filter(|key| !key.is_empty())?.join(" "));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&key) {
            return Some(store.clone());
        }
        let store = match &self.folder {
            None => BlockStore::memory(block_bytes, MEMORY_BYTES),
            Some(folder) => match folder.open(name, files, layout, block_bytes) {
                Ok(store) => {
                    tracing::info!(
                        model = name,
                        blocks = store.len(),
                        max = store.max_blocks(),
                        "computed prompts on disk"
                    );
                    store
                }
                Err(error) => {
                    tracing::warn!(model = name, "computed prompts won't outlive the process: {error}");
                    return None;
                }
            },
        };
        let store = SharedStore::new(store);
        open.insert(key, store.clone());
        Some(store)
    }
}
