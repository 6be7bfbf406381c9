//! The CUDA driver, found at run time: one binary runs on hosts with and without it.
//!
//! Nothing here is called when a model runs on the CPU: initialising the driver takes a moment and a context takes
//! memory, so only `--version`, `probe`, `gpu-info` and a CUDA executor ask.
//!
//! | file | what lives there |
//! |---|---|
//! | here | [`probe`]: what there is, without opening it |
//! | `gpu` | [`Gpu`]: memory, launches, graphs; all checks |
//! | `types` | what it is asked and what it answers |
//! | `buffers` | what a `Gpu` owns for its callers |
//! | `driver` | its backend on NVIDIA's driver; with `buffers`, all `unsafe` |
//! | `emulated` | its backend on the emulator |
//! | [`emulator`] | runs PTX on the CPU |
//! | `planes` | how matrices lie on a device |
//! | `args` | the arguments of the kernels |
//! | [`program`] | runs [programs](crate::program) |
//! | [`modules`] | the embedded kernels, and which of them a device gets |
//! | `error` | [`CudaError`] |

#[cfg(feature = "cuda")]
mod args;
#[cfg(feature = "cuda")]
mod buffers;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod emulated;
#[cfg(feature = "cuda")]
pub mod emulator;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
pub mod modules;
#[cfg(feature = "cuda")]
mod planes;
#[cfg(feature = "cuda")]
pub mod program;
#[cfg(feature = "cuda")]
mod types;

#[cfg(feature = "cuda")]
pub use buffers::{DeviceBuffer, Graph, HostBuffer};
#[cfg(feature = "cuda")]
pub use error::{CudaError, Result};
#[cfg(feature = "cuda")]
pub use gpu::Gpu;
#[cfg(feature = "cuda")]
pub use types::{DeviceInfo, Emulation, Function, LaunchShape, MemoryInfo, Target};

/// What this host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// This binary was built without the feature `cuda`.
    NotBuilt,
    /// No driver library on this host.
    Missing,
    /// A driver library that doesn't work (no device node, a version that doesn't match the kernel module).
    Broken {
        /// What it said.
        reason: String,
    },
    /// A working driver.
    Present {
        /// Newest CUDA version that it speaks: `(12, 8)`.
        version: (u32, u32),
        /// In the driver's order; may be empty.
        devices: Vec<Device>,
    },
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// As the driver calls it.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// `(9, 0)` is sm_90.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub num_sms: u32,
    /// The embedded kernels that it would run: `sm_90`, or `compute_90` where its driver has to translate. None for a
    /// device that is older than all of them.
    pub kernels: Option<String>,
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("not built in"),
            Self::Missing => f.write_str("no driver on this host"),
            Self::Broken { reason } => write!(f, "driver present, but unusable: {reason}"),
            Self::Present { version: (major, minor), devices } => {
                write!(f, "driver present, CUDA {major}.{minor}, {} device(s)", devices.len())?;
                for Device { name, memory, compute_capability: (major, minor), .. } in devices {
                    write!(f, "; {name}, {} MiB, sm_{major}{minor}", memory >> 20)?;
                }
                Ok(())
            }
        }
    }
}

/// Asks the driver what there is. Creates no context.
#[cfg(not(feature = "cuda"))]
pub fn probe() -> Driver {
    Driver::NotBuilt
}

/// Asks the driver what there is. Creates no context.
#[cfg(feature = "cuda")]
pub fn probe() -> Driver {
    if !driver_library_present() {
        return Driver::Missing;
    }
    match ask() {
        Ok((version, devices)) => Driver::Present { version, devices },
        Err(error) => Driver::Broken { reason: format!("{error}") },
    }
}

/// How much of a device's memory is free, in bytes. It opens the device for a moment, which [`probe`] doesn't.
///
/// # Errors
/// [`CudaError`], where the device can't be opened.
#[cfg(feature = "cuda")]
pub fn free_memory(index: usize) -> Result<u64> {
    driver::free_memory(index)
}

/// cudarc panics on the first call if it finds no library, so every path into it asks here first.
#[cfg(feature = "cuda")]
fn driver_library_present() -> bool {
    // SAFETY: the function opens libcuda by name, which runs the initialisers of NVIDIA's driver library and asks
    // for nothing else; it has no other precondition.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

#[cfg(feature = "cuda")]
fn ask() -> Result<((u32, u32), Vec<Device>), cudarc::driver::result::DriverError> {
    use cudarc::driver::result::{self, device};
    use cudarc::driver::sys;
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as NUM_SMS,
    };
    result::init()?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer, which the call fills.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    let mut devices = Vec::new();
    for ordinal in 0..device::get_count()? {
        let device = device::get(ordinal)?;
        // SAFETY: `device` was returned by `device::get` just now.
        let memory = unsafe { device::total_mem(device) }?;
        let attribute = |which| {
            // SAFETY: as above.
            unsafe { device::get_attribute(device, which) }.map(i32::unsigned_abs)
        };
        let compute_capability = (attribute(MAJOR)?, attribute(MINOR)?);
        devices.push(Device {
            name: device::get_name(device)?,
            memory: memory as u64,
            compute_capability,
            num_sms: attribute(NUM_SMS)?,
            kernels: modules::candidates(compute_capability).first().map(ToString::to_string),
        });
    }
    let version = version.unsigned_abs();
    Ok(((version / 1000, version % 1000 / 10), devices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_never_panics_and_says_what_is_there() {
        let text = probe().to_string();
        assert!(!text.is_empty());
        if std::env::var("REQUIRE_CUDA").as_deref() == Ok("1") {
            let Driver::Present { devices, .. } = probe() else { panic!("{text}") };
            assert!(!devices.is_empty());
            assert!(devices.iter().all(|device| device.memory > 1 << 30 && device.compute_capability.0 >= 5));
            #[cfg(feature = "cuda")]
            for (index, device) in devices.iter().enumerate() {
                assert!((1..=device.memory).contains(&free_memory(index).unwrap()), "{device:?}");
            }
        }
    }

    #[test]
    fn a_driver_prints_its_devices() {
        let device = Device {
            name: "H100".into(),
            memory: 80 << 30,
            compute_capability: (9, 0),
            num_sms: 132,
            kernels: Some("sm_90".into()),
        };
        let driver = Driver::Present { version: (12, 8), devices: vec![device] };
        assert_eq!(driver.to_string(), "driver present, CUDA 12.8, 1 device(s); H100, 81920 MiB, sm_90");
    }
}
