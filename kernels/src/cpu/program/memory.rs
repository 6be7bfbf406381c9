//! Zeroed memory that all workers can reach, each its own part.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

/// Bytes of a cache line.
const LINE: usize = 64;

/// What one worker owns among the others' own.
pub(super) struct Own<T>(UnsafeCell<T>);

// SAFETY: access goes through `get`, whose contract forbids it to two threads at once.
unsafe impl<T: Send> Sync for Own<T> {}

impl<T> Own<T> {
    pub(super) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// # Safety
    /// No other reference to the value lives while the result does.
    #[allow(clippy::mut_from_ref, reason = "the cell is there for it; exclusivity is the contract")]
    pub(super) unsafe fn get(&self) -> &mut T {
        // SAFETY: exclusive by contract.
        unsafe { &mut *self.0.get() }
    }
}

/// Elements with shared mutable access, the first at a cache line: a register that is loaded from two costs two loads.
pub(super) struct Region<T> {
    /// A line more than needed. Their type asks for no alignment: std's allocator fills zeroed memory of large alignments by hand,
    /// which makes all of it resident, and takes that of small ones as the system gives it.
    bytes: Box<[UnsafeCell<[u8; LINE]>]>,
    /// Bytes before the first element; less than a line.
    skipped: usize,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: access goes through the unsafe methods below, whose contracts forbid conflicting access from two threads.
unsafe impl<T: Send> Sync for Region<T> {}

impl<T: Pod> Region<T> {
    /// `len` zeros. The system gives their pages when they are first touched.
    pub(super) fn zeroed(len: usize) -> Self {
        const { assert!(align_of::<T>() <= LINE) };
        let num_lines = len.saturating_mul(size_of::<T>()).div_ceil(LINE) + 1;
        let bytes = Box::into_raw(bytemuck::zeroed_vec::<[u8; LINE]>(num_lines).into_boxed_slice());
        // SAFETY: `UnsafeCell` has the layout of what it holds, so this is the same allocation with the same layout.
        let bytes = unsafe { Box::from_raw(bytes as *mut [UnsafeCell<[u8; LINE]>]) };
        let skipped = bytes.as_ptr().cast::<u8>().align_offset(LINE);
        Self { bytes, skipped, len, elements: PhantomData }
    }

    /// The address of element `index`, which may be one past the end.
    pub(super) fn at(&self, index: usize) -> *mut T {
        self.range_at(index..index)
    }

    /// The address of the first of these elements.
    pub(super) fn range_at(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "region: {range:?} of {}", self.len);
        // In bounds: checked above.
        let first = self.bytes.as_ptr().cast_mut().cast::<u8>().wrapping_add(self.skipped).cast::<T>();
        first.wrapping_add(range.start)
    }

    /// Copies elements, which may overlap.
    pub(super) fn copy_within(&mut self, from: Range<usize>, to: usize) {
        let len = from.len();
        let (from, to) = (self.range_at(from), self.range_at(to..to + len));
        // SAFETY: both are in bounds by the line above, `copy` lets them overlap, and `&mut self` keeps all others out.
        unsafe { std::ptr::copy(from, to, len) };
    }

    /// The elements in this range.
    pub(super) fn get_mut(&mut self, range: Range<usize>) -> &mut [T] {
        // SAFETY: `&mut self` keeps all others out.
        unsafe { self.slice_mut(range) }
    }

    /// # Safety
    /// No thread writes to the range while the result lives.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        let len = range.len();
        // SAFETY: in bounds by `range_at`, any bytes are a `T`, lines are aligned for it; nobody writes by contract.
        unsafe { std::slice::from_raw_parts(self.range_at(range), len) }
    }

    /// # Safety
    /// No other reference to the range lives while the result does.
    #[allow(clippy::mut_from_ref, reason = "the cells are there for it; exclusivity is the contract")]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        let len = range.len();
        // SAFETY: in bounds by `range_at`, any bytes are a `T`, lines are aligned for it; exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.range_at(range), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident bytes of this process.
    fn resident() -> Option<usize> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(statm.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
    }

    #[test]
    fn regions_are_aligned_and_cost_nothing_until_they_are_touched() {
        const SIZE: usize = 1 << 30;
        let before = resident();
        let region = Region::<u8>::zeroed(SIZE);
        assert!(region.at(0).addr().is_multiple_of(LINE));
        let (Some(before), Some(after)) = (before, resident()) else {
            eprintln!("SKIP: the resident memory isn't known here");
            return;
        };
        // Other tests take memory meanwhile, but not that much.
        assert!(after < before + SIZE / 4, "{} MiB became resident", (after - before) >> 20);
        drop(region);
    }

    #[test]
    fn copies_move_just_their_elements() {
        let mut region = Region::<u16>::zeroed(256);
        region.get_mut(0..256).iter_mut().zip(0..).for_each(|(x, index)| *x = index);
        region.copy_within(64..128, 192);
        let elements = region.get_mut(0..256);
        assert!(elements[..192].iter().zip(0..).all(|(&x, index)| x == index));
        assert!(elements[192..].iter().zip(64..).all(|(&x, index)| x == index));
        let beyond = std::panic::AssertUnwindSafe(|| region.range_at(250..257));
        assert!(std::panic::catch_unwind(beyond).is_err());
    }
}
