//! `shimmy --version`: what this build is and what it finds here.

use shimmy_kernels::{cpu, cuda};

use super::output;

/// Prints version, CPU features and CUDA driver.
///
/// # Errors
/// When stdout is closed.
pub(super) fn run() -> anyhow::Result<()> {
    output::write(&format!(
        "shimmy {}\ncpu: {} ({})\ncuda: {}\n",
        env!("CARGO_PKG_VERSION"),
        cpu::CpuKernels::detect().isa().name(),
        cpu::CpuKernels::features().join(" "),
        cuda::probe()
    ))
}
