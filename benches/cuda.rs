//! Matmul kernels on a GPU at the shapes of real models, as a share of what the device can copy, measured in the same run.
//!
//! `cargo bench --bench cuda -- [--json] [--device N|emulated] [--type NAME,…] [--model 1b|8b] [--shape NxK] [--rows M] [--ms 300]`
//! `cargo test --bench cuda`: small shapes on the emulated device, every type; what is printed means nothing then.
//!
//! Each result is compared with the same program on the CPU before it is timed. A step multiplies one row after the other by
//! copies of the weights that together exceed the device's cache; what the same step takes without products is subtracted.
//! Bytes are those of the weights; the ceiling is a copy within the device, which reads and writes. Prints SKIP without a device.
#![allow(clippy::print_stdout, reason = "a bench prints its results")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first error")]

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("SKIP: built without the feature `cuda`");
}

#[cfg(feature = "cuda")]
fn main() {
    bench::main();
}

#[cfg(feature = "cuda")]
mod bench {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use shimmy_kernels::cpu::{CpuKernels, Numerics, program::Program};
    use shimmy_kernels::cuda::program::CudaProgram;
    use shimmy_kernels::cuda::{Gpu, Target};
    use shimmy_kernels::program::{
        Instr, Machine, MatMulPart, MatMulThen, MatMulX, ProgramBuilder, ProgramSize, Rows, SeqInput, Span, StepInput,
    };
    use shimmy_kernels::quant::QuantType;

    /// N × K of the matrices of a model with 1B parameters.
    const SHAPES_1B: [(usize, usize); 3] = [(2048, 2048), (8192, 2048), (2048, 8192)];
    /// Of one with 8B.
    const SHAPES_8B: [(usize, usize); 3] = [(4096, 4096), (14336, 4096), (4096, 14336)];
    /// One sequence, the most that the kernels for few rows take, several sequences, a prompt.
    const ROWS: [usize; 4] = [1, 8, 64, 512];
    /// Weights that a step walks over: several times the cache of the largest device.
    const COLD_BYTES: usize = 512 << 20;
    /// Of a buffer that is copied for the ceiling.
    const COPY_BYTES: usize = 1 << 30;
    /// Tokens, and different rows of a matrix.
    const PATTERN_ROWS: usize = 61;
    /// Squared error against the CPU, relative to the square of what it has.
    const MOST_NMSE: f64 = 5e-4;

    struct Options {
        target: Target,
        types: Vec<QuantType>,
        shapes: Vec<(usize, usize)>,
        rows: Vec<usize>,
        cold_bytes: usize,
        copy_bytes: usize,
        duration: Duration,
        json: bool,
    }

    fn parse() -> Options {
        let mut options = Options {
            target: Target::Device(0),
            types: QuantType::all().iter().copied().filter(|dtype| dtype.has_kernels()).collect(),
            shapes: [SHAPES_1B, SHAPES_8B].concat(),
            rows: ROWS.to_vec(),
            cold_bytes: COLD_BYTES,
            copy_bytes: COPY_BYTES,
            duration: Duration::from_millis(300),
            json: false,
        };
        if std::env::args().all(|arg| arg != "--bench") {
            options.target = Target::Emulated;
            options.shapes = vec![(40, 256)];
            options.rows = vec![1, 3, 20];
            options.cold_bytes = 0;
            options.copy_bytes = 1 << 16;
            options.duration = Duration::ZERO;
            // The others choose among tests.
            return options;
        }
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            match arg.as_str() {
                "--json" => options.json = true,
                "--device" => {
                    options.target = match value().as_str() {
                        "emulated" => Target::Emulated,
                        index => Target::Device(index.parse().expect("--device: a number, or emulated")),
                    }
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
                "--ms" => options.duration = Duration::from_millis(value().parse().expect("--ms: a number")),
                other => panic!("unknown argument {other}"),
            }
        }
        options
    }

    /// One measurement.
    struct Line {
        dtype: QuantType,
        n: usize,
        k: usize,
        m: usize,
        /// Of one product.
        seconds: f64,
        /// Of the weights.
        bytes: usize,
    }

    impl Line {
        fn bytes_per_s(&self) -> f64 {
            self.bytes as f64 / self.seconds
        }

        fn flops_per_s(&self) -> f64 {
            2.0 * (self.m * self.n * self.k) as f64 / self.seconds
        }
    }

    pub(super) fn main() {
        let options = parse();
        let gpu = match Gpu::open(options.target) {
            Ok(gpu) => gpu,
            Err(error) if std::env::var("REQUIRE_CUDA").as_deref() == Ok("1") => panic!("REQUIRE_CUDA=1: {error}"),
            Err(error) => {
                println!("SKIP: {error}");
                return;
            }
        };
        let ceiling = copy_bytes_per_s(&gpu, options.copy_bytes);
        let name = gpu.info().name.clone();
        if !options.json {
            println!("{name}, copies at {:.1} GB/s", ceiling / 1e9);
            println!("type     N x K            M        us    GB/s  % copy   TFLOP/s");
        }
        let mut lines = Vec::new();
        for &dtype in &options.types {
            for &(n, k) in options.shapes.iter().filter(|(_, k)| dtype.row_bytes(*k).is_some()) {
                for &m in &options.rows {
                    let line = measure(&gpu, dtype, (n, k), m, &options);
                    if !options.json {
                        println!(
                            "{:<8} {:<13} {:>4} {:>9.2} {:>7.1} {:>6.1}% {:>9.2}",
                            dtype.name(),
                            format!("{n} x {k}"),
                            m,
                            line.seconds * 1e6,
                            line.bytes_per_s() / 1e9,
                            100.0 * line.bytes_per_s() / ceiling,
                            line.flops_per_s() / 1e12,
                        );
                    }
                    lines.push(line);
                }
            }
        }
        if options.json {
            let lines = lines.iter().map(|line| {
                json!({
                    "device": name,
                    "type": line.dtype.name(),
                    "n": line.n,
                    "k": line.k,
                    "m": line.m,
                    "seconds": line.seconds,
                    "bytes": line.bytes,
                    "copy_gb_per_s": ceiling / 1e9,
                    "copy_share": line.bytes_per_s() / ceiling,
                })
            });
            println!("{}", serde_json::Value::from_iter(lines));
        }
    }

    /// Bytes read and written a second by copies of a buffer: the best of some.
    fn copy_bytes_per_s(gpu: &Gpu, bytes: usize) -> f64 {
        let (from, to) = (gpu.alloc(bytes).unwrap(), gpu.alloc(bytes).unwrap());
        gpu.fill(&from, 1).unwrap();
        let copy = || {
            gpu.synchronize().unwrap();
            let start = Instant::now();
            gpu.copy(&from, 0, &to, 0, bytes).unwrap();
            gpu.synchronize().unwrap();
            start.elapsed().as_secs_f64()
        };
        copy();
        2.0 * bytes as f64 / (0..5).map(|_| copy()).fold(f64::INFINITY, f64::min)
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

    /// A program that multiplies the rows of its tokens by each of the matrices; its outputs are the last product's rows.
    fn program(dtype: QuantType, (n, k): (usize, usize), matrices: &[Arc<Vec<u8>>]) -> (ProgramBuilder, Span) {
        let mut program = ProgramBuilder::new();
        let x: Vec<u8> = values(PATTERN_ROWS * k, 9).into_iter().flat_map(f32::to_le_bytes).collect();
        let table = program.weight(Arc::new(x), QuantType::F32, PATTERN_ROWS, k).unwrap();
        let mut buffer = |width, rows| {
            let buf = program.buffer(width, rows);
            program.span(buf)
        };
        let (rows, product) = (buffer(k, Rows::Tokens), buffer(n, Rows::Tokens));
        let last = if matrices.is_empty() { rows } else { product };
        let out = buffer(last.width, Rows::Outputs);
        program.push(Instr::Embed { table, scale: 1.0, out: rows });
        let x = if CpuKernels::matmul_q8_supported(dtype) {
            let act = program.act(k);
            program.push(Instr::Quantize { x: rows, act });
            MatMulX::Act(act)
        } else {
            MatMulX::Float(rows)
        };
        for matrix in matrices {
            let bytes: Arc<Vec<u8>> = Arc::clone(matrix);
            let weight = program.weight(bytes, dtype, n, k).unwrap();
            let parts = vec![MatMulPart { weight, out: product, bias: None }];
            program.push(Instr::MatMul { x, rows: Rows::Tokens, parts, then: MatMulThen::Done });
        }
        program.push(Instr::Gather { x: last, out });
        (program, out)
    }

    fn size(m: usize) -> ProgramSize {
        let kv = shimmy_kernels::cpu::kv::KvType::F16.into();
        let num_blocks = m.div_ceil(32);
        ProgramSize { vocab_size: PATTERN_ROWS, max_tokens: m, max_outputs: 1, num_blocks, num_window_blocks: 0, kv }
    }

    /// Runs a step of `m` rows, of which the last is its output.
    fn step(machine: &mut dyn Machine, m: usize) -> Vec<f32> {
        let tokens: Vec<u32> = (0..m).map(|row| (row % PATTERN_ROWS) as u32).collect();
        let blocks: Vec<u32> = (0..m.div_ceil(32) as u32).collect();
        let input = StepInput {
            tokens: &tokens,
            seqs: &[SeqInput { rows: 0..m, start: 0, table: 0..blocks.len() }],
            seq_of_row: &vec![0; m],
            blocks: &blocks,
            window_blocks: &[],
            outputs: &[m as u32 - 1],
            hidden: &[],
            ropes: &[],
            numerics: Numerics::Fast,
            reduce: None,
        };
        machine.run(&input).unwrap().to_vec()
    }

    /// Seconds of a step: the best of many, after two, the second of which records its graph.
    fn seconds(machine: &mut dyn Machine, m: usize, duration: Duration) -> f64 {
        (0..2).for_each(|_| drop(step(machine, m)));
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while best == f64::INFINITY || begin.elapsed() < duration {
            let start = Instant::now();
            step(machine, m);
            best = best.min(start.elapsed().as_secs_f64());
        }
        best
    }

    fn measure(gpu: &Gpu, dtype: QuantType, (n, k): (usize, usize), m: usize, options: &Options) -> Line {
        let row_bytes = dtype.row_bytes(k).unwrap();
        let mut pattern = vec![0; PATTERN_ROWS * row_bytes];
        for (row, values) in pattern.chunks_exact_mut(row_bytes).zip(values(PATTERN_ROWS * k, 5).chunks_exact(k)) {
            dtype.quantize_row(values, row).unwrap();
        }
        let matrix: Arc<Vec<u8>> = Arc::new(pattern.iter().copied().cycle().take(n * row_bytes).collect());
        let copies = options.cold_bytes.div_ceil(matrix.len()).max(2);
        let cuda = |matrices: &[Arc<Vec<u8>>]| {
            let (builder, out) = program(dtype, (n, k), matrices);
            CudaProgram::new(gpu, builder, out, size(m), false, &mut |_, _| {}).unwrap()
        };

        let mut products = cuda(&vec![Arc::clone(&matrix); copies]);
        let got = step(&mut products, m);
        let (builder, out) = program(dtype, (n, k), &[Arc::clone(&matrix)]);
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let expected = step(&mut Program::new(CpuKernels::detect(), workers, builder, out, size(m)).unwrap(), m);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = got.iter().zip(&expected).map(|(got, expected)| square(got - expected)).sum();
        let nmse = error / expected.iter().copied().map(square).sum::<f64>();
        assert!(got.len() == n && nmse <= MOST_NMSE, "{dtype} {n} x {k}, {m} rows: NMSE {nmse}");

        let with = seconds(&mut products, m, options.duration);
        drop(products);
        let without = seconds(&mut cuda(&[]), m, options.duration);
        let seconds = (with - without).max(f64::MIN_POSITIVE) / copies as f64;
        Line { dtype, n, k, m, seconds, bytes: matrix.len() }
    }
}
