//! Memory that begins at a cache line, so that no register is loaded from two: a load of 64 bytes that crosses a line costs two.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// A cache line.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Line {
    /// Lines that hold `len` elements.
    pub(crate) fn count<T>(len: usize) -> usize {
        const { assert!(align_of::<T>() <= align_of::<Self>()) };
        len.saturating_mul(size_of::<T>()).div_ceil(size_of::<Self>())
    }

    /// Zeros for `len` elements. They are resident at once: std's allocator fills memory of this alignment by hand.
    pub(crate) fn zeroed<T>(len: usize) -> Vec<Self> {
        vec![Self([0; 64]); Self::count::<T>(len)]
    }
}

/// Elements, the first at a cache line.
#[derive(Debug, Clone)]
pub(crate) struct Lines<T> {
    lines: Vec<Line>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Lines<T> {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self { lines: Line::zeroed::<T>(len), len, elements: PhantomData }
    }

    /// Changes the length. New elements are zeros or what was there before.
    pub(crate) fn resize(&mut self, len: usize) {
        self.lines.resize(Line::count::<T>(len), Line([0; 64]));
        self.len = len;
    }
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, elements: PhantomData }
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
