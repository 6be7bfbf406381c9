//! The device API on the emulated device, always, and on the first real one, where there is one.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::modules;
use super::*;

/// The argument of `fill_f32` (kernels/cu/fill.cu).
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct FillArgs {
    to: u64,
    count: u64,
    value: f32,
    reserved: u32,
}

/// The emulated devices, and the real one; `REQUIRE_CUDA=1` makes its absence a failure.
fn gpus() -> Vec<Gpu> {
    let emulations = [(7, 5), (8, 0), (9, 0)].map(|compute_capability| Emulation {
        compute_capability,
        memory_bytes: 64 << 20,
        ..Emulation::default()
    });
    let mut gpus: Vec<_> = emulations.iter().map(|emulation| Gpu::emulated(emulation).unwrap()).collect();
    match Gpu::open(Target::Device(0)) {
        Ok(gpu) => gpus.push(gpu),
        Err(error) if std::env::var("REQUIRE_CUDA").as_deref() == Ok("1") => panic!("REQUIRE_CUDA=1: {error}"),
        Err(error) => println!("SKIP on a real device: {error}"),
    }
    gpus
}

fn emulated() -> Gpu {
    Gpu::emulated(&Emulation { memory_bytes: 1 << 20, ..Emulation::default() }).unwrap()
}

fn fill(gpu: &Gpu, buffer: &DeviceBuffer, first: usize, count: usize, value: f32) -> Result<()> {
    let args = FillArgs { to: buffer.address() + 4 * first as u64, count: count as u64, value, reserved: 0 };
    gpu.launch(gpu.function("fill_f32")?, &LaunchShape::linear(2, 64), &args)
}

fn floats(gpu: &Gpu, buffer: &DeviceBuffer) -> Vec<f32> {
    let mut bytes = vec![0; buffer.len()];
    gpu.download(buffer, 0, &mut bytes).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

fn zeroed(gpu: &Gpu, bytes: usize) -> DeviceBuffer {
    let buffer = gpu.alloc(bytes).unwrap();
    gpu.fill(&buffer, 0).unwrap();
    buffer
}

#[test]
fn what_goes_up_comes_down() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 1000);
        assert_eq!(buffer.address() % 256, 0);
        let bytes: Vec<u8> = (0..500).map(|i| (i * 7 + 1) as u8).collect();
        gpu.upload(&buffer, 100, &bytes).unwrap();
        let mut all = vec![0xaa; 1000];
        gpu.download(&buffer, 0, &mut all).unwrap();
        assert!(all[..100].iter().chain(&all[600..]).all(|&byte| byte == 0), "{:?}", gpu.info());
        assert_eq!(all[100..600], bytes);

        let other = zeroed(&gpu, 300);
        gpu.copy(&buffer, 150, &other, 50, 200).unwrap();
        gpu.copy(&other, 50, &other, 0, 50).unwrap();
        let mut part = vec![0xaa; 300];
        gpu.download(&other, 0, &mut part).unwrap();
        assert_eq!(part[..50], bytes[50..100]);
        assert_eq!(part[50..250], bytes[50..250]);
        assert!(part[250..].iter().all(|&byte| byte == 0));

        gpu.fill(&other, 0x5a).unwrap();
        gpu.download(&other, 0, &mut part).unwrap();
        assert!(part.iter().all(|&byte| byte == 0x5a));
    }
}

#[test]
fn ranges_outside_of_a_buffer_are_refused_and_change_nothing() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 64);
        let other = zeroed(&gpu, 64);
        let staging = gpu.staging(64).unwrap();
        let outside = |result: Result<()>| {
            assert!(matches!(result, Err(CudaError::OutOfRange { len: 64, .. })), "{result:?}");
        };
        for (offset, bytes) in [(0, 65), (64, 1), (65, 0), (usize::MAX, 2), (1, usize::MAX)] {
            let host = vec![0xff; bytes.min(100)];
            if bytes <= 100 {
                outside(gpu.upload(&buffer, offset, &host));
                outside(gpu.download(&buffer, offset, &mut host.clone()));
            }
            outside(gpu.copy(&buffer, offset, &other, 0, bytes));
            outside(gpu.copy(&other, 0, &buffer, offset, bytes));
            outside(gpu.upload_from(&staging, offset, &buffer, 0, bytes));
            outside(gpu.upload_from(&staging, 0, &buffer, offset, bytes));
        }
        assert!(matches!(gpu.copy(&buffer, 0, &buffer, 8, 9), Err(CudaError::Overlap { from: 0, to: 8, bytes: 9 })));
        gpu.copy(&buffer, 0, &buffer, 8, 8).unwrap();
        // Nothing at the very end is no range outside.
        gpu.upload(&buffer, 64, &[]).unwrap();
        gpu.download(&buffer, 64, &mut []).unwrap();
        gpu.copy(&buffer, 64, &other, 64, 0).unwrap();
        assert!(floats(&gpu, &buffer).iter().all(|&value| value == 0.0));
    }
}

#[test]
fn an_empty_buffer_is_a_buffer() {
    for gpu in gpus() {
        let buffer = gpu.alloc(0).unwrap();
        assert!(buffer.is_empty());
        assert_ne!(buffer.address(), 0);
        gpu.fill(&buffer, 1).unwrap();
        let mut staging = gpu.staging(0).unwrap();
        assert!(staging.as_mut_slice().unwrap().is_empty());
    }
}

#[test]
fn out_of_memory_says_how_much_there_is_and_dropping_gives_it_back() {
    for gpu in gpus() {
        let before = gpu.memory().unwrap();
        assert!(before.free <= before.total && before.free > 0);
        let wanted = before.total + 1;
        let Err(CudaError::OutOfMemory { wanted: said, free, total }) = gpu.alloc(wanted) else { panic!("it fits") };
        assert_eq!((said, total), (wanted, before.total));
        assert!(free <= total);
    }
    // What is free on a real device changes with other processes, so the sums are the emulated one's.
    let gpu = emulated();
    let before = gpu.memory().unwrap().free;
    let buffers: Vec<_> = (0..4).map(|_| gpu.alloc(before / 4 - 1024).unwrap()).collect();
    assert!(gpu.memory().unwrap().free <= 4096);
    assert!(matches!(gpu.alloc(8192), Err(CudaError::OutOfMemory { wanted: 8192, .. })));
    drop(buffers);
    assert_eq!(gpu.memory().unwrap().free, before);
    gpu.alloc(before / 2).unwrap();
}

#[test]
fn launches_run_in_order_and_touch_what_they_are_given() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 4 * 1000);
        fill(&gpu, &buffer, 10, 900, 1.5).unwrap();
        fill(&gpu, &buffer, 100, 3, -2.0).unwrap();
        // With permission to overlap, the order is the kernel's business, and it keeps it.
        let args = FillArgs { to: buffer.address(), count: 20, value: 4.0, reserved: 0 };
        let shape = LaunchShape { overlap: true, ..LaunchShape::linear(1, 32) };
        gpu.launch(gpu.function("fill_f32").unwrap(), &shape, &args).unwrap();
        for (i, value) in floats(&gpu, &buffer).into_iter().enumerate() {
            let expected = match i {
                0..20 => 4.0,
                100..103 => -2.0,
                20..910 => 1.5,
                _ => 0.0,
            };
            assert_eq!(value, expected, "element {i} on {:?}", gpu.info());
        }
        gpu.synchronize().unwrap();
    }
}

#[test]
fn a_graph_does_at_each_replay_what_the_calls_would_have_done() {
    for gpu in gpus() {
        let [direct, target, source] = [(); 3].map(|()| zeroed(&gpu, 4 * 256));
        let steps = |to: &DeviceBuffer| {
            fill(&gpu, to, 0, 200, 3.0)?;
            gpu.copy(&source, 0, to, 4 * 100, 4 * 50)?;
            fill(&gpu, to, 140, 30, -1.0)
        };
        fill(&gpu, &source, 0, 256, 7.0).unwrap();
        steps(&direct).unwrap();
        let graph = gpu.capture(|| steps(&target)).unwrap();
        assert!(floats(&gpu, &target).iter().all(|&value| value == 0.0), "recording ran something");
        gpu.replay(&graph).unwrap();
        assert_eq!(floats(&gpu, &target), floats(&gpu, &direct));
        // What changed since is seen: addresses are recorded, not contents.
        fill(&gpu, &source, 0, 256, 8.0).unwrap();
        gpu.fill(&target, 0xff).unwrap();
        gpu.replay(&graph).unwrap();
        gpu.replay(&graph).unwrap();
        steps(&direct).unwrap();
        let replayed = floats(&gpu, &target);
        assert_eq!(replayed[..200], floats(&gpu, &direct)[..200]);
        assert!(replayed[200..].iter().all(|value| value.is_nan()), "more than was recorded");
        // A fill of bytes can be recorded too.
        let clear = gpu.capture(|| gpu.fill(&target, 0)).unwrap();
        gpu.replay(&clear).unwrap();
        assert!(floats(&gpu, &target).iter().all(|&value| value == 0.0));
    }
}

#[test]
fn what_waits_for_the_device_cant_be_recorded() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 64);
        let staging = gpu.staging(64).unwrap();
        let empty = gpu.capture(|| Ok(())).unwrap();
        let graph = gpu
            .capture(|| {
                let refused = |what: &str, result: Result<()>| {
                    assert!(matches!(result, Err(CudaError::Recording { .. })), "{what}: {result:?}");
                };
                refused("upload", gpu.upload(&buffer, 0, &[1]));
                refused("download", gpu.download(&buffer, 0, &mut [1]));
                refused("upload from", gpu.upload_from(&staging, 0, &buffer, 0, 8));
                refused("alloc", gpu.alloc(8).map(drop));
                refused("staging", gpu.staging(8).map(drop));
                refused("synchronize", gpu.synchronize());
                refused("replay", gpu.replay(&empty));
                refused("capture", gpu.capture(|| Ok(())).map(drop));
                // And recording goes on.
                fill(&gpu, &buffer, 0, 4, 2.0)
            })
            .unwrap();
        gpu.replay(&graph).unwrap();
        assert_eq!(floats(&gpu, &buffer)[..5], [2.0, 2.0, 2.0, 2.0, 0.0]);
    }
}

#[test]
fn a_recording_that_fails_or_panics_leaves_the_device_usable() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 64);
        let error = gpu.capture(|| {
            fill(&gpu, &buffer, 0, 4, 2.0)?;
            gpu.function("no_such_kernel").map(drop)
        });
        assert!(matches!(error, Err(CudaError::MissingFunction { .. })), "{error:?}");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gpu.capture(|| {
                fill(&gpu, &buffer, 0, 4, 2.0)?;
                panic!("expected by the test")
            })
        }));
        assert!(panicked.is_err());
        assert!(floats(&gpu, &buffer).iter().all(|&value| value == 0.0));
        fill(&gpu, &buffer, 0, 16, 1.0).unwrap();
        assert!(floats(&gpu, &buffer).iter().all(|&value| value == 1.0));
    }
}

#[test]
fn launches_that_cant_run_are_refused_before_the_device_sees_them() {
    for gpu in gpus() {
        let buffer = zeroed(&gpu, 64);
        let function = gpu.function("fill_f32").unwrap();
        let args = FillArgs { to: buffer.address(), count: 16, value: 1.0, reserved: 0 };
        let linear = LaunchShape::linear(1, 32);
        let optin = gpu.info().shared_per_block_optin;
        for shape in [
            LaunchShape { grid: [0, 1, 1], ..linear },
            LaunchShape { grid: [1, 65536, 1], ..linear },
            LaunchShape { grid: [1, 1, 65536], ..linear },
            LaunchShape { grid: [1 << 31, 1, 1], ..linear },
            LaunchShape { block: [32, 0, 1], ..linear },
            LaunchShape { block: [1025, 1, 1], ..linear },
            LaunchShape { block: [33, 32, 1], ..linear },
            LaunchShape { block: [1, 1, 65], ..linear },
            LaunchShape { block: [u32::MAX; 3], ..linear },
            LaunchShape { dynamic_shared: optin + 1, ..linear },
            LaunchShape { dynamic_shared: u32::MAX, ..linear },
        ] {
            let error = gpu.launch(function, &shape, &args).unwrap_err();
            let CudaError::Launch { function, why } = &error else { panic!("{shape:?}: {error}") };
            assert_eq!(function, "fill_f32");
            assert!(!why.is_empty());
        }
        // A host that gives fewer bytes than the kernel takes would have the driver read beyond them.
        let error = gpu.launch(function, &linear, &args.to).unwrap_err();
        assert_eq!(error.to_string(), "launch of `fill_f32`: 8 bytes of arguments, the kernel takes 24");
        assert!(floats(&gpu, &buffer).iter().all(|&value| value == 0.0));
        // All the shared memory of a block, more than a kernel gets without asking.
        gpu.launch(function, &LaunchShape { dynamic_shared: optin, ..linear }, &args).unwrap();
        gpu.launch(function, &LaunchShape { block: [1024, 1, 1], ..linear }, &args).unwrap();
        assert!(floats(&gpu, &buffer).iter().all(|&value| value == 1.0));
    }
}

#[test]
fn a_missing_function_is_named() {
    for gpu in gpus() {
        let text = gpu.function("no_such_kernel").unwrap_err().to_string();
        assert!(text.contains("no_such_kernel") && text.contains(&gpu.info().kernels), "{text}");
        assert!(gpu.function_names().contains(&"fill_f32"));
        for name in gpu.function_names() {
            gpu.function(name).unwrap();
        }
    }
}

#[test]
fn what_belongs_to_another_device_is_refused() {
    let (gpu, other) = (emulated(), emulated());
    let (own, foreign) = (zeroed(&gpu, 64), zeroed(&other, 64));
    let staging = other.staging(64).unwrap();
    let graph = other.capture(|| fill(&other, &foreign, 0, 4, 1.0)).unwrap();
    let args = FillArgs { to: own.address(), count: 4, value: 1.0, reserved: 0 };
    let function = other.function("fill_f32").unwrap();
    for (what, result) in [
        ("upload", gpu.upload(&foreign, 0, &[1])),
        ("download", gpu.download(&foreign, 0, &mut [1])),
        ("fill", gpu.fill(&foreign, 1)),
        ("copy from", gpu.copy(&foreign, 0, &own, 0, 4)),
        ("copy to", gpu.copy(&own, 0, &foreign, 0, 4)),
        ("upload from", gpu.upload_from(&staging, 0, &own, 0, 4)),
        ("replay", gpu.replay(&graph)),
        ("launch", gpu.launch(function, &LaunchShape::linear(1, 32), &args)),
    ] {
        assert!(matches!(result, Err(CudaError::OtherDevice { .. })), "{what}: {result:?}");
    }
    // A clone is the same device.
    gpu.clone().upload(&own, 0, &[1]).unwrap();
}

#[test]
fn staged_uploads_arrive_in_order() {
    for gpu in gpus() {
        let mut staging = gpu.staging(4096).unwrap();
        assert!(staging.as_slice().iter().all(|&byte| byte == 0));
        let buffer = zeroed(&gpu, 3 * 4096);
        for round in 0..3_u8 {
            staging.as_mut_slice().unwrap().fill(round + 1);
            gpu.upload_from(&staging, 0, &buffer, usize::from(round) * 4096, 4096).unwrap();
        }
        // Part of it, over what is there.
        staging.as_mut_slice().unwrap()[7] = 99;
        gpu.upload_from(&staging, 7, &buffer, 5, 1).unwrap();
        staging.wait().unwrap();
        drop(staging);
        let mut bytes = vec![0; buffer.len()];
        gpu.download(&buffer, 0, &mut bytes).unwrap();
        for (at, &byte) in bytes.iter().enumerate() {
            assert_eq!(byte, if at == 5 { 99 } else { (at / 4096) as u8 + 1 }, "{at}");
        }
    }
}

#[test]
fn threads_share_a_device() {
    fn shared<T: Send + Sync>() {}
    shared::<(Gpu, DeviceBuffer, HostBuffer, Graph)>();
    for gpu in gpus() {
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4_u16 {
                let (gpu, done) = (gpu.clone(), &done);
                scope.spawn(move || {
                    let buffer = zeroed(&gpu, 4 * 256);
                    for round in 0..10_u16 {
                        let value = f32::from(thread * 100 + round);
                        // Others launch meanwhile: nothing of theirs may end up in this graph, and nothing may hang.
                        let graph = gpu.capture(|| fill(&gpu, &buffer, 0, 128, value)).unwrap();
                        fill(&gpu, &buffer, 128, 128, -value).unwrap();
                        gpu.replay(&graph).unwrap();
                        let found = floats(&gpu, &buffer);
                        assert!(found[..128].iter().all(|&found| found == value));
                        assert!(found[128..].iter().all(|&found| found == -value));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(done.into_inner(), 4);
    }
}

#[test]
fn a_fault_of_a_kernel_loses_the_device_and_names_the_kernel() {
    // Not on a real device: its context would be lost for the other tests of this process.
    let gpu = emulated();
    let buffer = zeroed(&gpu, 64);
    let error = fill(&gpu, &buffer, 0, 17, 1.0).unwrap_err();
    let CudaError::DeviceLost { kernel, message } = &error else { panic!("{error}") };
    assert_eq!(kernel.as_deref(), Some("fill_f32"));
    assert!(message.contains("thread"), "{message}");
    assert!(error.to_string().contains("`fill_f32`"));
    // From then on everything says so, and nothing hangs or panics.
    assert_eq!(gpu.upload(&buffer, 0, &[1]), Err(error.clone()));
    assert_eq!(gpu.synchronize(), Err(error.clone()));
    assert_eq!(gpu.alloc(8).map(drop), Err(error.clone()));
    assert_eq!(gpu.memory().map(drop), Err(error.clone()));
    assert_eq!(gpu.capture(|| Ok(())).map(drop), Err(error.clone()));
    assert_eq!(fill(&gpu, &buffer, 0, 1, 1.0), Err(error));
    drop(buffer);
    // Others go on.
    let other = emulated();
    let buffer = zeroed(&other, 64);
    fill(&other, &buffer, 0, 16, 1.0).unwrap();
}

#[test]
fn fresh_emulated_memory_isnt_zero() {
    let gpu = emulated();
    let buffer = gpu.alloc(256).unwrap();
    assert!(floats(&gpu, &buffer).iter().all(|value| value.is_nan()));
}

#[test]
fn devices_that_arent_there_are_refused() {
    let error = Gpu::open(Target::Device(1000)).unwrap_err();
    match super::super::probe() {
        super::super::Driver::Present { devices, .. } => {
            assert_eq!(error, CudaError::NoDevice { index: 1000, count: devices.len() });
        }
        super::super::Driver::Missing => assert_eq!(error, CudaError::NoDriver),
        _ => assert!(!error.to_string().is_empty()),
    }
    let odd = Emulation { compute_capability: (8, 6), ..Emulation::default() };
    assert!(matches!(Gpu::emulated(&odd), Err(CudaError::NoKernels { capability: (8, 6), .. })));
}

#[test]
fn a_device_says_what_it_is() {
    for gpu in gpus() {
        let info = gpu.info();
        assert!(!info.name.is_empty());
        assert!(info.num_sms > 0 && info.l2_bytes > 0 && info.shared_per_block_optin >= 48 << 10);
        let candidates = modules::candidates(info.compute_capability);
        assert!(candidates.iter().any(|archive| archive.to_string() == info.kernels), "{}", info.kernels);
        assert_eq!(info.emulated, info.name == "emulated device");
    }
    assert!(Gpu::open(Target::Emulated).unwrap().info().emulated);
}
