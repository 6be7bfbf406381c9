//! The device's global memory: allocations far apart, so that a stray address meets nothing.
//!
//! Each allocation has a slot of its own of 64 GiB of address space. An address thus names its allocation at once, a
//! pointer that runs off one end never reaches a neighbour, and a freed slot is reused only after a thousand others.
//! With [`Checks::uninitialised`] each byte has a bit that says whether anyone has written it.

use std::collections::VecDeque;

use super::error::EmulatorError;

const SLOT_SHIFT: u32 = 36;
/// An allocation starts this far into its slot: aligned to what `cuMemAlloc` promises and no further.
const SLOT_OFFSET: u64 = 256;
/// Freed slots wait in line behind this many others, so that a dangling pointer is found out.
const QUARANTINE: usize = 1024;
/// Fresh memory: an all-ones pattern is NaN as a float and -1 as an integer.
const POISON: u8 = 0xff;

/// What the emulator looks for beyond accesses out of bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of global or shared memory that nobody has written.
    pub uninitialised: bool,
    /// Accesses of two threads of a block to the same bytes of shared memory, one of them a write, that no barrier
    /// orders.
    pub races: bool,
    /// Instructions that all warps of a launch may run together before it counts as endless.
    pub max_steps: u64,
}

impl Checks {
    /// Everything on.
    pub const ALL: Self = Self { uninitialised: true, races: true, max_steps: 1 << 32 };
    /// Only what would crash on a GPU: for speed.
    pub const FAST: Self = Self { uninitialised: false, races: false, max_steps: 1 << 32 };
}

struct Allocation {
    bytes: Vec<u8>,
    /// A bit a byte: written. Empty if nobody asked for it.
    written: Vec<u64>,
    used: usize,
}

/// The device's address space.
pub struct GlobalMemory {
    slots: Vec<Option<Allocation>>,
    vacant: VecDeque<usize>,
    capacity: usize,
    used: usize,
    checks: Checks,
}

/// Why a thread may not touch some bytes.
pub(super) enum Denied {
    Unmapped,
    Misaligned,
    Uninitialised,
}

impl Denied {
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Unmapped => "access outside of any allocation",
            Self::Misaligned => "misaligned access",
            Self::Uninitialised => "read of global memory that nobody has written",
        }
    }
}

impl GlobalMemory {
    /// Memory of `capacity` bytes with every check on.
    pub fn new(capacity: usize) -> Self {
        Self::with_checks(capacity, Checks::ALL)
    }

    /// Memory of `capacity` bytes whose launches make the given checks.
    pub fn with_checks(capacity: usize, checks: Checks) -> Self {
        // Slot 0 holds the windows of the other spaces.
        Self { slots: vec![None], vacant: VecDeque::new(), capacity, used: 0, checks }
    }

    /// The checks that launches on this memory make.
    pub fn checks(&self) -> Checks {
        self.checks
    }

    /// Allocates `bytes`, aligned to 256 bytes and poisoned; None if the capacity is exhausted.
    pub fn alloc(&mut self, bytes: usize) -> Option<u64> {
        // The driver's granularity, so that many small buffers cost what they cost there.
        let used = bytes.checked_next_multiple_of(512)?;
        if self.used.checked_add(used)? > self.capacity || bytes as u64 >= 1 << (SLOT_SHIFT - 1) {
            return None;
        }
        let written = if self.checks.uninitialised { vec![0; bytes.div_ceil(64)] } else { Vec::new() };
        let allocation = Allocation { bytes: vec![POISON; bytes], written, used };
        let slot = match self.vacant.len() > QUARANTINE {
            true => self.vacant.pop_front()?,
            false => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        *self.slots.get_mut(slot)? = Some(allocation);
        self.used += used;
        Some(((slot as u64) << SLOT_SHIFT) + SLOT_OFFSET)
    }

    /// Frees the allocation that starts at `address`; nothing happens if none does.
    pub fn free(&mut self, address: u64) {
        let slot = (address >> SLOT_SHIFT) as usize;
        if address & ((1 << SLOT_SHIFT) - 1) != SLOT_OFFSET {
            return;
        }
        if let Some(allocation) = self.slots.get_mut(slot).and_then(Option::take) {
            self.used -= allocation.used;
            self.vacant.push_back(slot);
        }
    }

    /// Bytes allocated, in the driver's granularity.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies memory to the host. Bytes that nobody has written come as poison.
    ///
    /// # Errors
    /// If the range isn't inside one allocation.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), EmulatorError> {
        let (allocation, at) = self.find(address, into.len()).ok_or_else(|| outside(address, into.len()))?;
        into.copy_from_slice(&allocation.bytes[at..at + into.len()]);
        Ok(())
    }

    /// Copies host bytes to memory.
    ///
    /// # Errors
    /// If the range isn't inside one allocation.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), EmulatorError> {
        let (allocation, at) = self.find_mut(address, bytes.len()).ok_or_else(|| outside(address, bytes.len()))?;
        allocation.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        mark(&mut allocation.written, at, bytes.len());
        Ok(())
    }

    /// Copies `bytes` from one place to another; what is uninitialised stays so. The ranges may overlap.
    ///
    /// # Errors
    /// If a range isn't inside one allocation.
    pub fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), EmulatorError> {
        let (source, at) = self.find(from, bytes).ok_or_else(|| outside(from, bytes))?;
        let data = source.bytes[at..at + bytes].to_vec();
        let written: Vec<bool> = match source.written.is_empty() {
            true => Vec::new(),
            false => (at..at + bytes).map(|byte| source.written[byte / 64] >> (byte % 64) & 1 == 1).collect(),
        };
        let (target, at) = self.find_mut(to, bytes).ok_or_else(|| outside(to, bytes))?;
        target.bytes[at..at + bytes].copy_from_slice(&data);
        for (byte, written) in (at..).zip(written) {
            let bit = 1 << (byte % 64);
            match written {
                true => target.written[byte / 64] |= bit,
                false => target.written[byte / 64] &= !bit,
            }
        }
        Ok(())
    }

    fn find(&self, address: u64, bytes: usize) -> Option<(&Allocation, usize)> {
        let allocation = self.slots.get((address >> SLOT_SHIFT) as usize)?.as_ref()?;
        let at = offset_in(allocation, address, bytes)?;
        Some((allocation, at))
    }

    fn find_mut(&mut self, address: u64, bytes: usize) -> Option<(&mut Allocation, usize)> {
        let allocation = self.slots.get_mut((address >> SLOT_SHIFT) as usize)?.as_mut()?;
        let at = offset_in(allocation, address, bytes)?;
        Some((allocation, at))
    }

    /// The allocation that an address is in, to look at many of its bytes at once.
    #[inline]
    pub(super) fn window(&self, address: u64) -> Option<Window<'_>> {
        let slot = address >> SLOT_SHIFT;
        let allocation = self.slots.get(slot as usize)?.as_ref()?;
        let start = (slot << SLOT_SHIFT) + SLOT_OFFSET;
        Some(Window { start, bytes: &allocation.bytes, written: &allocation.written })
    }

    /// The same, to be written.
    #[inline]
    pub(super) fn window_mut(&mut self, address: u64) -> Option<WindowMut<'_>> {
        let slot = address >> SLOT_SHIFT;
        let allocation = self.slots.get_mut(slot as usize)?.as_mut()?;
        let start = (slot << SLOT_SHIFT) + SLOT_OFFSET;
        Some(WindowMut { start, bytes: &mut allocation.bytes, written: &mut allocation.written })
    }

    /// A thread's read of `bytes` (a power of two up to 64), which must be aligned to that.
    #[inline]
    pub(super) fn load(&self, address: u64, bytes: usize) -> Result<&[u8], Denied> {
        let (allocation, at) = self.find(address, bytes).ok_or(Denied::Unmapped)?;
        if address & (bytes as u64 - 1) != 0 {
            return Err(Denied::Misaligned);
        }
        if !allocation.written.is_empty() {
            let wanted = low_bits(bytes);
            if allocation.written[at / 64] >> (at % 64) & wanted != wanted {
                return Err(Denied::Uninitialised);
            }
        }
        Ok(&allocation.bytes[at..at + bytes])
    }

    /// A thread's write of `bytes` (a power of two up to 64), which must be aligned to that; they count as written.
    #[inline]
    pub(super) fn store(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Denied> {
        let (allocation, at) = self.find_mut(address, bytes).ok_or(Denied::Unmapped)?;
        if address & (bytes as u64 - 1) != 0 {
            return Err(Denied::Misaligned);
        }
        if !allocation.written.is_empty() {
            allocation.written[at / 64] |= low_bits(bytes) << (at % 64);
        }
        Ok(&mut allocation.bytes[at..at + bytes])
    }
}

/// Memory that several lanes are likely to read.
pub(super) struct Window<'m> {
    pub(super) start: u64,
    pub(super) bytes: &'m [u8],
    /// A bit a byte, or empty.
    pub(super) written: &'m [u64],
}

impl Window<'_> {
    /// The `N` bytes at an address if nothing is wrong with reading them; what is wrong is found the slow way.
    #[inline(always)]
    pub(super) fn read<const N: usize>(&self, address: u64) -> Option<&[u8; N]> {
        let at = usize::try_from(address.wrapping_sub(self.start)).ok()?;
        let bytes = self.bytes.get(at..)?.first_chunk::<N>()?;
        let wanted = low_bits(N);
        let known = self.written.is_empty() || (self.written.get(at / 64)? >> (at % 64)) & wanted == wanted;
        (known && address.is_multiple_of(N as u64)).then_some(bytes)
    }
}

/// Memory that several lanes are likely to write.
pub(super) struct WindowMut<'m> {
    pub(super) start: u64,
    pub(super) bytes: &'m mut [u8],
    pub(super) written: &'m mut [u64],
}

impl WindowMut<'_> {
    /// Writes `N` bytes if nothing is wrong with that, and says so.
    #[inline(always)]
    pub(super) fn write<const N: usize>(&mut self, address: u64, bytes: &[u8; N]) -> bool {
        let Ok(at) = usize::try_from(address.wrapping_sub(self.start)) else { return false };
        let Some(target) = self.bytes.get_mut(at..).and_then(|bytes| bytes.first_chunk_mut::<N>()) else {
            return false;
        };
        if !address.is_multiple_of(N as u64) {
            return false;
        }
        *target = *bytes;
        if let Some(written) = self.written.get_mut(at / 64) {
            *written |= low_bits(N) << (at % 64);
        }
        true
    }
}

#[inline]
fn offset_in(allocation: &Allocation, address: u64, bytes: usize) -> Option<usize> {
    let at = (address & ((1 << SLOT_SHIFT) - 1)).checked_sub(SLOT_OFFSET)? as usize;
    (at + bytes <= allocation.bytes.len()).then_some(at)
}

#[inline]
fn low_bits(bits: usize) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn mark(written: &mut [u64], at: usize, bytes: usize) {
    if written.is_empty() {
        return;
    }
    let mut byte = at;
    while byte < at + bytes {
        let span = (64 - byte % 64).min(at + bytes - byte);
        written[byte / 64] |= low_bits(span) << (byte % 64);
        byte += span;
    }
}

fn outside(address: u64, bytes: usize) -> EmulatorError {
    EmulatorError::Memory { address, bytes, what: "not inside one allocation".to_owned() }
}
