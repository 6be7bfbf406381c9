//! Zeroed memory that all workers can reach, each its own part.

use std::cell::UnsafeCell;
use std::ops::Range;

/// A boxed slice with shared mutable access.
pub(super) struct Region<T> {
    cells: Box<[UnsafeCell<T>]>,
    /// Bytes before the first one in use; 0 but for lines.
    skipped: usize,
}

// SAFETY: access goes through the unsafe methods below, whose contracts forbid conflicting access from two threads.
unsafe impl<T: Send> Sync for Region<T> {}

impl<T> Region<T> {
    /// Takes over the elements.
    pub(super) fn new(elements: Vec<T>) -> Self {
        let boxed = Box::into_raw(elements.into_boxed_slice());
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, so this is the same allocation with the same layout.
        let cells = unsafe { Box::from_raw(boxed as *mut [UnsafeCell<T>]) };
        Self { cells, skipped: 0 }
    }

    /// The address of element `index`, which may be one past the end.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.cells.len(), "region: index out of bounds");
        // In bounds: checked above.
        self.cells.as_ptr().cast_mut().cast::<T>().wrapping_add(index)
    }

    /// # Safety
    /// No thread writes to the range while the result lives.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: in bounds by the line above; nobody writes by contract.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<T>(), cells.len()) }
    }

    /// # Safety
    /// No other reference to the range lives while the result does.
    #[allow(clippy::mut_from_ref, reason = "the cells are there for it; exclusivity is the contract")]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        // SAFETY: in bounds by the line above; exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast_mut().cast::<T>(), cells.len()) }
    }
}

/// As many bytes as a cache line. Its type asks for no alignment: std's allocator fills zeroed memory of large alignments by
/// hand, which makes all of it resident, and takes that of small ones as the system gives it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Line([u8; 64]);

impl Region<Line> {
    /// Zeroed lines, the first at a cache line. The system gives their pages when they are first touched.
    pub(super) fn zeroed(num_bytes: usize) -> Self {
        let size = size_of::<Line>();
        let mut region = Self::new(bytemuck::zeroed_vec(num_bytes.div_ceil(size) + 1));
        region.skipped = region.cells.as_ptr().cast::<u8>().align_offset(size);
        region
    }

    /// The address of the first of `len` bytes.
    pub(super) fn byte_at(&self, start: usize, len: usize) -> *mut u8 {
        // There is one line more than needed, and less than one is skipped.
        let size = size_of_val(&*self.cells) - size_of::<Line>();
        assert!(start <= size && len <= size - start, "region: bytes out of bounds");
        // In bounds: checked above.
        self.cells.as_ptr().cast_mut().cast::<u8>().wrapping_add(self.skipped + start)
    }

    /// Copies `len` bytes.
    pub(super) fn copy_bytes(&mut self, from: usize, to: usize, len: usize) {
        let (from, to) = (self.byte_at(from, len), self.byte_at(to, len));
        // SAFETY: both are in bounds by the line above, `copy` lets them overlap, and `&mut self` keeps all others out.
        unsafe { std::ptr::copy(from, to, len) };
    }

    /// # Safety
    /// No thread writes to the range while the result lives.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let start = self.byte_at(range.start, range.len());
        // SAFETY: in bounds by the line above; nobody writes by contract.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
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
    fn lines_are_aligned_and_cost_nothing_until_they_are_touched() {
        const SIZE: usize = 1 << 30;
        let before = resident();
        let region = Region::<Line>::zeroed(SIZE);
        assert!(region.byte_at(0, SIZE).cast::<Line>().addr().is_multiple_of(64));
        let (Some(before), Some(after)) = (before, resident()) else {
            eprintln!("SKIP: the resident memory isn't known here");
            return;
        };
        // Other tests take memory meanwhile, but not that much.
        assert!(after < before + SIZE / 4, "{} MiB became resident", (after - before) >> 20);
        drop(region);
    }

    #[test]
    fn copies_move_just_their_bytes() {
        let mut region = Region::<Line>::zeroed(256);
        for index in 0..256 {
            // SAFETY: in bounds by `byte_at`; nobody else has the region.
            unsafe { region.byte_at(index, 1).write(index as u8) };
        }
        region.copy_bytes(64, 192, 64);
        // SAFETY: nobody writes.
        let bytes = unsafe { region.bytes(0..256) };
        assert!(bytes[..192].iter().enumerate().all(|(index, &byte)| byte == index as u8));
        assert_eq!(bytes[192..], (64..128).collect::<Vec<u8>>()[..]);
        let beyond = std::panic::AssertUnwindSafe(|| region.byte_at(250, 7));
        assert!(std::panic::catch_unwind(beyond).is_err());
    }
}
