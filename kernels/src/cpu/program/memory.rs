//! Zeroed memory that all workers can reach, each its own part.

use std::cell::UnsafeCell;
use std::ops::Range;

/// A boxed slice with shared mutable access.
pub(super) struct Region<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: access goes through the unsafe methods below, whose contracts forbid conflicting access from two threads.
unsafe impl<T: Send> Sync for Region<T> {}

impl<T> Region<T> {
    /// Takes over the elements.
    pub(super) fn new(elements: Vec<T>) -> Self {
        let boxed = Box::into_raw(elements.into_boxed_slice());
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, so this is the same allocation with the same layout.
        let cells = unsafe { Box::from_raw(boxed as *mut [UnsafeCell<T>]) };
        Self { cells }
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

/// A cache line of bytes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

impl Region<Line> {
    /// Zeroed lines. The system gives their pages when they are first touched.
    pub(super) fn zeroed(num_bytes: usize) -> Self {
        Self::new(bytemuck::zeroed_vec(num_bytes.div_ceil(size_of::<Line>())))
    }

    /// The address of the first of `len` bytes.
    pub(super) fn byte_at(&self, start: usize, len: usize) -> *mut u8 {
        let size = size_of_val(&*self.cells);
        assert!(start <= size && len <= size - start, "region: bytes out of bounds");
        // In bounds: checked above.
        self.cells.as_ptr().cast_mut().cast::<u8>().wrapping_add(start)
    }

    /// Copies `len` bytes. All three are multiples of a line.
    pub(super) fn copy_bytes(&mut self, from: usize, to: usize, len: usize) {
        let size = size_of::<Line>();
        assert!([from, to, len].iter().all(|bytes| bytes.is_multiple_of(size)), "region: a part of a line is copied");
        for index in 0..len / size {
            let line = *self.cells[from / size + index].get_mut();
            *self.cells[to / size + index].get_mut() = line;
        }
    }

    /// # Safety
    /// No thread writes to the range while the result lives.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let start = self.byte_at(range.start, range.len());
        // SAFETY: in bounds by the line above; nobody writes by contract.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }
}
