//! One GPU: memory, launches, graphs, and the copies between host and device.
//!
//! [`Gpu`] is the only way to a device. What it is asked is checked here, once and for both backends: ranges of buffers,
//! shapes of launches, sizes of arguments. The backend is NVIDIA's driver or the emulator, which runs the embedded PTX on
//! the CPU; code above doesn't see which.
//!
//! All work of a `Gpu` goes into one queue, in the order of the calls: a launch sees what uploads and launches before it
//! wrote. Launches come back at once. Calls from several threads queue up one after another; while one thread records a
//! graph, the others wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use super::buffers::{DeviceBuffer, Graph, HostBuffer, Recorded};
use super::driver::{self, Driver};
use super::emulated::{self, Emulated};
use super::error::{CudaError, Result};
use super::types::{DeviceInfo, Emulation, Function, FunctionRecord, KeptStep, LaunchShape, MemoryInfo, Step, Target};

/// Threads of a block: in all, and by dimension.
const MAX_BLOCK: (u32, [u32; 3]) = (1024, [1024, 1024, 64]);
/// What the driver rounds an allocation up to, in bytes.
const GRANULARITY: usize = 512;
/// Blocks of a grid by dimension.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

/// Who computes.
#[derive(Debug)]
pub(super) enum Backend {
    Driver(Driver),
    Emulated(Emulated),
}

/// An open device; cheap to clone, and used from any thread.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
}

/// What clones, buffers and graphs share.
#[derive(Debug)]
pub(super) struct Inner {
    /// Of this process; no two are the same.
    id: u64,
    info: DeviceInfo,
    functions: Vec<FunctionRecord>,
    by_name: HashMap<String, usize>,
    pub(super) backend: Backend,
    /// Every launch is waited for (`CUDA_LAUNCH_BLOCKING=1`), so an error is that of the kernel just launched.
    blocking: bool,
    queue: Mutex<Queue>,
    /// Somebody stopped recording.
    turn: Condvar,
    /// The first error of a device that can't be used any more.
    lost: OnceLock<CudaError>,
    /// Bytes of the device's memory that this process has, through whichever `Gpu`.
    taken: Arc<AtomicUsize>,
}

/// Who may append to the queue, and what is in it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The thread that records a graph.
    recorder: Option<ThreadId>,
    /// What the emulated device recorded.
    recorded: Vec<KeptStep>,
    /// Launches so far, a replay counts as two: it is never certain which kernel of it failed.
    launched: u64,
    /// How many of them are known to have ended.
    ended: u64,
    /// The function launched last.
    last: Option<usize>,
}

impl Gpu {
    /// Opens a device: loads the kernels that fit it and resolves every function.
    ///
    /// # Errors
    /// Where there is no driver, no such device, a driver or device that is too old, or the device refuses.
    pub fn open(target: Target) -> Result<Self> {
        match target {
            Target::Device(index) => {
                let driver::Opened { driver, info, functions } = driver::open(index)?;
                Ok(Self::new(Backend::Driver(driver), info, functions, taken_of(index)))
            }
            Target::Emulated => Self::emulated(&Emulation::default()),
        }
    }

    /// A device that the CPU emulates.
    ///
    /// # Errors
    /// For a capability that no PTX was made for.
    pub fn emulated(emulation: &Emulation) -> Result<Self> {
        let emulated::Opened { emulated, info, functions } = emulated::open(emulation)?;
        Ok(Self::new(Backend::Emulated(emulated), info, functions, Arc::default()))
    }

    fn new(backend: Backend, info: DeviceInfo, functions: Vec<FunctionRecord>, taken: Arc<AtomicUsize>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let by_name = functions.iter().enumerate().map(|(index, record)| (record.kernel.name.clone(), index)).collect();
        let blocking = std::env::var_os("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value == "1");
        let inner = Inner {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            info,
            functions,
            by_name,
            backend,
            blocking,
            queue: Mutex::default(),
            turn: Condvar::new(),
            lost: OnceLock::new(),
            taken,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// How much memory there is now.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.inner.alive()?;
        self.inner.note(match &self.inner.backend {
            Backend::Driver(driver) => driver.memory(),
            Backend::Emulated(emulated) => Ok(emulated.memory()),
        })
    }

    /// Bytes of the device's memory that this process has allocated, through this `Gpu` and all others of the same device. An
    /// emulated device is one of its own.
    pub fn taken(&self) -> usize {
        self.inner.taken.load(Ordering::Relaxed)
    }

    /// A kernel by its name. Ask once, when the model is loaded.
    ///
    /// # Errors
    /// [`CudaError::MissingFunction`] names it.
    pub fn function(&self, name: &str) -> Result<Function> {
        match self.inner.by_name.get(name) {
            Some(&index) => Ok(Function { gpu: self.inner.id, index }),
            None => Err(CudaError::MissingFunction { name: name.into(), archive: self.inner.info.kernels.clone() }),
        }
    }

    /// All kernels, by name.
    pub fn function_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.inner.functions.iter().map(|record| record.kernel.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Memory of the device, with unknown contents; at least 256-byte aligned.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with the numbers; [`CudaError::Recording`] while this thread records a graph.
    pub fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        drop(self.inner.outside_of_recording("alloc")?);
        // A buffer of nothing has an address as well.
        let wanted = bytes.max(1);
        let address = self.inner.note(match &self.inner.backend {
            Backend::Driver(driver) => driver.alloc(wanted),
            Backend::Emulated(emulated) => Ok(emulated.alloc(wanted)),
        })?;
        match address {
            Some(address) => {
                self.inner.taken.fetch_add(granules(bytes), Ordering::Relaxed);
                Ok(DeviceBuffer::new(Arc::clone(&self.inner), address, bytes))
            }
            None => {
                let MemoryInfo { free, total } = self.memory()?;
                Err(CudaError::OutOfMemory { wanted: bytes, free, total })
            }
        }
    }

    /// Copies to the device; returns when `bytes` may change again.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`], [`CudaError::OtherDevice`], [`CudaError::Recording`] while this thread records a graph, or
    /// a lost device.
    pub fn upload(&self, to: &DeviceBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = self.range("upload", to, offset, bytes.len())?;
        let queue = self.inner.outside_of_recording("upload")?;
        if bytes.is_empty() {
            return Ok(());
        }
        match &self.inner.backend {
            Backend::Emulated(emulated) => emulated.write(address, bytes),
            Backend::Driver(driver) => {
                // SAFETY: this call holds the slice until the device has read it: it ends with a wait. Where the wait
                // fails the device is lost and reads no more.
                let begun = unsafe { driver.begin_upload(address, bytes) };
                self.inner.note_locked(&queue, begun)?;
                self.inner.wait(driver, queue)
            }
        }
    }

    /// Copies from the device, after all work before it; returns when the bytes are there.
    ///
    /// # Errors
    /// As for [`Gpu::upload`]. Faults of earlier launches show here.
    pub fn download(&self, from: &DeviceBuffer, offset: usize, into: &mut [u8]) -> Result<()> {
        let address = self.range("download", from, offset, into.len())?;
        let queue = self.inner.outside_of_recording("download")?;
        if into.is_empty() {
            return Ok(());
        }
        match &self.inner.backend {
            Backend::Emulated(emulated) => emulated.read(address, into),
            Backend::Driver(driver) => {
                // SAFETY: this call holds the only reference to the slice until the device has written it: it ends with a
                // wait. Where the wait fails the device is lost and writes no more.
                let begun = unsafe { driver.begin_download(address, into) };
                self.inner.note_locked(&queue, begun)?;
                self.inner.wait(driver, queue)
            }
        }
    }

    /// Copies from buffer to buffer on the device. Can be recorded.
    ///
    /// # Errors
    /// As for [`Gpu::upload`], and [`CudaError::Overlap`].
    pub fn copy(
        &self,
        from: &DeviceBuffer,
        from_offset: usize,
        to: &DeviceBuffer,
        to_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        let source = self.range("copy from", from, from_offset, bytes)?;
        let target = self.range("copy to", to, to_offset, bytes)?;
        if source.abs_diff(target) < bytes as u64 {
            return Err(CudaError::Overlap { from: from_offset, to: to_offset, bytes });
        }
        self.submit(&Step::Copy { from: source, to: target, bytes })
    }

    /// Sets every byte of a buffer. Can be recorded.
    ///
    /// # Errors
    /// As for [`Gpu::upload`].
    pub fn fill(&self, buffer: &DeviceBuffer, byte: u8) -> Result<()> {
        let address = self.range("fill", buffer, 0, buffer.len())?;
        self.submit(&Step::Fill { address, bytes: buffer.len(), value: byte })
    }

    /// Appends a kernel to the queue; doesn't wait for it. `args` is the kernel's one parameter, a struct by value.
    ///
    /// Addresses in `args` are the caller's business: a kernel that leaves its buffers is a fault of the device.
    ///
    /// # Errors
    /// [`CudaError::Launch`] for a shape or a size of `args` that the kernel or the device doesn't take. A fault of the
    /// kernel itself shows in a later call that waits.
    pub fn launch<A: bytemuck::Pod>(&self, function: Function, shape: &LaunchShape, args: &A) -> Result<()> {
        let args = bytemuck::bytes_of(args);
        self.check_launch(function, shape, args.len())?;
        self.submit(&Step::Launch { function: function.index, shape: *shape, args })
    }

    /// Records what the closure appends to the queue, instead of running it.
    ///
    /// The graph keeps addresses, not buffers: those must live as long as it is replayed. The closure calls from this
    /// thread; calls of other threads wait for its end. It can't wait for the device, upload, download or allocate.
    ///
    /// # Errors
    /// What the closure returned, [`CudaError::Recording`] when this thread already records, or what the device says.
    pub fn capture(&self, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mut queue = self.inner.outside_of_recording("capture")?;
        if let Backend::Driver(driver) = &self.inner.backend {
            self.inner.note_locked(&queue, driver.begin_capture())?;
        }
        queue.recorder = Some(std::thread::current().id());
        drop(queue);
        let mut recording = Recording { inner: &self.inner, done: false };
        let outcome = record();
        let recorded = recording.end(outcome.is_ok());
        outcome?;
        Ok(Graph::new(Arc::clone(&self.inner), recorded?))
    }

    /// Appends everything that a graph recorded.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Recording`], or what the device says.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        if !Arc::ptr_eq(&self.inner, graph.inner()) {
            return Err(CudaError::OtherDevice { what: "replay: the graph" });
        }
        let mut queue = self.inner.outside_of_recording("replay")?;
        queue.launched += 2;
        let result = match (&self.inner.backend, graph.recorded()) {
            (Backend::Driver(driver), Recorded::Driver(captured)) => driver.replay(captured),
            (Backend::Emulated(emulated), Recorded::Emulated(steps)) => {
                steps.iter().try_for_each(|step| emulated.run(&step.step()))
            }
            _ => Err(CudaError::OtherDevice { what: "replay: the graph" }),
        };
        self.inner.note_locked(&queue, result)
    }

    /// Waits until everything in the queue is done.
    ///
    /// # Errors
    /// Faults of earlier launches; [`CudaError::Recording`] while this thread records.
    pub fn synchronize(&self) -> Result<()> {
        let queue = self.inner.outside_of_recording("synchronize")?;
        match &self.inner.backend {
            Backend::Driver(driver) => self.inner.wait(driver, queue),
            Backend::Emulated(_) => Ok(()),
        }
    }

    /// Host memory that the device reads at the link's speed while the host goes on; zeroed.
    ///
    /// # Errors
    /// When the host doesn't give so much pinned memory.
    pub fn staging(&self, bytes: usize) -> Result<HostBuffer> {
        drop(self.inner.outside_of_recording("staging")?);
        let inner = Arc::clone(&self.inner);
        match &self.inner.backend {
            Backend::Driver(driver) => {
                let event = self.inner.note(driver.event())?;
                match self.inner.note(driver.pin(bytes.max(1))) {
                    Ok(memory) => Ok(HostBuffer::pinned(inner, memory, event, bytes)),
                    Err(error) => {
                        driver.destroy_event(&event);
                        Err(error)
                    }
                }
            }
            Backend::Emulated(_) => Ok(HostBuffer::plain(inner, bytes)),
        }
    }

    /// Begins to copy `bytes` bytes to the device and comes back at once; [`HostBuffer::as_mut_slice`] waits for the end.
    ///
    /// # Errors
    /// As for [`Gpu::upload`].
    pub fn upload_from(
        &self,
        from: &HostBuffer,
        from_offset: usize,
        to: &DeviceBuffer,
        to_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        if !Arc::ptr_eq(&self.inner, from.inner()) {
            return Err(CudaError::OtherDevice { what: "upload from: the buffer" });
        }
        let outside =
            CudaError::OutOfRange { what: "upload from", offset: from_offset, bytes, len: from.as_slice().len() };
        let source =
            from_offset.checked_add(bytes).and_then(|end| from.as_slice().get(from_offset..end)).ok_or(outside)?;
        let address = self.range("upload to", to, to_offset, bytes)?;
        let queue = self.inner.outside_of_recording("upload")?;
        if bytes == 0 {
            return Ok(());
        }
        match (&self.inner.backend, from.event()) {
            (Backend::Driver(driver), Some(event)) => {
                from.set_pending();
                // SAFETY: until its event is waited for, `from` gives out no mutable slice and isn't freed. The event is
                // recorded behind the copy, with the queue locked: it can't move before it.
                let begun = unsafe { driver.begin_upload(address, source) };
                self.inner.note_locked(&queue, begun.and_then(|()| driver.record(event)))
            }
            (Backend::Emulated(emulated), _) => emulated.write(address, source),
            (Backend::Driver(_), None) => Err(CudaError::OtherDevice { what: "upload from: the buffer" }),
        }
    }

    /// The address of a range that is inside of a buffer of this device.
    fn range(&self, what: &'static str, buffer: &DeviceBuffer, offset: usize, bytes: usize) -> Result<u64> {
        if !Arc::ptr_eq(&self.inner, buffer.inner()) {
            return Err(CudaError::OtherDevice { what });
        }
        match offset.checked_add(bytes) {
            Some(end) if end <= buffer.len() => Ok(buffer.address() + offset as u64),
            _ => Err(CudaError::OutOfRange { what, offset, bytes, len: buffer.len() }),
        }
    }

    /// Whether a launch has a shape that can run.
    fn check_launch(&self, function: Function, shape: &LaunchShape, args_bytes: usize) -> Result<()> {
        let record = self.inner.functions.get(function.index).filter(|_| function.gpu == self.inner.id);
        let Some(FunctionRecord { kernel, static_shared }) = record else {
            return Err(CudaError::OtherDevice { what: "launch: the function" });
        };
        let LaunchShape { grid, block, dynamic_shared, overlap: _ } = *shape;
        let refuse = |why: String| Err(CudaError::Launch { function: kernel.name.clone(), why });
        if args_bytes != kernel.args_bytes {
            return refuse(format!("{args_bytes} bytes of arguments, the kernel takes {}", kernel.args_bytes));
        }
        let within =
            |sizes: [u32; 3], most: [u32; 3]| sizes.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size));
        if !within(grid, MAX_GRID) {
            return refuse(format!("a grid of {grid:?} blocks; from 1 to {MAX_GRID:?} can run"));
        }
        let (_, most) = MAX_BLOCK;
        let threads = block.iter().fold(1u64, |all, &size| all.saturating_mul(u64::from(size)));
        let most_threads = kernel.max_threads.min(MAX_BLOCK.0);
        if !within(block, most) || threads > u64::from(most_threads) {
            return refuse(format!(
                "a block of {block:?} threads; from 1 to {most:?} and {most_threads} in all can run"
            ));
        }
        let shared = u64::from(dynamic_shared) + u64::from(*static_shared);
        let optin = self.inner.info.shared_per_block_optin;
        if shared > u64::from(optin) {
            return refuse(format!("{shared} bytes of shared memory; a block can have {optin}"));
        }
        Ok(())
    }

    /// Appends a checked step, or records it.
    fn submit(&self, step: &Step<'_>) -> Result<()> {
        if matches!(step, Step::Fill { bytes: 0, .. } | Step::Copy { bytes: 0, .. }) {
            return self.inner.alive();
        }
        let mut queue = self.inner.turn()?;
        let recording = queue.recorder.is_some();
        if let (Step::Launch { function, .. }, false) = (step, recording) {
            queue.launched += 1;
            queue.last = Some(*function);
        }
        let result = match &self.inner.backend {
            Backend::Driver(driver) => driver.submit(step, recording),
            Backend::Emulated(_) if recording => {
                queue.recorded.push(step.keep());
                Ok(())
            }
            Backend::Emulated(emulated) => emulated.run(step),
        };
        self.inner.note_locked(&queue, result)
    }
}

/// What an allocation takes of the device's memory.
pub(crate) fn granules(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(GRANULARITY)
}

/// The counter of a device of the driver.
fn taken_of(index: usize) -> Arc<AtomicUsize> {
    static TAKEN: Mutex<BTreeMap<usize, Arc<AtomicUsize>>> = Mutex::new(BTreeMap::new());
    Arc::clone(TAKEN.lock().unwrap_or_else(PoisonError::into_inner).entry(index).or_default())
}

impl Inner {
    /// A buffer of so many bytes was freed.
    pub(super) fn note_freed(&self, bytes: usize) {
        self.taken.fetch_sub(granules(bytes), Ordering::Relaxed);
    }

    /// The queue as a panic left it is a queue still: every field is set in one step.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses once the device is lost.
    fn alive(&self) -> Result<()> {
        self.lost.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The queue, once no other thread records.
    fn turn(&self) -> Result<MutexGuard<'_, Queue>> {
        self.alive()?;
        let me = std::thread::current().id();
        let others = |queue: &mut Queue| queue.recorder.is_some_and(|recorder| recorder != me);
        Ok(self.turn.wait_while(self.lock(), others).unwrap_or_else(PoisonError::into_inner))
    }

    /// The same for what can't be recorded.
    fn outside_of_recording(&self, what: &'static str) -> Result<MutexGuard<'_, Queue>> {
        let queue = self.turn()?;
        if queue.recorder.is_some() { Err(CudaError::Recording { what }) } else { Ok(queue) }
    }

    /// Waits for everything that is in the queue now, with the queue open to others.
    fn wait(&self, driver: &Driver, queue: MutexGuard<'_, Queue>) -> Result<()> {
        let launched = queue.launched;
        let event = self.note_locked(&queue, driver.event())?;
        let recorded = self.note_locked(&queue, driver.record(&event));
        drop(queue);
        // Not the stream: somebody may begin to record on it, and a wait for it would end that.
        let result = recorded.and_then(|()| self.note(driver.wait(&event)));
        driver.destroy_event(&event);
        if result.is_ok() {
            let mut queue = self.lock();
            queue.ended = queue.ended.max(launched);
        }
        result
    }

    /// Remembers the loss of the device.
    pub(super) fn note<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ CudaError::DeviceLost { .. }) => self.note_locked(&self.lock(), Err(error)),
            other => other,
        }
    }

    /// The same with the queue at hand, which says which kernel it was, if that is certain.
    fn note_locked<T>(&self, queue: &Queue, result: Result<T>) -> Result<T> {
        let Err(CudaError::DeviceLost { kernel, message }) = result else { return result };
        let certain = self.blocking || queue.launched == queue.ended + 1;
        let last = queue.last.filter(|_| certain).and_then(|index| self.functions.get(index));
        let kernel = kernel.or_else(|| last.map(|record| record.kernel.name.clone()));
        Err(self.lost.get_or_init(|| CudaError::DeviceLost { kernel, message }).clone())
    }
}

/// Ends recording, whatever happens in between.
struct Recording<'a> {
    inner: &'a Inner,
    done: bool,
}

impl Recording<'_> {
    fn end(&mut self, keep: bool) -> Result<Recorded> {
        self.done = true;
        let mut queue = self.inner.lock();
        let steps = std::mem::take(&mut queue.recorded);
        let recorded = match &self.inner.backend {
            Backend::Emulated(_) => Ok(Recorded::Emulated(steps)),
            Backend::Driver(driver) => self
                .inner
                .note_locked(&queue, driver.end_capture(keep))
                .map(|captured| captured.map_or(Recorded::Emulated(Vec::new()), Recorded::Driver)),
        };
        queue.recorder = None;
        drop(queue);
        self.inner.turn.notify_all();
        recorded
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The closure panicked: what it recorded goes.
            let _ = self.end(false);
        }
    }
}

#[cfg(test)]
mod tests;
