//! Matmul kernels at the shapes of real models, as a share of what this machine can do, measured in the same run.
//!
//! `cargo bench --bench kernels -- [--summary] [--json] [--isa NAME] [--type NAME,…] [--model 1b|8b] [--shape NxK] [--rows M]
//! [--threads T] [--ms 200]`
//!
//! Each result is checked against the scalar kernels before it is timed. All walk over copies of the weights that together
//! exceed the caches. The floor is the larger of bytes / bandwidth and multiply-adds / peak, where the peak is that of the
//! arithmetic that the weights allow: int8 for blocks, bf16 or f32 for floats. The last column is floor / measured.
//! `--summary` takes one shape, the best ISA, one row and 512, and prints a line a type.
#![allow(clippy::print_stdout, reason = "a bench prints its results")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first error")]

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use shimmy_kernels::{
    cpu::{
        ActBuffer, CpuKernels, FloatActs, Isa, MatrixRef, Numerics, ROW_TILE, RoundedActs, RoundedBuffer, Scratch,
        ceiling::{ReadBuffer, bf16_peak, f32_peak, int8_peak},
    },
    quant::QuantType,
};

/// N × K of the matrices of a model with 1B parameters.
const SHAPES_1B: [(usize, usize); 3] = [(2048, 2048), (8192, 2048), (2048, 8192)];
/// Of one with 8B.
const SHAPES_8B: [(usize, usize); 3] = [(4096, 4096), (14336, 4096), (4096, 14336)];
/// What `--summary` measures.
const SUMMARY_SHAPE: (usize, usize) = (8192, 2048);
/// One sequence, several of them, the smallest matmul of many rows, a prompt.
const ROWS: [usize; 4] = [1, 4, 16, 512];
/// Rows of activations in `--summary`.
const SUMMARY_ROWS: [usize; 2] = [1, 512];
/// Weights that a run walks over: several times the caches of a server.
const COLD_BYTES: usize = 640 << 20;
/// Different rows of a matrix; they repeat, as quantising all of them would take longer than the bench.
const PATTERN_ROWS: usize = 61;

struct Options {
    isa: Option<Isa>,
    types: Vec<QuantType>,
    shapes: Vec<(usize, usize)>,
    rows: Vec<usize>,
    threads: usize,
    duration: Duration,
    summary: bool,
    json: bool,
}

fn parse() -> Options {
    let mut options = Options {
        isa: None,
        types: QuantType::all().iter().copied().filter(|dtype| dtype.has_kernels()).collect(),
        shapes: [SHAPES_1B, SHAPES_8B].concat(),
        rows: ROWS.to_vec(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        duration: Duration::from_millis(200),
        summary: false,
        json: false,
    };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--summary" => {
                options.summary = true;
                options.isa = options.isa.or(Some(Isa::detect()));
                options.shapes = vec![SUMMARY_SHAPE];
                options.rows = SUMMARY_ROWS.to_vec();
            }
            "--json" => options.json = true,
            "--isa" => {
                let name = value();
                options.isa = Some(Isa::ALL.into_iter().find(|isa| isa.name() == name).expect("--isa: a level's name"));
            }
            "--type" => {
                let dtype = |name| QuantType::from_name(name).expect("--type: GGUF types");
                options.types = value().split(',').map(dtype).collect();
            }
            "--model" => {
                options.shapes = match value().as_str() {
                    "1b" => SHAPES_1B.to_vec(),
                    "8b" => SHAPES_8B.to_vec(),
                    other => panic!("--model: 1b or 8b, not {other}"),
                }
            }
            "--shape" => {
                let value = value();
                let (n, k) = value.split_once('x').expect("--shape: NxK");
                options.shapes = vec![(n.parse().expect("N"), k.parse().expect("K"))];
            }
            "--rows" => options.rows = vec![value().parse().expect("--rows: a number")],
            "--threads" => options.threads = value().parse().expect("--threads: a number"),
            "--ms" => options.duration = Duration::from_millis(value().parse().expect("--ms: a number")),
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

/// What one ISA can do on this machine, now.
struct Ceiling {
    /// Bytes a second.
    bandwidth: f64,
    /// Multiply-adds a second of the arithmetic that the weights' type allows.
    peak: Option<f64>,
}

impl Ceiling {
    fn measure(buffer: &ReadBuffer, isa: Isa, dtype: QuantType, threads: usize, rounded: bool) -> Self {
        let duration = Duration::from_millis(20);
        let peak = match dtype {
            QuantType::F16 | QuantType::BF16 => bf16_peak(isa, threads, duration),
            _ if rounded => bf16_peak(isa, threads, duration),
            _ if dtype.is_float() => None,
            _ => int8_peak(isa, threads, duration),
        };
        Self {
            bandwidth: buffer.read_bandwidth(threads, 3),
            peak: peak.or_else(|| dtype.is_float().then(|| f32_peak(isa, threads, duration)).flatten()),
        }
    }
}

/// One measurement and what it is measured against.
struct Line {
    isa: Isa,
    dtype: QuantType,
    n: usize,
    k: usize,
    m: usize,
    threads: usize,
    seconds: f64,
    bytes: usize,
    ceiling: Ceiling,
}

impl Line {
    fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    fn macs_per_s(&self) -> f64 {
        (self.m * self.n * self.k) as f64 / self.seconds
    }

    fn read_share(&self) -> f64 {
        self.bytes_per_s() / self.ceiling.bandwidth
    }

    /// NaN where there is no peak.
    fn peak_share(&self) -> f64 {
        self.ceiling.peak.map_or(f64::NAN, |peak| self.macs_per_s() / peak)
    }

    fn floor_share(&self) -> f64 {
        // `max` takes the other value for NaN.
        self.read_share().max(self.peak_share())
    }

    fn print(&self) {
        println!(
            "{:<11} {:<8} {:<13} {:>4} {:>4} {:>9.4} {:>7.1} {:>8.1} {:>8.1} {:>7.1}  {:>6.1}%",
            self.isa.name(),
            self.dtype.name(),
            format!("{} x {}", self.n, self.k),
            self.m,
            self.threads,
            self.seconds * 1e3,
            self.bytes_per_s() / 1e9,
            100.0 * self.read_share(),
            self.macs_per_s() / 1e9,
            100.0 * self.peak_share(),
            100.0 * self.floor_share(),
        );
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "isa": self.isa.name(),
            "type": self.dtype.name(),
            "n": self.n,
            "k": self.k,
            "m": self.m,
            "threads": self.threads,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "read_gb_per_s": self.ceiling.bandwidth / 1e9,
            "peak_gmac_per_s": self.ceiling.peak.map(|peak| peak / 1e9),
            "floor_share": self.floor_share(),
        })
    }
}

fn main() {
    let options = parse();
    let buffer = ReadBuffer::new(1 << 30);
    if !options.json {
        println!("features: {}", shimmy_kernels::cpu::detected_features().join(" "));
        let (n, k) = options.shapes[0];
        if options.summary {
            println!(
                "{n} x {k}, {} threads: GB/s and % of read bandwidth, G multiply-adds/s and % of peak",
                options.threads
            );
        } else {
            println!(
                "isa         type     N x K            M  thr        ms    GB/s   % read   GMAC/s  % peak  floor/measured"
            );
        }
    }
    let mut lines = Vec::new();
    for isa in Isa::ALL {
        if isa == Isa::Scalar && options.isa.is_none() || options.isa.is_some_and(|wanted| wanted != isa) {
            continue;
        }
        let Some(kernels) = CpuKernels::for_isa(isa) else {
            if !options.json {
                println!("SKIP {}: this CPU lacks it", isa.name());
            }
            continue;
        };
        for &dtype in &options.types {
            for &(n, k) in options.shapes.iter().filter(|(_, k)| dtype.row_bytes(*k).is_some()) {
                let weights = Weights::new(dtype, n, k);
                let from = lines.len();
                for &m in &options.rows {
                    let ceiling =
                        Ceiling::measure(&buffer, isa, dtype, options.threads, takes_rounded(&kernels, dtype, m));
                    let seconds = weights.time(&kernels, m, &options);
                    let (threads, bytes) = (options.threads, weights.bytes);
                    lines.push(Line { isa, dtype, n, k, m, threads, seconds, bytes, ceiling });
                    if !options.json && !options.summary {
                        lines[lines.len() - 1].print();
                    }
                }
                if options.summary && !options.json {
                    let cell = |line: &Line| {
                        let (value, unit, share) = if line.m == 1 {
                            (line.bytes_per_s() / 1e9, "GB/s", line.read_share())
                        } else {
                            (line.macs_per_s() / 1e9, "GMAC/s", line.peak_share())
                        };
                        format!("M {:>3} {value:>7.1} {unit:<6} {:>5.1}%", line.m, 100.0 * share)
                    };
                    let cells: Vec<String> = lines[from..].iter().map(cell).collect();
                    println!("{:<11} {:<8} {}", isa.name(), dtype.name(), cells.join("   "));
                }
            }
        }
    }
    if options.json {
        println!("{}", serde_json::Value::from_iter(lines.iter().map(Line::json)));
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

/// Whether the kernels round so many rows of activations for such weights, as a program does then.
fn takes_rounded(kernels: &CpuKernels, dtype: QuantType, m: usize) -> bool {
    kernels.rounds_many() && m > kernels.few_rows() && CpuKernels::matmul_q8_supported(dtype)
}

/// Copies of one matrix that together exceed the caches.
struct Weights {
    dtype: QuantType,
    n: usize,
    k: usize,
    /// Of one copy.
    bytes: usize,
    copies: usize,
    data: Vec<u8>,
}

impl Weights {
    fn new(dtype: QuantType, n: usize, k: usize) -> Self {
        let row_bytes = dtype.row_bytes(k).unwrap();
        let mut pattern = vec![0; PATTERN_ROWS * row_bytes];
        for (row, values) in pattern.chunks_exact_mut(row_bytes).zip(values(PATTERN_ROWS * k, 5).chunks_exact(k)) {
            dtype.quantize_row(values, row).unwrap();
        }
        let bytes = n * row_bytes;
        let copies = COLD_BYTES.div_ceil(bytes).max(2);
        let matrix: Vec<u8> = pattern.iter().copied().cycle().take(bytes).collect();
        Self { dtype, n, k, bytes, copies, data: matrix.repeat(copies) }
    }

    fn matrix(&self, copy: usize) -> MatrixRef<'_> {
        let data = &self.data[copy * self.bytes..(copy + 1) * self.bytes];
        MatrixRef::new(self.dtype, self.n, self.k, data).unwrap()
    }

    /// Seconds of one product with `m` rows of activations: the best of several lots.
    fn time(&self, kernels: &CpuKernels, m: usize, options: &Options) -> f64 {
        let (dtype, n, k) = (self.dtype, self.n, self.k);
        let x = values(m * k, 9);
        let mut buffer = ActBuffer::default();
        buffer.quantize(kernels, &x, k).unwrap();
        let mut rounded = RoundedBuffer::default();
        let rounded = takes_rounded(kernels, dtype, m).then(|| rounded.round(kernels, &x, k).unwrap());
        self.check(kernels, m, &x, &buffer, rounded.as_ref());

        let mut out = vec![0.0f32; m * n];
        let base = out.as_mut_ptr() as usize;
        let (barrier, stop) = (Barrier::new(options.threads), AtomicBool::new(false));
        let part = n.div_ceil(options.threads).next_multiple_of(ROW_TILE);
        let quantised = CpuKernels::matmul_q8_supported(dtype);
        let floats = &FloatActs { x: &x, stride: k, num_rows: m, numerics: Numerics::Fast, packed: None };
        // A lot is some of the copies; the first warms up, the best of the others counts.
        let lot = if m > 16 { 1 } else { (self.copies / 4).max(1) };
        let results: Vec<f64> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..options.threads)
                .map(|thread| {
                    let (buffer, rounded, barrier, stop) = (&buffer, &rounded, &barrier, &stop);
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
                                let matrix = self.matrix(at);
                                at = (at + 1) % self.copies;
                                let out = base as *mut f32;
                                // SAFETY: each thread writes its own columns of `out`, which outlives the scope.
                                unsafe {
                                    if let Some(acts) = rounded {
                                        kernels.matmul_on_rounded(&matrix, rows.clone(), acts, out, n, &mut scratch);
                                    } else if quantised {
                                        kernels.matmul_q8(&matrix, rows.clone(), &buffer.rows(), out, n, &mut scratch);
                                    } else {
                                        kernels.matmul_rounded(&matrix, rows.clone(), floats, out, n, &mut scratch);
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
                            if thread == 0 && lots > 2 && spent >= options.duration {
                                stop.store(true, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        results[0]
    }

    /// Compares some rows with the scalar kernels.
    fn check(&self, kernels: &CpuKernels, m: usize, x: &[f32], acts: &ActBuffer, rounded: Option<&RoundedActs>) {
        let (dtype, k) = (self.dtype, self.k);
        let n = self.n.min(PATTERN_ROWS);
        let w = MatrixRef::new(dtype, n, k, &self.data[..n * dtype.row_bytes(k).unwrap()]).unwrap();
        let scalar = CpuKernels::for_isa(Isa::Scalar).unwrap();
        let mut scratch = Scratch::for_shapes(k);
        let (mut ours, mut reference) = (vec![0.0; m * n], vec![0.0; m * n]);
        // The scalar code on 16 rows of activations is enough, and takes a while as it is.
        let some = m.min(16);
        let mut tolerance = 1e-4;
        if let Some(acts) = rounded {
            // Each factor is within a 512th.
            tolerance = 4e-3;
            // SAFETY: `ours` is [m, n].
            unsafe { kernels.matmul_on_rounded(&w, 0..n, acts, ours.as_mut_ptr(), n, &mut scratch) };
            scalar.matmul_f32_all(&w, &x[..some * k], some, &mut reference[..some * n], &mut scratch);
        } else if CpuKernels::matmul_q8_supported(dtype) {
            kernels.matmul_q8_all(&w, &acts.rows(), &mut ours, &mut scratch);
            scalar.matmul_q8_all(&w, &acts.rows().rows(0..some), &mut reference[..some * n], &mut scratch);
        } else {
            kernels.matmul_f32_all(&w, x, m, &mut ours, &mut scratch);
            scalar.matmul_f32_all(&w, &x[..some * k], some, &mut reference[..some * n], &mut scratch);
        }
        let scale = reference.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for (i, (ours, reference)) in ours.iter().zip(&reference[..some * n]).enumerate() {
            let error = (ours - reference).abs();
            assert!(
                error <= tolerance * scale,
                "{} {dtype} M {m} [{i}]: {ours}, not {reference}",
                kernels.isa().name()
            );
        }
    }
}
