//! The backend of [`Gpu`](super::Gpu) that talks to NVIDIA's driver.
//!
//! It holds the device's primary context and one stream; [`super::gpu`] has checked ranges, shapes and who may call when.
//! The driver's functions may be called from any thread once the context is the thread's current one, so each entry
//! point begins with [`Driver::bind`]: about 20 ns, and right on threads that use several devices.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};

use super::error::{CudaError, Result};
use super::modules::{self, Archive, Code, KernelModule};
use super::types::{DeviceInfo, FunctionRecord, MemoryInfo, Step};

/// Oldest driver: `cuLaunchKernelEx` and the graph calls are in all of this major version.
const OLDEST: (u32, u32) = (12, 0);
/// From here on a launch that overlaps its predecessor can be captured.
const CAPTURES_OVERLAP: (u32, u32) = (12, 3);

/// A device, its modules and its stream.
#[derive(Debug)]
pub(super) struct Driver {
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    /// The device can begin a kernel before its predecessor has ended.
    overlap: bool,
    /// And a graph can record that.
    overlap_in_graphs: bool,
    /// Released after what was made in it.
    context: Context,
}

// SAFETY: the handles are names that the driver gives out; it takes them from any thread, locks by itself, and every
// method makes the context current on its thread before it uses one.
unsafe impl Send for Driver {}
// SAFETY: as above; no method changes a field.
unsafe impl Sync for Driver {}

/// A captured and instantiated graph. Destroyed by [`Driver::destroy_graph`].
#[derive(Debug)]
pub(super) struct Captured(sys::CUgraphExec);

// SAFETY: a name that the driver gives out, as in `Driver`; replays are serialised by `Gpu`.
unsafe impl Send for Captured {}
// SAFETY: as above.
unsafe impl Sync for Captured {}

/// A point in the stream that can be waited for.
#[derive(Debug)]
pub(super) struct Event(sys::CUevent);

// SAFETY: a name that the driver gives out, as in `Driver`; recording and waiting may happen on different threads.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// Host memory that the device can read while the host does something else.
#[derive(Debug)]
pub(super) struct Pinned(ptr::NonNull<u8>);

// SAFETY: owned memory, valid on every thread; `HostBuffer` hands out references by Rust's rules.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

/// The driver's words for a result that isn't success.
fn check(call: &'static str, status: CUresult) -> Result<()> {
    use CUresult as C;
    let Err(error) = status.result() else { return Ok(()) };
    let text = error.error_string().ok().and_then(|text| text.to_str().ok()).unwrap_or("unknown error");
    let message = format!("{text} ({status:?})");
    match status {
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_LAUNCH_TIMEOUT
        | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_ECC_UNCORRECTABLE
        | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | C::CUDA_ERROR_CONTAINED
        | C::CUDA_ERROR_DEVICE_UNAVAILABLE
        | C::CUDA_ERROR_DEINITIALIZED
        | C::CUDA_ERROR_EXTERNAL_DEVICE
        | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | C::CUDA_ERROR_UNKNOWN => Err(CudaError::DeviceLost { kernel: None, message: format!("{call}: {message}") }),
        _ => Err(CudaError::Driver { call, message }),
    }
}

/// Initialises the driver; its version. Whatever else is called here is in a driver of this age: cudarc panics at a
/// function that the library lacks.
fn supported_version() -> Result<(u32, u32)> {
    if !super::driver_library_present() {
        return Err(CudaError::NoDriver);
    }
    // SAFETY: the library is there; the call has no other precondition.
    check("cuInit", unsafe { sys::cuInit(0) })?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer, which the call fills.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    let version = version.unsigned_abs();
    let have = (version / 1000, version % 1000 / 10);
    if have < OLDEST { Err(CudaError::DriverTooOld { have, need: OLDEST }) } else { Ok(have) }
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the pointer is to a live integer; `device` came from `cuDeviceGet`.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
    Ok(value.unsigned_abs())
}

/// The device with this index. The driver must be initialised.
fn find(index: usize) -> Result<sys::CUdevice> {
    let mut count = 0;
    // SAFETY: the pointer is to a live integer, and the driver is initialised.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    let ordinal = i32::try_from(index).ok().filter(|&ordinal| ordinal < count);
    let Some(ordinal) = ordinal else {
        return Err(CudaError::NoDevice { index, count: usize::try_from(count).unwrap_or(0) });
    };
    let mut device = 0;
    // SAFETY: the pointer is to a live handle, and the ordinal is below the count.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal) })?;
    Ok(device)
}

/// The context of a device, kept until this is dropped.
#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    fn retain(device: sys::CUdevice) -> Result<Self> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle; `device` came from `cuDeviceGet`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut handle, device) })?;
        Ok(Self { device, handle })
    }

    /// Makes it this thread's current one.
    fn bind(&self) -> Result<()> {
        // SAFETY: it is retained until `Drop`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live integers, and the context is current.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(MemoryInfo { free, total })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `retain`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Bytes of a device's memory that are free.
pub(super) fn free_memory(index: usize) -> Result<u64> {
    supported_version()?;
    Ok(Context::retain(find(index)?)?.memory()?.free as u64)
}

/// The parts of an open device that `Gpu` keeps.
pub(super) struct Opened {
    pub(super) driver: Driver,
    pub(super) info: DeviceInfo,
    pub(super) functions: Vec<FunctionRecord>,
}

/// Opens the device with this index: context, stream, the modules that fit it, all functions.
pub(super) fn open(index: usize) -> Result<Opened> {
    use sys::CUdevice_attribute as A;
    let version = supported_version()?;
    let device = find(index)?;
    let capability = (
        attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let name = result::device::get_name(device)
        .map_err(|error| CudaError::Driver { call: "cuDeviceGetName", message: error.to_string() })?;
    let mut info = DeviceInfo {
        name,
        compute_capability: capability,
        num_sms: attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block_optin: attribute(device, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(device, A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        kernels: String::new(),
        emulated: false,
    };
    let mut driver = Driver {
        context: Context::retain(device)?,
        stream: ptr::null_mut(),
        modules: Vec::new(),
        functions: Vec::new(),
        overlap: capability.0 >= 9,
        overlap_in_graphs: capability.0 >= 9 && version >= CAPTURES_OVERLAP,
    };
    driver.bind()?;
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the pointer is to a live handle, and the context is current; destroyed in `Drop`.
    check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut driver.stream, flags) })?;
    // A driver may refuse code that is newer than itself and still translate the PTX.
    let mut refused = String::new();
    for archive in modules::candidates(capability) {
        match driver.load(archive, info.shared_per_block_optin) {
            Ok(functions) => {
                info.kernels = archive.to_string();
                return Ok(Opened { driver, info, functions });
            }
            Err(CudaError::Driver { call, message }) => {
                driver.unload();
                refused += &format!("; {archive}: {call}: {message}");
            }
            Err(error) => return Err(error),
        }
    }
    Err(CudaError::NoKernels { device: info.name, capability, why: refused })
}

impl Driver {
    /// Makes the context this thread's current one.
    fn bind(&self) -> Result<()> {
        self.context.bind()
    }

    /// Loads an archive's modules and resolves all functions.
    fn load(&mut self, archive: &Archive, shared_per_block_optin: u32) -> Result<Vec<FunctionRecord>> {
        let mut records = Vec::new();
        for KernelModule { name: module, kernels, code } in archive.unpack()? {
            let handle = load_module(archive, &module, code)?;
            self.modules.push(handle);
            for kernel in kernels {
                let damaged = |why| CudaError::Archive { archive: archive.to_string(), why };
                let name = CString::new(kernel.name.as_str()).map_err(|_| damaged("a name holds a NUL".into()))?;
                let mut function = ptr::null_mut();
                // SAFETY: the handle is of a loaded module, the name ends with a NUL, the pointer is to a live handle.
                check("cuModuleGetFunction", unsafe {
                    sys::cuModuleGetFunction(&raw mut function, handle, name.as_ptr())
                })?;
                let static_shared = allow_shared_memory(function, shared_per_block_optin)?;
                self.functions.push(function);
                records.push(FunctionRecord { kernel, static_shared });
            }
        }
        Ok(records)
    }

    /// Forgets what `load` left behind.
    fn unload(&mut self) {
        self.functions.clear();
        for module in self.modules.drain(..) {
            // SAFETY: the module was loaded in the context that is current, and nothing launches its functions any more.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }

    pub(super) fn memory(&self) -> Result<MemoryInfo> {
        self.context.memory()
    }

    /// Device memory; `None` where there isn't that much. `bytes` isn't 0.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: the pointer is to a live integer, and the context is current.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            status => check("cuMemAlloc", status).map(|()| Some(address)),
        }
    }

    /// Gives memory back, after all work that was given to the device.
    pub(super) fn free(&self, address: u64) {
        // On a lost device there is nothing to give back to.
        if self.bind().is_ok() {
            // SAFETY: the address came from `alloc` and is freed once, by the buffer that owned it. The call waits for
            // the device, so that no kernel still uses the memory.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    /// Appends a step to the stream: it is run, or recorded while a graph is captured.
    pub(super) fn submit(&self, step: &Step<'_>, capturing: bool) -> Result<()> {
        self.bind()?;
        match *step {
            Step::Launch { function, shape, args } => {
                let Some(&handle) = self.functions.get(function) else {
                    return Err(CudaError::OtherDevice { what: "launch: the function" });
                };
                let mut attribute = sys::CUlaunchAttribute {
                    id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                    pad: [0; 4],
                    value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
                };
                let overlaps = shape.overlap && if capturing { self.overlap_in_graphs } else { self.overlap };
                let config = sys::CUlaunchConfig {
                    gridDimX: shape.grid[0],
                    gridDimY: shape.grid[1],
                    gridDimZ: shape.grid[2],
                    blockDimX: shape.block[0],
                    blockDimY: shape.block[1],
                    blockDimZ: shape.block[2],
                    sharedMemBytes: shape.dynamic_shared,
                    hStream: self.stream,
                    attrs: &raw mut attribute,
                    numAttrs: u32::from(overlaps),
                };
                let mut params = [args.as_ptr().cast::<c_void>().cast_mut()];
                // SAFETY: the function belongs to a module of the current context and takes one parameter of exactly
                // `args.len()` bytes (`Gpu::launch` compared them), which the call copies before it returns; config and
                // attribute live until then. What the kernel does with addresses in it is up to `ops`.
                check("cuLaunchKernelEx", unsafe {
                    sys::cuLaunchKernelEx(&raw const config, handle, params.as_mut_ptr(), ptr::null_mut())
                })
            }
            Step::Fill { address, bytes, value } => {
                // SAFETY: the range is inside of a living buffer (`Gpu::fill`), and the stream is of this context.
                check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, value, bytes, self.stream) })
            }
            Step::Copy { from, to, bytes } => {
                // SAFETY: both ranges are inside of living buffers and don't overlap (`Gpu::copy`).
                check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) })
            }
        }
    }

    /// Begins to copy to the device.
    ///
    /// # Safety
    /// `bytes` must stay alive and unchanged until an event that is recorded behind the copy has been waited for.
    pub(super) unsafe fn begin_upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        let from = bytes.as_ptr().cast();
        // SAFETY: the device's range is inside of a living buffer (`Gpu`); the host's is a slice that lives long enough.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(address, from, bytes.len(), self.stream) })
    }

    /// Begins to copy from the device.
    ///
    /// # Safety
    /// Nobody may read or write `into`, and it must stay alive, until an event that is recorded behind the copy has been
    /// waited for.
    pub(super) unsafe fn begin_download(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.bind()?;
        let to = into.as_mut_ptr().cast();
        // SAFETY: the device's range is inside of a living buffer (`Gpu`); the host's is a slice that lives long enough.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to, address, into.len(), self.stream) })
    }

    pub(super) fn event(&self) -> Result<Event> {
        self.bind()?;
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the pointer is to a live handle, and the context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(Event(event))
    }

    /// Puts the event behind everything in the stream.
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        self.bind()?;
        // SAFETY: event and stream are of this context and alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, self.stream) })
    }

    /// Waits for the event.
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        self.bind()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.0) })
    }

    pub(super) fn destroy_event(&self, event: &Event) {
        if self.bind().is_ok() {
            // SAFETY: the owner is being dropped, so nobody uses the event after this.
            let _ = unsafe { sys::cuEventDestroy_v2(event.0) };
        }
    }

    /// Waits for everything in the stream.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Pinned memory, zeroed. `bytes` isn't 0.
    pub(super) fn pin(&self, bytes: usize) -> Result<Pinned> {
        self.bind()?;
        let mut address = ptr::null_mut();
        // SAFETY: the pointer is to a live pointer, and the context is current.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut address, bytes, 0) })?;
        let Some(address) = ptr::NonNull::new(address.cast::<u8>()) else {
            return Err(CudaError::Driver { call: "cuMemHostAlloc", message: "no memory and no error".into() });
        };
        // SAFETY: the allocation is of this many bytes and nobody else has its address.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Pinned(address))
    }

    pub(super) fn unpin(&self, pinned: &Pinned) {
        if self.bind().is_ok() {
            // SAFETY: from `cuMemHostAlloc`; the owner waited for the copies that used it and is being dropped.
            let _ = unsafe { sys::cuMemFreeHost(pinned.0.as_ptr().cast()) };
        }
    }

    /// From here on the stream records instead of running.
    pub(super) fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        // Relaxed: other threads may allocate or wait for other streams meanwhile. Who may use this stream is up to `Gpu`.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and isn't capturing (`Gpu` has one recorder at a time).
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })
    }

    /// Ends recording; what was recorded, ready for replays unless it is to be dropped.
    pub(super) fn end_capture(&self, keep: bool) -> Result<Option<Captured>> {
        self.bind()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the pointer is to a live handle and the stream is capturing.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) })?;
        let mut instance = ptr::null_mut();
        let mut made = Ok(());
        if keep {
            // SAFETY: the pointer is to a live handle, and the graph came from the capture.
            made =
                check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&raw mut instance, graph, 0) });
        }
        // SAFETY: the graph came from the capture; an instance doesn't need it any more.
        let destroyed = check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph) });
        made?;
        let captured = keep.then_some(Captured(instance));
        if let (Err(error), Some(captured)) = (destroyed, &captured) {
            self.destroy_graph(captured);
            return Err(error);
        }
        Ok(captured)
    }

    pub(super) fn replay(&self, graph: &Captured) -> Result<()> {
        self.bind()?;
        // SAFETY: graph and stream are of this context and alive.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.stream) })
    }

    pub(super) fn destroy_graph(&self, graph: &Captured) {
        if self.bind().is_ok() {
            // SAFETY: the owner is being dropped. The driver keeps what a running replay needs until it is done.
            let _ = unsafe { sys::cuGraphExecDestroy(graph.0) };
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            // Nothing in flight may outlive its code. On a lost device the wait fails, and all that follows does.
            let _ = self.synchronize();
            self.unload();
            if !self.stream.is_null() {
                // SAFETY: the stream was created in `open` and is used by nobody any more.
                let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
            }
        }
    }
}

impl Pinned {
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

/// Hands a module to the driver, which translates PTX. The context must be current.
fn load_module(archive: &Archive, name: &str, mut code: Vec<u8>) -> Result<sys::CUmodule> {
    use sys::CUjit_option as J;
    if archive.code() == Code::Ptx {
        code.push(0);
    }
    // The translator says here what it doesn't like.
    let mut log = vec![0_u8; 4096];
    let mut options = [J::CU_JIT_ERROR_LOG_BUFFER, J::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(log.len())];
    let mut module = ptr::null_mut();
    // SAFETY: the context is current; the code is a whole cubin or PTX that ends with a NUL (a damaged archive fails
    // its check sum); the two options take a buffer and its size as a number in place of a pointer, and both live until
    // the call returns.
    let status = unsafe {
        sys::cuModuleLoadDataEx(&raw mut module, code.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    check("cuModuleLoadData", status).map_err(|error| match error {
        CudaError::Driver { call, message } => {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            CudaError::Driver { call, message: format!("{name}: {message} {}", log.trim()).trim_end().to_owned() }
        }
        other => other,
    })?;
    Ok(module)
}

/// Lets a function use all shared memory that a block can have, which is more than it may without asking; how much of it
/// is static. Asking loads the function too: nothing is left to be loaded while a graph is captured.
fn allow_shared_memory(function: sys::CUfunction, shared_per_block_optin: u32) -> Result<u32> {
    use sys::CUfunction_attribute as F;
    let mut fixed = 0;
    // SAFETY: the pointer is to a live integer, and the function is of a loaded module.
    check("cuFuncGetAttribute", unsafe {
        sys::cuFuncGetAttribute(&raw mut fixed, F::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
    })?;
    let fixed = fixed.unsigned_abs();
    let dynamic = i32::try_from(shared_per_block_optin.saturating_sub(fixed)).unwrap_or(i32::MAX);
    // SAFETY: the function is of a loaded module.
    check("cuFuncSetAttribute", unsafe {
        sys::cuFuncSetAttribute(function, F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)
    })?;
    Ok(fixed)
}
