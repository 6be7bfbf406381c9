//! Matmul kernels at the shapes of real models, as a share of what this machine can do, measured in the same run.
//!
//! `cargo bench --bench kernels -- [--isa NAME] [--type NAME] [--shape NxK] [--rows M] [--threads T] [--ms 200]`
//!
//! Each result is checked against the scalar kernels before it is timed. Decode (M = 1) walks over copies of the weights that
//! together exceed the caches; prefill (M = 512) is arithmetic. The floor is the larger of bytes / bandwidth and multiply-adds /
//! peak; the last column is floor / measured.
#![allow(clippy::print_stdout, reason = "a bench prints its results")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first error")]

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use shimmy_kernels::{
    cpu::{
        ActBuffer, CpuKernels, Isa, MatrixRef, ROW_TILE, Scratch,
        ceiling::{ReadBuffer, int8_peak},
    },
    quant::QuantType,
};

/// N × K of matrices in models of 135M and of 1B parameters.
const SHAPES: [(usize, usize); 6] = [(576, 576), (1536, 576), (576, 1536), (49152, 576), (2048, 2048), (8192, 2048)];
/// Weights that a decode run walks over.
const COLD_BYTES: usize = 640 << 20;

struct Options {
    isa: Option<Isa>,
    dtype: Option<QuantType>,
    shape: Option<(usize, usize)>,
    rows: Option<usize>,
    threads: usize,
    duration: Duration,
}

fn parse() -> Options {
    let mut options = Options {
        isa: None,
        dtype: None,
        shape: None,
        rows: None,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        duration: Duration::from_millis(200),
    };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--isa" => {
                let name = value();
                options.isa = Some(Isa::ALL.into_iter().find(|isa| isa.name() == name).expect("--isa: a level's name"));
            }
            "--type" => options.dtype = Some(QuantType::from_name(&value()).expect("--type: a GGUF type")),
            "--shape" => {
                let value = value();
                let (n, k) = value.split_once('x').expect("--shape: NxK");
                options.shape = Some((n.parse().expect("N"), k.parse().expect("K")));
            }
            "--rows" => options.rows = Some(value().parse().expect("--rows: a number")),
            "--threads" => options.threads = value().parse().expect("--threads: a number"),
            "--ms" => options.duration = Duration::from_millis(value().parse().expect("--ms: a number")),
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

/// What one ISA can do on this machine.
struct Ceiling {
    bandwidth: f64,
    /// 8-bit multiply-adds a second.
    int8: Option<f64>,
}

fn main() {
    let options = parse();
    let buffer = ReadBuffer::new(1 << 30);
    println!("features: {}", shimmy_kernels::cpu::detected_features().join(" "));
    println!("isa         type   N x K          M   thr      ms     GB/s   % read  GMAC/s   % int8  floor/measured");
    for isa in Isa::ALL {
        if isa == Isa::Scalar && options.isa.is_none() || options.isa.is_some_and(|wanted| wanted != isa) {
            continue;
        }
        let Some(kernels) = CpuKernels::for_isa(isa) else {
            println!("SKIP {}: this CPU lacks it", isa.name());
            continue;
        };
        for &dtype in QuantType::all().iter().filter(|dtype| dtype.has_kernels()) {
            if options.dtype.is_some_and(|wanted| wanted != dtype) {
                continue;
            }
            for (n, k) in options.shape.map_or(SHAPES.to_vec(), |shape| vec![shape]) {
                if dtype.row_bytes(k).is_none() {
                    continue;
                }
                let ceiling = Ceiling {
                    bandwidth: buffer.read_bandwidth(options.threads, 3),
                    int8: int8_peak(isa, options.threads, Duration::from_millis(20)),
                };
                for m in options.rows.map_or(vec![1, 4, 16, 512], |m| vec![m]) {
                    measure(&kernels, dtype, n, k, m, &options, &ceiling);
                }
            }
        }
    }
}

/// Deterministic values of about the spread of weights.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        })
        .collect()
}

fn measure(kernels: &CpuKernels, dtype: QuantType, n: usize, k: usize, m: usize, options: &Options, ceiling: &Ceiling) {
    let row_bytes = dtype.row_bytes(k).unwrap();
    let bytes = n * row_bytes;
    // 61 different rows, repeated: quantising all of them would take longer than the bench.
    let mut pattern = vec![0; 61 * row_bytes];
    for (row, values) in pattern.chunks_exact_mut(row_bytes).zip(values(61 * k, 5).chunks_exact(k)) {
        dtype.quantize_row(values, row).unwrap();
    }
    let matrix: Vec<u8> = pattern.iter().copied().cycle().take(bytes).collect();
    let copies = if m <= 16 { COLD_BYTES.div_ceil(bytes).clamp(1, 4096) } else { 1 };
    let mut weights = Vec::with_capacity(bytes * copies);
    for _ in 0..copies {
        weights.extend_from_slice(&matrix);
    }
    let x = values(m * k, 9);
    let mut buffer = ActBuffer::default();
    buffer.quantize(kernels, &x, k).unwrap();
    check(kernels, dtype, n, k, m, &matrix, &x, &buffer);

    let mut out = vec![0.0f32; m * n];
    let base = out.as_mut_ptr() as usize;
    let (barrier, stop) = (Barrier::new(options.threads), AtomicBool::new(false));
    let part = n.div_ceil(options.threads).next_multiple_of(ROW_TILE);
    let quantised = CpuKernels::matmul_q8_supported(dtype);
    // A lot is some of the copies; the first warms up, the best of the others counts.
    let lot = (copies / 4).max(1);
    let results: Vec<f64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|thread| {
                let (weights, buffer, x, barrier, stop) = (&weights, &buffer, &x, &barrier, &stop);
                scope.spawn(move || {
                    let mut scratch = Scratch::for_shapes(k);
                    let rows = (thread * part).min(n)..((thread + 1) * part).min(n);
                    let (mut at, mut best, mut spent) = (0, f64::INFINITY, Duration::ZERO);
                    let mut lots = 0;
                    loop {
                        // Thread 0 decided before it came here, so that all leave after the same lot.
                        barrier.wait();
                        if stop.load(Ordering::Relaxed) {
                            return best;
                        }
                        let start = Instant::now();
                        for _ in 0..lot {
                            let data = &weights[at * bytes..(at + 1) * bytes];
                            at = (at + 1) % copies;
                            let matrix = MatrixRef::new(dtype, n, k, data).unwrap();
                            let out = base as *mut f32;
                            // SAFETY: each thread writes its own columns of `out`, which outlives the scope.
                            unsafe {
                                if quantised {
                                    kernels.matmul_q8(&matrix, rows.clone(), &buffer.rows(), out, n, &mut scratch);
                                } else {
                                    kernels.matmul_f32(&matrix, rows.clone(), x, k, m, out, n, &mut scratch);
                                }
                            }
                        }
                        barrier.wait();
                        let elapsed = start.elapsed();
                        spent += elapsed;
                        lots += 1;
                        if lots > 1 {
                            best = best.min(elapsed.as_secs_f64() / lot as f64);
                        }
                        if thread == 0 && lots > 1 && spent >= options.duration {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let seconds = results[0];
    let (read, macs) = (bytes as f64 / seconds, (m * n * k) as f64 / seconds);
    let peak = ceiling.int8.filter(|_| quantised);
    let floor = (bytes as f64 / ceiling.bandwidth).max(peak.map_or(0.0, |peak| (m * n * k) as f64 / peak));
    println!(
        "{:<11} {:<6} {:<13} {m:>4} {:>4} {:>9.4} {:>7.1} {:>8.1} {:>8.1} {:>7.1}  {:>6.1}%",
        kernels.isa().name(),
        dtype.name(),
        format!("{n} x {k}"),
        options.threads,
        seconds * 1e3,
        read / 1e9,
        100.0 * read / ceiling.bandwidth,
        macs / 1e9,
        peak.map_or(f64::NAN, |peak| 100.0 * macs / peak),
        100.0 * floor / seconds,
    );
}

/// Compares some rows with the scalar kernels.
#[expect(clippy::too_many_arguments, reason = "the state of `measure`")]
fn check(
    kernels: &CpuKernels,
    dtype: QuantType,
    n: usize,
    k: usize,
    m: usize,
    matrix: &[u8],
    x: &[f32],
    acts: &ActBuffer,
) {
    let n = n.min(61);
    let w = MatrixRef::new(dtype, n, k, &matrix[..n * dtype.row_bytes(k).unwrap()]).unwrap();
    let scalar = CpuKernels::for_isa(Isa::Scalar).unwrap();
    let mut scratch = Scratch::for_shapes(k);
    let (mut ours, mut reference) = (vec![0.0; m * n], vec![0.0; m * n]);
    // The scalar code on 16 rows of activations is enough, and takes a while as it is.
    let some = m.min(16);
    if CpuKernels::matmul_q8_supported(dtype) {
        kernels.matmul_q8_all(&w, &acts.rows(), &mut ours, &mut scratch);
        scalar.matmul_q8_all(&w, &acts.rows().rows(0..some), &mut reference[..some * n], &mut scratch);
    } else {
        kernels.matmul_f32_all(&w, x, m, &mut ours, &mut scratch);
        scalar.matmul_f32_all(&w, &x[..some * k], some, &mut reference[..some * n], &mut scratch);
    }
    let scale = reference.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for (i, (ours, reference)) in ours.iter().zip(&reference[..some * n]).enumerate() {
        let error = (ours - reference).abs();
        assert!(error <= 1e-4 * scale, "{} {dtype} M {m} [{i}]: {ours}, not {reference}", kernels.isa().name());
    }
}
