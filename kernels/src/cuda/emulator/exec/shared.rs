//! A block's shared memory, and who touched it last.
//!
//! Races are found with vector clocks. A warp has a clock that ticks at each of its barriers; at a barrier of the block,
//! each warp that takes part learns the clocks of the others. An earlier access of another thread is ordered before this
//! one if this warp knows that clock, or, inside a warp, if the warp has passed a `bar.warp.sync` (or a barrier) since.
//! Exchanges between lanes order nothing, as on devices since Volta. A `bar.warp.sync` of a part of a warp counts for
//! all of it, and fences for nothing: orders made of flags and fences are reported as races.

use super::super::error::Trap;
use super::super::ir::LANES;
use super::super::memory::{Checks, Window, WindowMut};

/// Fresh shared memory, as in global memory.
const POISON: u8 = 0xff;
const NOBODY: u16 = u16::MAX;
/// Binary logarithm of the bytes that share a cell at first.
const COARSEST: u32 = 4;

/// One access: by whom and when.
#[derive(Clone, Copy)]
struct Touch {
    thread: u16,
    clock: u32,
}

const NEVER: Touch = Touch { thread: NOBODY, clock: 0 };

/// The history of some bytes.
#[derive(Clone, Copy)]
struct Cell {
    write: Touch,
    /// Two threads that have read since; a third would tell nothing more.
    reads: [Touch; 2],
    /// The last write was atomic or volatile.
    strong_write: bool,
    /// So were the reads.
    strong_reads: bool,
    written: bool,
    /// An asynchronous copy to it is under way.
    in_flight: bool,
}

const FRESH: Cell = Cell {
    write: NEVER,
    reads: [NEVER; 2],
    strong_write: false,
    strong_reads: false,
    written: false,
    in_flight: false,
};

/// How a thread touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touching {
    Read {
        strong: bool,
    },
    Write {
        strong: bool,
    },
    /// Reads and writes in one.
    Atomic,
    /// The start of an asynchronous copy.
    CopyStart,
    /// Its end.
    CopyEnd,
}

/// A block's shared memory.
pub(super) struct Shared {
    bytes: Vec<u8>,
    /// A cell for every `1 << grain` bytes, if anything is checked.
    cells: Vec<Cell>,
    /// Starts coarse and is refined, once and for all blocks, when a narrower access comes: most kernels touch their
    /// shared memory in units of 4 or 16 bytes only.
    grain: u32,
    checks: Checks,
    /// `clocks[warp][other]`: what `warp` knows of `other`'s clock.
    clocks: Vec<Vec<u32>>,
}

impl Shared {
    pub(super) fn new(bytes: usize, threads: usize, checks: Checks) -> Self {
        let warps = threads.div_ceil(LANES);
        let grain = COARSEST;
        let count = if checks.races || checks.uninitialised { bytes.div_ceil(1 << grain) } else { 0 };
        let (bytes, clocks) = (vec![POISON; bytes], vec![vec![0; warps]; warps]);
        Self { bytes, cells: vec![FRESH; count], grain, checks, clocks }
    }

    /// Forgets everything, for the next block.
    pub(super) fn reset(&mut self) {
        self.bytes.fill(POISON);
        self.cells.fill(FRESH);
        for (warp, clocks) in self.clocks.iter_mut().enumerate() {
            clocks.fill(0);
            // Zero is what others know of a warp that they have never met.
            clocks[warp] = 1;
        }
    }

    /// All of it, if no access has to be recorded.
    pub(super) fn window(&self) -> Option<Window<'_>> {
        self.cells.is_empty().then_some(Window { start: 0, bytes: &self.bytes, written: &[] })
    }

    /// The same, to be written.
    pub(super) fn window_mut(&mut self) -> Option<WindowMut<'_>> {
        self.cells.is_empty().then_some(WindowMut { start: 0, bytes: &mut self.bytes, written: &mut [] })
    }

    /// `bytes` (a power of two) at `address`, aligned to that, after all checks.
    #[inline]
    pub(super) fn touch(
        &mut self,
        address: u64,
        bytes: usize,
        warp: usize,
        lane: usize,
        how: Touching,
    ) -> Result<&mut [u8], Trap> {
        if address >= self.bytes.len() as u64 || self.bytes.len() - (address as usize) < bytes {
            let what = format!("access outside of the block's {} bytes of shared memory", self.bytes.len());
            return Err(Trap::at(lane as u32, address, what));
        }
        if address & (bytes as u64 - 1) != 0 {
            return Err(Trap::at(lane as u32, address, "misaligned access to shared memory"));
        }
        let at = address as usize;
        if !self.cells.is_empty() {
            if bytes < 1 << self.grain {
                self.refine(bytes.trailing_zeros());
            }
            for cell in at >> self.grain..(at + bytes) >> self.grain {
                self.check(cell, warp, lane, how)?;
            }
        }
        Ok(&mut self.bytes[at..at + bytes])
    }

    /// Splits the cells; each part has the history of the whole.
    #[cold]
    fn refine(&mut self, grain: u32) {
        let parts = 1 << (self.grain - grain);
        self.cells = self.cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, parts)).collect();
        self.grain = grain;
    }

    fn check(&mut self, at: usize, warp: usize, lane: usize, how: Touching) -> Result<(), Trap> {
        let thread = (warp * LANES + lane) as u16;
        let knows = self.clocks[warp].as_slice();
        let address = (at << self.grain) as u64;
        let cell = &mut self.cells[at];
        let (reads, writes, strong) = match how {
            Touching::Read { strong } => (true, false, strong),
            Touching::Write { strong } => (false, true, strong),
            Touching::Atomic => (true, true, true),
            Touching::CopyStart | Touching::CopyEnd => (false, true, false),
        };
        let fault = |what: String| Err(Trap::at(lane as u32, address, what));
        if cell.in_flight && how != Touching::CopyEnd {
            return fault("shared memory that an asynchronous copy has not been waited for".to_owned());
        }
        if self.checks.uninitialised && reads && !cell.written {
            return fault("read of shared memory that nobody has written".to_owned());
        }
        let now = Touch { thread, clock: knows[warp] };
        // Ordered before this access: by the same thread, or at a clock that this warp has learned of.
        let ordered = |touch: Touch| {
            let other = usize::from(touch.thread) / LANES;
            touch.thread == NOBODY
                || touch.thread == thread
                || if other == warp { touch.clock < now.clock } else { touch.clock <= knows[other] }
        };
        if self.checks.races {
            let other = match () {
                () if !(ordered(cell.write) || strong && cell.strong_write) => Some(("write", cell.write.thread)),
                () if writes && !(strong && cell.strong_reads) => {
                    cell.reads.iter().find(|read| !ordered(**read)).map(|read| ("read", read.thread))
                }
                () => None,
            };
            if let Some((did, other)) = other {
                let this = if writes { "write" } else { "read" };
                return fault(format!(
                    "race: a {this} of shared memory with a {did} of thread {other} and no barrier between"
                ));
            }
        }
        if writes {
            cell.write = now;
            cell.strong_write = strong;
            cell.written = true;
            cell.reads = [NEVER; 2];
            cell.strong_reads = true;
            cell.in_flight = how == Touching::CopyStart;
        }
        if reads {
            if !strong {
                cell.strong_reads = false;
            }
            let [first, second] = &mut cell.reads;
            let slot = match () {
                () if ordered(*first) => first,
                () => second,
            };
            *slot = now;
        }
        Ok(())
    }

    /// A warp passes a `bar.warp.sync`.
    pub(super) fn warp_barrier(&mut self, warp: usize) {
        self.clocks[warp][warp] += 1;
    }

    /// What a warp knows, to be handed to those that wait for it; its later accesses aren't part of that.
    pub(super) fn arrive(&mut self, warp: usize) -> Vec<u32> {
        let known = self.clocks[warp].clone();
        self.clocks[warp][warp] += 1;
        known
    }

    /// A warp learns what others knew when they arrived.
    pub(super) fn learn(&mut self, warp: usize, known: &[u32]) {
        for (other, (mine, theirs)) in self.clocks[warp].iter_mut().zip(known).enumerate() {
            if other != warp {
                *mine = (*mine).max(*theirs);
            }
        }
    }
}
