//! Computed prompts outside the pool: in memory while a model is unloaded, in a file across restarts.
//!
//! The prefix cache ends with the executor whose memory it names. A [`BlockStore`] outlives it: it holds blocks by the
//! [`Digest`] of all tokens up to their end, the one that was used longest ago goes first. `record` is a block as bytes,
//! `file` keeps records on disk, [`folder`] finds a model's file. Nothing read back is believed: digest, tokens and a checksum over
//! all of it must be right, else it is a miss.

mod digest;
mod file;
pub mod folder;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

pub use digest::Digest;
pub use file::OpenError;
use file::{Found, RecordFile};

use super::Tokens;

/// When blocks are given to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepWhen {
    /// As soon as they are computed: then they outlive even a crash.
    Computed,
    /// When the engine ends: what is in memory twice would be wasted.
    Unloaded,
}

/// Blocks by what they hold.
pub struct BlockStore {
    backing: Backing,
    by_digest: HashMap<Digest, usize>,
    by_use: BTreeMap<u64, usize>,
    /// `None`: free.
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    max_slots: usize,
    block_bytes: usize,
    now: u64,
    /// For reading.
    record: Vec<u8>,
}

struct Entry {
    digest: Digest,
    used: u64,
    /// A job of the file's writer; 0 is done.
    job: u64,
}

enum Backing {
    /// A record for each slot.
    Memory(Vec<Vec<u8>>),
    File(RecordFile),
}

impl BlockStore {
    /// An empty store in memory for blocks of `block_bytes`, which takes at most `max_bytes`.
    pub fn memory(block_bytes: usize, max_bytes: usize) -> Self {
        Self::new(Backing::Memory(Vec::new()), block_bytes, max_bytes, Vec::new())
    }

    /// The store in a file, which is created if need be, with what it holds. `layout` says what the bytes of a block mean; a file of
    /// another layout is emptied.
    ///
    /// # Errors
    /// [`OpenError`]: the system refuses, another process has the file, or it is none of ours.
    pub fn open(path: &Path, layout: &[u8; 32], block_bytes: usize, max_bytes: usize) -> Result<Self, OpenError> {
        let max_slots = max_bytes / record::record_bytes(block_bytes);
        let (file, found) = RecordFile::open(path, layout, block_bytes, max_slots)?;
        Ok(Self::new(Backing::File(file), block_bytes, max_bytes, found))
    }

    fn new(backing: Backing, block_bytes: usize, max_bytes: usize, mut found: Vec<Found>) -> Self {
        let mut this = Self {
            backing,
            by_digest: HashMap::new(),
            by_use: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            max_slots: max_bytes / record::record_bytes(block_bytes),
            block_bytes,
            now: 0,
            record: Vec::new(),
        };
        let num_slots = found.iter().map(|found| found.slot + 1).max().unwrap_or(0);
        this.slots.resize_with(num_slots, || None);
        // The times that they tell may be any: only their order counts.
        found.sort_by_key(|found| found.written);
        // What is written from now on is later than all that. (A damaged record may say anything.)
        let last = found.last().map_or(0, |found| found.written.min(1 << 62));
        for Found { slot, digest, .. } in found {
            if let Some(older) = this.by_digest.get(&digest).copied() {
                this.forget(older);
            }
            this.occupy(slot, digest, 0);
        }
        this.now = this.now.max(last);
        this.free = (0..num_slots).rev().filter(|&slot| this.slots[slot].is_none()).collect();
        this
    }

    /// When it wants blocks.
    pub fn keep_when(&self) -> KeepWhen {
        match self.backing {
            Backing::Memory(_) => KeepWhen::Unloaded,
            Backing::File(_) => KeepWhen::Computed,
        }
    }

    /// Bytes of the keys and values of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Blocks that it holds.
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// It holds nothing.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// Most blocks that it takes.
    pub fn max_blocks(&self) -> usize {
        self.max_slots
    }

    /// Whether it has this block, as far as it knows without reading it. Then it counts as used.
    fn touch(&mut self, digest: &Digest) -> bool {
        let Some(&slot) = self.by_digest.get(digest) else { return false };
        self.now += 1;
        if let Some(entry) = &mut self.slots[slot] {
            self.by_use.remove(&entry.used);
            entry.used = self.now;
            self.by_use.insert(self.now, slot);
        }
        true
    }

    /// Keeps a block. If it isn't there yet, `fill` appends its keys and values, at most [`block_bytes`](Self::block_bytes).
    /// Says whether it is there now: not when there is no room at all or the disk is too slow or full.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn put<E>(
        &mut self,
        digest: &Digest,
        tokens: &Tokens,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<bool, E> {
        if self.touch(digest) {
            return Ok(true);
        }
        if matches!(&self.backing, Backing::File(file) if file.has_failed()) {
            return Ok(false);
        }
        let Some(slot) = self.take_slot() else { return Ok(false) };
        let mut record = match &mut self.backing {
            Backing::Memory(records) => {
                if records.len() <= slot {
                    records.resize_with(slot + 1, Vec::new);
                }
                std::mem::take(&mut records[slot])
            }
            Backing::File(file) => file.buffer(),
        };
        record::begin(&mut record, digest, tokens, self.now + 1);
        let filled = fill(&mut record);
        let is_sound = filled.is_ok() && record.len() - record::HEAD <= self.block_bytes;
        let job = match &mut self.backing {
            _ if !is_sound => None,
            Backing::Memory(records) => {
                record::seal(&mut record);
                records[slot] = record;
                Some(0)
            }
            Backing::File(file) => file.write(slot, record),
        };
        match job {
            Some(job) => self.occupy(slot, *digest, job),
            None => self.free.push(slot),
        }
        filled.map(|()| job.is_some())
    }

    /// The keys and values of a block, if it has them whole. A damaged one is forgotten.
    pub fn get(&mut self, digest: &Digest, tokens: &Tokens) -> Option<&[u8]> {
        let slot = *self.by_digest.get(digest)?;
        let job = self.slots[slot].as_ref()?.job;
        let is_read = match &self.backing {
            Backing::Memory(records) => {
                self.record.clone_from(&records[slot]);
                true
            }
            Backing::File(file) => {
                if !file.is_written(job) {
                    return None;
                }
                file.read(slot, &mut self.record).is_ok()
            }
        };
        if !is_read || record::open(&self.record, digest, tokens).is_none() {
            tracing::warn!("a computed prompt that was kept is damaged; it is computed again");
            self.forget(slot);
            self.free.push(slot);
            return None;
        }
        self.touch(digest);
        record::open(&self.record, digest, tokens)
    }

    /// Waits until all that it was given is on disk.
    pub fn flush(&self) {
        if let Backing::File(file) = &self.backing {
            file.flush();
        }
    }

    fn take_slot(&mut self) -> Option<usize> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.slots.len() < self.max_slots {
            self.slots.push(None);
            return Some(self.slots.len() - 1);
        }
        let (_, &slot) = self.by_use.first_key_value()?;
        self.forget(slot);
        Some(slot)
    }

    fn occupy(&mut self, slot: usize, digest: Digest, job: u64) {
        self.now += 1;
        self.slots[slot] = Some(Entry { digest, used: self.now, job });
        self.by_use.insert(self.now, slot);
        self.by_digest.insert(digest, slot);
    }

    fn forget(&mut self, slot: usize) {
        if let Some(entry) = self.slots[slot].take() {
            self.by_use.remove(&entry.used);
            self.by_digest.remove(&entry.digest);
        }
    }
}

impl std::fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStore").field("blocks", &self.len()).field("max_blocks", &self.max_slots).finish()
    }
}
