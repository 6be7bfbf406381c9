//! `shimmy gpu-info`: the GPUs of this machine, as far as the CUDA driver shows them.

use std::fmt::Write;

use serde::Serialize;
use shimmy_kernels::cuda::{self, Driver};

use super::output;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// `present`, `missing`, `unusable` or `not built in`.
    driver: &'static str,
    /// Newest CUDA version of the driver.
    cuda_version: Option<String>,
    /// Why there is nothing to use, and what to do; null when there is.
    advice: Option<String>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    index: usize,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    memory_free_bytes: Option<u64>,
    /// Why it isn't known how much memory is free.
    error: Option<String>,
    multiprocessors: u32,
    /// The built-in kernels that would be loaded, such as `sm_90`; null for a device older than all of them.
    kernels: Option<String>,
}

/// Runs the command. A machine without a GPU is no failure.
///
/// # Errors
/// When stdout is closed.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let report = report(cuda::probe(), free_memory);
    if args.json { output::json(&report) } else { output::write(&text(&report)) }
}

#[cfg(feature = "cuda")]
fn free_memory(index: usize) -> Result<u64, String> {
    cuda::free_memory(index).map_err(|error| error.to_string())
}

/// Without the feature there are no devices to ask.
#[cfg(not(feature = "cuda"))]
fn free_memory(_index: usize) -> Result<u64, String> {
    Err(Driver::NotBuilt.to_string())
}

fn report(driver: Driver, free_memory: impl Fn(usize) -> Result<u64, String>) -> Report {
    let none =
        |driver, advice: String| Report { driver, cuda_version: None, advice: Some(advice), devices: Vec::new() };
    match driver {
        Driver::NotBuilt => {
            none("not built in", "this binary was built without the feature `cuda`; models run on the CPU".into())
        }
        Driver::Missing => none(
            "missing",
            "no NVIDIA driver on this host; models run on the CPU. Where there is an NVIDIA GPU, install its driver: \
             nothing else of CUDA is needed. In a container, pass the GPU and the driver's libraries through"
                .into(),
        ),
        Driver::Broken { reason } => none(
            "unusable",
            format!(
                "the NVIDIA driver is installed, but unusable: {reason}. Its library and its kernel module must be of \
                 one version, the device nodes readable; `nvidia-smi` fails alike"
            ),
        ),
        Driver::Present { version: (major, minor), devices } => {
            let devices: Vec<_> = devices
                .into_iter()
                .enumerate()
                .map(|(index, device)| {
                    let (memory_free_bytes, error) = match free_memory(index) {
                        Ok(bytes) => (Some(bytes), None),
                        Err(error) => (None, Some(error)),
                    };
                    let (major, minor) = device.compute_capability;
                    Device {
                        index,
                        name: device.name,
                        compute_capability: format!("{major}.{minor}"),
                        memory_bytes: device.memory,
                        memory_free_bytes,
                        error,
                        multiprocessors: device.num_sms,
                        kernels: device.kernels,
                    }
                })
                .collect();
            let advice = devices.is_empty().then(|| {
                "the NVIDIA driver shows no device; models run on the CPU. CUDA_VISIBLE_DEVICES may hide them"
                    .to_owned()
            });
            Report { driver: "present", cuda_version: Some(format!("{major}.{minor}")), advice, devices }
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let version = report.cuda_version.as_ref().map(|version| format!(", CUDA {version}")).unwrap_or_default();
    line("driver", &format!("{}{version}", report.driver));
    if let Some(advice) = &report.advice {
        line("", advice);
    }
    for device in &report.devices {
        line(&format!("device {}", device.index), &output::printable(&device.name, 100));
        line("  capability", &device.compute_capability);
        let free = match (device.memory_free_bytes, &device.error) {
            (Some(free), _) => format!("{} free", output::bytes(free)),
            (None, error) => format!("free: {}", output::printable(error.as_deref().unwrap_or("unknown"), 400)),
        };
        line("  memory", &format!("{}, {free}", output::bytes(device.memory_bytes)));
        line("  processors", &device.multiprocessors.to_string());
        let kernels = match device.kernels.as_deref() {
            Some(ptx) if ptx.starts_with("compute_") => format!("{ptx}, translated by the driver when it is opened"),
            Some(code) => code.to_owned(),
            None => "none: the device is too old".to_owned(),
        };
        line("  kernels", &kernels);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, compute_capability: (u32, u32), kernels: Option<&str>) -> cuda::Device {
        cuda::Device {
            name: name.into(),
            memory: 84_900_000_000,
            compute_capability,
            num_sms: 132,
            kernels: kernels.map(Into::into),
        }
    }

    #[test]
    fn each_device_has_its_lines() {
        let devices = vec![
            device("Big\x1b[2J", (9, 0), Some("sm_90")),
            device("Newer", (13, 0), Some("compute_90")),
            device("Old", (6, 1), None),
        ];
        let free = |index| if index == 2 { Err("it is busy".to_owned()) } else { Ok(1_500_000_000) };
        let report = report(Driver::Present { version: (12, 8), devices }, free);
        assert_eq!(
            text(&report),
            "driver        present, CUDA 12.8\n\
             device 0      Big [2J\n  capability  9.0\n  memory      84.9 GB, 1.5 GB free\n  processors  132\n  \
             kernels     sm_90\n\
             device 1      Newer\n  capability  13.0\n  memory      84.9 GB, 1.5 GB free\n  processors  132\n  \
             kernels     compute_90, translated by the driver when it is opened\n\
             device 2      Old\n  capability  6.1\n  memory      84.9 GB, free: it is busy\n  processors  132\n  \
             kernels     none: the device is too old\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["devices"][0]["memory_free_bytes"], 1_500_000_000_u64);
        assert_eq!(json["devices"][2]["error"], "it is busy");
        assert!(json["advice"].is_null());
    }

    #[test]
    fn a_machine_without_a_gpu_is_told_what_to_do() {
        for (driver, word) in [
            (Driver::NotBuilt, "without the feature"),
            (Driver::Missing, "install its driver"),
            (Driver::Broken { reason: "no device node".into() }, "no device node"),
            (Driver::Present { version: (12, 8), devices: Vec::new() }, "CUDA_VISIBLE_DEVICES"),
        ] {
            let report = report(driver, |_| Err("not asked".into()));
            assert!(report.devices.is_empty());
            assert!(report.advice.as_deref().is_some_and(|advice| advice.contains(word)), "{word}");
            assert!(text(&report).contains(word));
        }
    }
}
