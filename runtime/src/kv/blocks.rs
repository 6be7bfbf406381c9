//! Blocks of one kind: who owns them, and which of those that nobody owns are kept for later.

use std::collections::BTreeMap;

/// Counts the owners of blocks. A block without owners is either free, or idle: kept because it's cached. Idle blocks count
/// as free and are taken, the one that has been idle longest first, when no block is really free.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Ids of blocks without content, taken from the end: a block that was just freed is still warm in the cache.
    free: Vec<u32>,
    /// Cached blocks without an owner, by the time since which they have had none.
    idle: BTreeMap<u64, u32>,
    /// That time, for idle blocks. `[num_blocks]`
    idle_since: Vec<u64>,
    /// Counts the times at which blocks became idle.
    now: u64,
    /// Owners of each block; 0 is free or idle. `[num_blocks]`
    owners: Vec<u32>,
}

/// A block that has an owner now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It held nothing.
    Empty(u32),
    /// It was cached, which must be forgotten.
    Cached(u32),
}

impl Blocks {
    /// Blocks `0..num_blocks`, all free. Ids are 32 bits wide and the last one means none: more are left unused.
    pub(super) fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            free: (0..num_blocks).rev().collect(),
            idle: BTreeMap::new(),
            idle_since: vec![0; num_blocks as usize],
            now: 0,
            owners: vec![0; num_blocks as usize],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// Without an owner, idle ones included.
    pub(super) fn num_free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub(super) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Idle ones, those first that have been so for the shortest time.
    pub(super) fn idle(&self) -> impl Iterator<Item = u32> {
        self.idle.values().rev().copied()
    }

    pub(super) fn is_owned(&self, block: u32) -> bool {
        self.owners[block as usize] > 0
    }

    pub(super) fn take(&mut self) -> Option<Taken> {
        let taken = match self.free.pop() {
            Some(block) => Taken::Empty(block),
            None => Taken::Cached(self.idle.pop_first()?.1),
        };
        let (Taken::Empty(block) | Taken::Cached(block)) = taken;
        self.owners[block as usize] = 1;
        Some(taken)
    }

    /// One more owner.
    pub(super) fn share(&mut self, block: u32) -> u32 {
        let owners = &mut self.owners[block as usize];
        if *owners == 0 {
            self.idle.remove(&self.idle_since[block as usize]);
        }
        *owners += 1;
        block
    }

    /// One owner less. `is_cached` is asked if it was the last.
    pub(super) fn give_back(&mut self, block: u32, is_cached: impl FnOnce() -> bool) {
        let owners = &mut self.owners[block as usize];
        *owners -= 1;
        if *owners > 0 {
            return;
        }
        if is_cached() {
            self.now += 1;
            self.idle_since[block as usize] = self.now;
            self.idle.insert(self.now, block);
        } else {
            self.free.push(block);
        }
    }

    /// An idle block isn't cached any more. One with an owner stays as it is.
    pub(super) fn forget(&mut self, block: u32) {
        if self.owners[block as usize] == 0 && self.idle.remove(&self.idle_since[block as usize]).is_some() {
            self.free.push(block);
        }
    }

    /// Whether `first` leaves before `second` when room is needed; blocks with an owner never leave.
    pub(super) fn leaves_before(&self, first: u32, second: u32) -> bool {
        let since = |block: u32| if self.is_owned(block) { u64::MAX } else { self.idle_since[block as usize] };
        since(first) < since(second)
    }

    /// Checks that the owners it counted are exactly these, and that every block is in one place.
    ///
    /// # Errors
    /// Names the first block that is leaked, owned too often, or in two places.
    pub(super) fn check(
        &self,
        owned: impl Iterator<Item = u32>,
        is_cached: impl Fn(u32) -> bool,
    ) -> Result<(), String> {
        let mut owners = vec![0_u32; self.owners.len()];
        owned.for_each(|block| owners[block as usize] += 1);
        let mut free = vec![0_u32; self.owners.len()];
        for &block in self.free.iter().chain(self.idle.values()) {
            free[block as usize] += 1;
        }
        for (block, ((&expected, &counted), &free)) in owners.iter().zip(&self.owners).zip(&free).enumerate() {
            if expected != counted {
                return Err(format!("block {block} has {expected} owners, but the pool counts {counted}"));
            }
            if free != u32::from(counted == 0) {
                return Err(format!("block {block} has {counted} owners and is {free} times in the free list"));
            }
        }
        if let Some(block) = self.free.iter().find(|&&block| is_cached(block)) {
            return Err(format!("block {block} is cached and in the list of blocks without content"));
        }
        for (&since, &block) in &self.idle {
            if !is_cached(block) || self.idle_since[block as usize] != since {
                return Err(format!("block {block} is idle since {since}, but isn't cached or knows another time"));
            }
        }
        Ok(())
    }
}
