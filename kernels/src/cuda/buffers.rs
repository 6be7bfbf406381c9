//! What a [`Gpu`](super::Gpu) owns for its callers: device memory, host memory that it reads, recorded graphs. Each
//! keeps the device open and gives itself back when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::driver::{Captured, Event, Pinned};
use super::error::Result;
use super::gpu::{Backend, Inner};
use super::types::KeptStep;

/// Memory of a device. Dropping it waits for the work that may use it.
#[derive(Debug)]
pub struct DeviceBuffer {
    inner: Arc<Inner>,
    address: u64,
    len: usize,
}

impl DeviceBuffer {
    pub(super) fn new(inner: Arc<Inner>, address: u64, len: usize) -> Self {
        Self { inner, address, len }
    }

    /// Where it is on the device: for the arguments of kernels. At least 256-byte aligned.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is a buffer of nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        match &self.inner.backend {
            Backend::Driver(driver) => driver.free(self.address),
            Backend::Emulated(emulated) => emulated.free(self.address),
        }
        self.inner.note_freed(self.len);
    }
}

/// Host memory for uploads that go on while the host does something else: pinned on a device, plain when emulated.
#[derive(Debug)]
pub struct HostBuffer {
    inner: Arc<Inner>,
    memory: HostMemory,
    len: usize,
    /// A copy from it began, and the bytes were not asked for in order to change them since.
    pending: AtomicBool,
}

#[derive(Debug)]
enum HostMemory {
    Pinned { memory: Pinned, event: Event },
    Plain(Vec<u8>),
}

impl HostBuffer {
    pub(super) fn pinned(inner: Arc<Inner>, memory: Pinned, event: Event, len: usize) -> Self {
        Self { inner, memory: HostMemory::Pinned { memory, event }, len, pending: AtomicBool::new(false) }
    }

    pub(super) fn plain(inner: Arc<Inner>, len: usize) -> Self {
        Self { inner, memory: HostMemory::Plain(vec![0; len]), len, pending: AtomicBool::new(false) }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: the allocation is of at least `len` bytes, was zeroed when it was made, and lives as long as `self`.
            // The device only reads it, except through `Gpu::download`, which holds the slice of `as_mut_slice`.
            HostMemory::Pinned { memory, .. } => unsafe { std::slice::from_raw_parts(memory.as_ptr(), self.len) },
            HostMemory::Plain(bytes) => bytes,
        }
    }

    /// The bytes, to be changed; waits until the device has read what was uploaded from here.
    ///
    /// # Errors
    /// When the device is lost meanwhile.
    pub fn as_mut_slice(&mut self) -> Result<&mut [u8]> {
        self.wait()?;
        // Only here, where nobody else can begin a copy between the wait and this.
        *self.pending.get_mut() = false;
        match &mut self.memory {
            HostMemory::Pinned { memory, .. } => {
                // SAFETY: as above; `self` is borrowed exclusively, and no copy that reads the bytes is under way.
                Ok(unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), self.len) })
            }
            HostMemory::Plain(bytes) => Ok(bytes),
        }
    }

    /// Waits until the device has read what was uploaded from here.
    ///
    /// # Errors
    /// When the device is lost meanwhile.
    pub fn wait(&self) -> Result<()> {
        match (&self.memory, &self.inner.backend) {
            (HostMemory::Pinned { event, .. }, Backend::Driver(driver)) if self.pending.load(Ordering::Acquire) => {
                self.inner.note(driver.wait(event))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(super) fn event(&self) -> Option<&Event> {
        match &self.memory {
            HostMemory::Pinned { event, .. } => Some(event),
            HostMemory::Plain(_) => None,
        }
    }

    pub(super) fn set_pending(&self) {
        self.pending.store(true, Ordering::Release);
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // A lost device reads no more.
        let _ = self.wait();
        if let (HostMemory::Pinned { memory, event }, Backend::Driver(driver)) = (&self.memory, &self.inner.backend) {
            driver.destroy_event(event);
            driver.unpin(memory);
        }
    }
}

/// Launches, fills and copies that were recorded once, for [`Gpu::replay`](super::Gpu::replay).
#[derive(Debug)]
pub struct Graph {
    inner: Arc<Inner>,
    recorded: Recorded,
}

/// In the backend's form.
#[derive(Debug)]
pub(super) enum Recorded {
    Driver(Captured),
    Emulated(Vec<KeptStep>),
}

impl Graph {
    pub(super) fn new(inner: Arc<Inner>, recorded: Recorded) -> Self {
        Self { inner, recorded }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(super) fn recorded(&self) -> &Recorded {
        &self.recorded
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let (Backend::Driver(driver), Recorded::Driver(captured)) = (&self.inner.backend, &self.recorded) {
            driver.destroy_graph(captured);
        }
    }
}
