//! Each ISA by name against f64 arithmetic on the exact codes: every type, tail and batch size, extremes, and what must not
//! depend on what.

use super::*;
use crate::quant::{
    Block, GroupKind, QuantType,
    tests::{Rng, random_row},
    with_block,
};

mod rounded;

/// Kernels of every level that this CPU has. A level named in `REQUIRE_ISA` must be there.
fn all_kernels() -> Vec<CpuKernels> {
    let required = std::env::var("REQUIRE_ISA").unwrap_or_default();
    let mut found = Vec::new();
    for isa in Isa::ALL {
        match CpuKernels::for_isa(isa) {
            Some(kernels) => {
                assert_eq!(kernels.isa(), isa);
                found.push(kernels);
            }
            None => {
                assert!(!required.split(',').any(|name| name == isa.name()), "REQUIRE_ISA names {}", isa.name());
                eprintln!("SKIP {}: this CPU lacks it", isa.name());
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.is_available() && !Isa::AvxVnni.is_available() {
        eprintln!("avxvnni is tested with its one instruction emulated");
        found.push(avx2::EMULATED_VNNI);
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512Vnni.is_available() && !Isa::Avx512Bf16.is_available() {
        eprintln!("avx512bf16 is tested with its two instructions emulated");
        found.push(avx512::EMULATED_BF16);
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512Bf16.is_available() && !Isa::Amx.is_available() {
        eprintln!("amx is tested with its tiles emulated");
        found.push(avx512::EMULATED_AMX);
    }
    found
}

fn q8_types() -> impl Iterator<Item = QuantType> {
    QuantType::all().iter().copied().filter(|&dtype| CpuKernels::matmul_q8_supported(dtype))
}

fn float_and_q8_types() -> impl Iterator<Item = QuantType> {
    QuantType::all().iter().copied().filter(|dtype| dtype.has_kernels())
}

/// A random matrix and activations.
struct Case {
    dtype: QuantType,
    n: usize,
    k: usize,
    weights: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    fn new(dtype: QuantType, m: usize, n: usize, k: usize, seed: u64) -> Self {
        let mut rng = Rng(seed * 0x9e37 + 1);
        let weights = (0..n).flat_map(|_| random_row(dtype, k, &mut rng)).collect();
        Self { dtype, n, k, weights, x: rng.normals(m * k) }
    }

    fn matrix(&self) -> MatrixRef<'_> {
        MatrixRef::new(self.dtype, self.n, self.k, &self.weights).unwrap()
    }

    fn acts(&self) -> FloatActs<'_> {
        let (k, numerics) = (self.k, Numerics::Fast);
        FloatActs { x: &self.x, stride: k, num_rows: self.x.len() / k, numerics, packed: None }
    }
}

/// The product in f64 with exact integers, and the sum of the magnitudes that were added: what rounding errors are relative to.
fn exact_q8(w: &MatrixRef, acts: &ActRows, m: usize, n: usize) -> (f64, f64) {
    with_block!(
        w.dtype(),
        |B| exact_q8_block::<B>(bytemuck::cast_slice(w.row(n)), &acts.rows(m..m + 1)),
        unreachable!()
    )
}

fn exact_q8_block<B: Block>(blocks: &[B], act: &ActRows) -> (f64, f64) {
    let (mut total, mut magnitude) = (0.0, 0.0);
    for (b, block) in blocks.iter().enumerate() {
        let (mut codes, mut scales, mut mins) = (vec![0; B::LEN], vec![0.0; 16], vec![0.0; 16]);
        block.unpack(&mut codes, &mut scales, &mut mins);
        for group in 0..B::LEN / B::GROUP {
            let first = b * B::LEN + group * B::GROUP;
            let q: Vec<i64> = act.q[first..first + B::GROUP].iter().map(|&q| i64::from(q)).collect();
            let sum: i64 = q.iter().sum();
            let dot: i64 = q.iter().zip(&codes[group * B::GROUP..]).map(|(q, &code)| q * i64::from(code)).sum();
            let d = f64::from(act.d[first / ACT_GROUP]);
            let (scale, min) = match B::KIND {
                GroupKind::Offset(offset) => (f64::from(scales[group]), -f64::from(offset) * f64::from(scales[group])),
                GroupKind::Min => (f64::from(scales[group]), f64::from(mins[group])),
            };
            total += scale * d * dot as f64 + min * d * sum as f64;
            // Sums inside a register see a group's parts, each no larger than the sum of its products' magnitudes. Codes are unsigned
            // there: what their offset takes off may come last.
            let parts: i64 =
                q.iter().zip(&codes[group * B::GROUP..]).map(|(q, &code)| (q * i64::from(code)).abs()).sum();
            magnitude += scale.abs() * d * parts as f64 + (min * d * sum as f64).abs();
        }
    }
    (total, magnitude)
}

/// Each of at most 3·K/16 additions and products rounds by half a unit in the last place of a partial sum, and no partial sum
/// exceeds the magnitude; they don't all round the same way, which the factor of 1/8 uses.
fn bound(k: usize, magnitude: f64) -> f64 {
    let steps = (3 * k / 16 + 16) as f64;
    steps / 8.0 * f64::from(f32::EPSILON) * magnitude + f64::from(f32::MIN_POSITIVE)
}

/// The sum of k exact products, and what f32 may miss it by.
fn sum_of(k: usize, terms: impl Iterator<Item = f64>) -> (f64, f64) {
    let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), t| (sum + t, all + t.abs()));
    (sum, (k as f64 / 8.0 + 8.0) * f64::from(f32::EPSILON) * magnitude)
}

/// [`exact_q8`] of every element.
fn all_exact_q8(case: &Case, acts: &ActRows) -> Vec<(f64, f64)> {
    let matrix = case.matrix();
    (0..acts.num_rows * case.n).map(|i| exact_q8(&matrix, acts, i / case.n, i % case.n)).collect()
}

fn check_q8(kernels: &CpuKernels, case: &Case, acts: &ActRows, exact: &[(f64, f64)]) -> Vec<f32> {
    let matrix = case.matrix();
    let mut out = vec![f32::NAN; acts.num_rows * case.n];
    kernels.matmul_q8_all(&matrix, acts, &mut out, &mut Scratch::for_shapes(case.k));
    for m in 0..acts.num_rows {
        for n in 0..case.n {
            let (expected, magnitude) = exact[m * case.n + n];
            let (got, tolerance) = (f64::from(out[m * case.n + n]), bound(case.k, magnitude));
            assert!(
                (got - expected).abs() <= tolerance,
                "{} {} M {} N {} K {}: [{m}, {n}] is {got}, not {expected} ± {tolerance}",
                kernels.isa().name(),
                case.dtype,
                acts.num_rows,
                case.n,
                case.k,
            );
        }
    }
    out
}

#[test]
fn activations_are_quantised_bit_for_bit_as_by_the_scalar_code() {
    let scalar = CpuKernels::for_isa(Isa::Scalar).unwrap();
    let mut rng = Rng(3);
    let mut rows: Vec<Vec<f32>> = (1..20).map(|groups| rng.normals(groups * 32)).collect();
    rows.push(vec![0.0; 64]);
    rows.push((0..96).map(|i| [1e-38, -3e-37, 5e-45, 0.0][i % 4]).collect());
    rows.push((0..64).map(|i| if i == 40 { f32::INFINITY } else { 1.0 }).collect());
    rows.push((0..64).map(|i| if i == 7 { f32::NAN } else { i as f32 }).collect());
    rows.push((0..64).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }).collect());
    // Halves: where rounding to even shows.
    rows.push((0..128).map(|i| if i % 32 == 0 { 127.0 } else { (i % 32) as f32 - 15.5 }).collect());
    for x in rows {
        let quantise = |kernels: &CpuKernels| {
            let (mut q, mut d, mut sums) = (vec![99; x.len()], vec![-1.0; x.len() / 32], vec![99; x.len() / 16]);
            kernels.quantize_act_row(&x, &mut q, &mut d, &mut sums);
            (q, d.iter().map(|d: &f32| d.to_bits()).collect::<Vec<_>>(), sums)
        };
        let expected = quantise(&scalar);
        for (i, sum) in expected.2.iter().enumerate() {
            assert_eq!(i32::from(*sum), expected.0[i * 16..][..16].iter().map(|&q| i32::from(q)).sum::<i32>());
        }
        for (group, x) in x.chunks(32).enumerate().filter(|(_, x)| x.iter().all(|x| x.is_finite())) {
            let d = f64::from(f32::from_bits(expected.1[group]));
            for (i, &x) in x.iter().enumerate() {
                let error = (f64::from(x) - d * f64::from(expected.0[group * 32 + i])).abs();
                assert!(error <= 0.5001 * d + 4e-37, "{x} in steps of {d}");
            }
        }
        for kernels in all_kernels() {
            assert_eq!(quantise(&kernels), expected, "{}", kernels.isa().name());
        }
    }
}

/// Every ISA on one case. Activations are the same for all (see above).
fn check_q8_everywhere(kernels: &[CpuKernels], case: &Case) {
    let mut buffer = ActBuffer::default();
    let acts = buffer.quantize(&kernels[0], &case.x, case.k).unwrap();
    let exact = all_exact_q8(case, &acts);
    for kernels in kernels {
        check_q8(kernels, case, &acts, &exact);
    }
}

#[test]
fn matmul_q8_for_every_batch_size() {
    let kernels = all_kernels();
    for dtype in q8_types() {
        let k = 512 + dtype.block_len();
        for m in 1..=40 {
            check_q8_everywhere(&kernels, &Case::new(dtype, m, 35, k, m as u64));
        }
    }
}

#[test]
fn matmul_q8_for_every_shape() {
    let kernels = all_kernels();
    for dtype in q8_types() {
        for blocks in [1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 25, 33, 65] {
            let k = blocks * dtype.block_len();
            if k > 2560 {
                continue;
            }
            for n in [1, 2, 3, 4, 5, 31, 32, 33, 66] {
                for m in [1, 3, 4, 8, 9, 13] {
                    check_q8_everywhere(&kernels, &Case::new(dtype, m, n, k, (blocks * 100 + n) as u64));
                }
            }
        }
    }
}

/// The second slab of activations, and chunks of K of the large GEMM.
#[test]
fn matmul_q8_beyond_one_slab() {
    let kernels: Vec<_> = all_kernels().into_iter().filter(|kernels| kernels.isa() != Isa::Scalar).collect();
    if kernels.is_empty() {
        eprintln!("SKIP: only the scalar code, which has no slabs");
        return;
    }
    for dtype in [QuantType::Q4_0, QuantType::Q4_K, QuantType::Q6_K, QuantType::Q2_K] {
        check_q8_everywhere(&kernels, &Case::new(dtype, 515, 5, 1536, 4));
    }
}

#[test]
fn matmul_q8_at_the_extremes() {
    let kernels = all_kernels();
    for dtype in q8_types() {
        let k = 512;
        for byte in [0x00, 0xff, 0x0f, 0xf0, 0x80, 0x7f] {
            let mut case = Case::new(dtype, 1, 33, k, 1);
            let sane = case.weights.clone();
            case.weights.fill(byte);
            // Keep the half-precision fields of the random row: everything else is at its extreme.
            for (block, sane) in
                case.weights.chunks_exact_mut(dtype.block_bytes()).zip(sane.chunks_exact(dtype.block_bytes()))
            {
                let halves = match dtype {
                    QuantType::Q2_K => 80..84,
                    QuantType::Q3_K => 108..110,
                    QuantType::Q6_K => 208..210,
                    QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q8_1 | QuantType::Q4_K | QuantType::Q5_K => 0..4,
                    QuantType::Q8_K => 0..4,
                    QuantType::TQ1_0 => 52..54,
                    QuantType::TQ2_0 => 64..66,
                    // A quarter of d in each word.
                    QuantType::IQ1_M => 48..56,
                    QuantType::MXFP4 => 0..1,
                    // Every byte is a number.
                    QuantType::NVFP4 => 0..0,
                    _ => 0..2,
                };
                block[halves.clone()].copy_from_slice(&sane[halves]);
            }
            for m in [1, 4, 8, 12, 13] {
                for pattern in
                    [|_| 127, |_| -127, |i| if i % 2 == 0 { 127 } else { -127 }, |i| if i % 4 < 2 { 127 } else { -127 }]
                        as [fn(usize) -> i8; 4]
                {
                    let q: Vec<i8> = (0..m * k).map(pattern).collect();
                    let sums: Vec<i16> = q.chunks(16).map(|q| q.iter().map(|&q| i16::from(q)).sum()).collect();
                    let d = vec![1.0; m * k / 32];
                    let mut acts = ActRows { num_rows: m, k, q: &q, d: &d, sums: &sums, packed: None };
                    let [q_len, d_len, sums_len] = PackedActs::lengths(m, k);
                    let (mut q, mut d, mut sums) = (vec![0; q_len], vec![f32::NAN; d_len], vec![-1; sums_len]);
                    let to = PackedBlock { q: q.as_mut_ptr(), d: d.as_mut_ptr(), sums: sums.as_mut_ptr() };
                    // SAFETY: one block, m ≤ 32.
                    unsafe { kernels[0].pack_acts(&acts, 0, to) };
                    acts.packed = Some(PackedActs { q: &q, d: &d, sums: &sums });
                    let exact = all_exact_q8(&case, &acts);
                    for kernels in &kernels {
                        check_q8(kernels, &case, &acts, &exact);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for kernels in all_kernels() {
        for dtype in q8_types() {
            let k = 1536;
            let case = Case::new(dtype, 40, 37, k, 5);
            let mut buffer = ActBuffer::default();
            let acts = buffer.quantize(&kernels, &case.x, k).unwrap();
            let exact = all_exact_q8(&case, &acts);
            let unpacked = ActRows { packed: None, ..acts };
            let few = check_q8(&kernels, &case, &unpacked.rows(0..1), &exact);
            for m in 2..=DECODE_ROWS {
                let batch = check_q8(&kernels, &case, &unpacked.rows(0..m), &exact);
                assert_eq!(few, batch[..case.n], "{} {dtype} M {m}", kernels.isa().name());
            }
            let many = check_q8(&kernels, &case, &acts.rows(0..1), &exact);
            for m in 2..=40 {
                let batch = check_q8(&kernels, &case, &acts.rows(0..m), &exact);
                assert_eq!(many[..case.n], batch[..case.n], "{} {dtype} M {m}", kernels.isa().name());
            }
        }
    }
}

#[test]
fn only_the_rows_asked_for_are_written() {
    for kernels in all_kernels() {
        for dtype in float_and_q8_types() {
            let (n, k, stride) = (70, 256, 75);
            for m in [1, 3, 8, 11] {
                let case = Case::new(dtype, m, n, k, 9);
                let matrix = case.matrix();
                let mut scratch = Scratch::for_shapes(k);
                let mut buffer = ActBuffer::default();
                let acts = buffer.quantize(&kernels, &case.x, k).unwrap();
                for rows in [0..0, 0..1, 3..40, 32..64, 69..70, 0..70] {
                    let mut whole = vec![0.0; m * n];
                    let mut out = vec![7777.0; m * stride];
                    // SAFETY: `out` is [m, stride] with stride above n.
                    unsafe {
                        if dtype.is_float() {
                            kernels.matmul_f32_all(&matrix, &case.x, m, &mut whole, &mut scratch);
                            let base = out.as_mut_ptr();
                            kernels.matmul_f32(&matrix, rows.clone(), &case.acts(), base, stride, &mut scratch);
                        } else {
                            kernels.matmul_q8_all(&matrix, &acts, &mut whole, &mut scratch);
                            kernels.matmul_q8(&matrix, rows.clone(), &acts, out.as_mut_ptr(), stride, &mut scratch);
                        }
                    }
                    for (i, &got) in out.iter().enumerate() {
                        let (m, n) = (i / stride, i % stride);
                        let expected = if rows.contains(&n) { whole[m * case.n + n] } else { 7777.0 };
                        assert_eq!(got, expected, "{} {dtype} {rows:?} [{m}, {n}]", kernels.isa().name());
                    }
                }
            }
        }
    }
}

#[test]
fn matmul_f32_for_every_type_and_shape() {
    for kernels in all_kernels() {
        for dtype in float_and_q8_types() {
            let unit = dtype.block_len();
            let ks = if unit == 1 {
                vec![1, 3, 15, 16, 17, 31, 33, 255, 256, 257, 500]
            } else {
                vec![unit, 2 * unit, 3 * unit, 512 + unit]
            };
            for k in ks {
                for (i, n) in [1, 2, 3, 4, 5, 7, 31, 32, 33, 65].into_iter().enumerate() {
                    let ms = if i == 4 { (1..=40).collect() } else { vec![1, 2, 5, 8, 9, 12, 25] };
                    for m in ms {
                        let case = Case::new(dtype, m, n, k, (k + n) as u64);
                        let mut dense = vec![0.0; n * k];
                        for (row, dense) in dense.chunks_exact_mut(k).enumerate() {
                            dtype.dequantize_row(case.matrix().row(row), dense).unwrap();
                            let mut same = vec![0.0; k];
                            kernels.dequantize_row(dtype, case.matrix().row(row), &mut same).unwrap();
                            assert_eq!(dense, same, "{} {dtype}", kernels.isa().name());
                        }
                        let mut out = vec![f32::NAN; m * n];
                        let mut scratch = Scratch::for_shapes(k);
                        kernels.matmul_f32_all(&case.matrix(), &case.x, m, &mut out, &mut scratch);
                        for (i, &got) in out.iter().enumerate() {
                            let (w, x) = (&dense[i % n * k..][..k], &case.x[i / n * k..][..k]);
                            let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                            let (expected, tolerance) = sum_of(k, terms);
                            assert!(
                                (f64::from(got) - expected).abs() <= tolerance,
                                "{} {dtype} M {m} N {n} K {k} [{i}]: {got}, not {expected} ± {tolerance}",
                                kernels.isa().name(),
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A row alone, and the same one among more than a kernel takes at once.
#[test]
fn invariant_rows_do_not_depend_on_others() {
    for kernels in all_kernels() {
        for dtype in float_and_q8_types() {
            let (n, k, m) = (37, 512, 75);
            let case = Case::new(dtype, m, n, k, 5);
            let product = |rows: std::ops::Range<usize>| {
                let x = &case.x[rows.start * k..rows.end * k];
                let mut out = vec![f32::NAN; rows.len() * n];
                let mut scratch = Scratch::for_shapes(k);
                if dtype.is_float() {
                    let acts =
                        FloatActs { x, stride: k, num_rows: rows.len(), numerics: Numerics::Invariant, packed: None };
                    // SAFETY: `out` is [rows, n].
                    unsafe {
                        kernels.matmul_rounded(&case.matrix(), 0..n, &acts, out.as_mut_ptr(), n, &mut scratch);
                    }
                } else {
                    // Packed is what more than DECODE_ROWS rows are in any case; the others of theirs are zeros here.
                    let mut padded = x.to_vec();
                    padded.resize(x.len().max(9 * k), 0.0);
                    let mut buffer = ActBuffer::default();
                    let acts = buffer.quantize(&kernels, &padded, k).unwrap();
                    let packed = acts.packed.map(|packed| {
                        let [q, d, sums] = PackedActs::lengths(rows.len(), k);
                        PackedActs { q: &packed.q[..q], d: &packed.d[..d], sums: &packed.sums[..sums] }
                    });
                    let acts = ActRows { packed, ..ActRows { packed: None, ..acts }.rows(0..rows.len()) };
                    kernels.matmul_q8_all(&case.matrix(), &acts, &mut out, &mut scratch);
                }
                out
            };
            let whole = product(0..m);
            for rows in [0..1, 74..75, 7..12, 30..41, 3..36] {
                let part = product(rows.clone());
                assert_eq!(part, whole[rows.start * n..rows.end * n], "{} {dtype} {rows:?}", kernels.isa().name());
            }
        }
    }
}

/// Rows that were packed before, in cuts that begin inside a block, as workers make them; more of them than a slab takes.
#[test]
fn packed_rows_give_the_bits_of_others() {
    for kernels in all_kernels() {
        for (dtype, m, k, columns) in [(QuantType::F16, 545, 288, 3..40), (QuantType::Q4_K, 33, 512, 0..250)] {
            let case = Case::new(dtype, m, 251, k, 6);
            let mut packed = vec![f32::NAN; m.next_multiple_of(PACK_ROWS) * k];
            for first in (0..m).step_by(PACK_ROWS / 2) {
                let (rows, lane) = (first..m.min(first + PACK_ROWS / 2), first % PACK_ROWS);
                let block = packed[(first - lane) * k..].as_mut_ptr();
                // SAFETY: lanes of a whole block.
                unsafe { kernels.pack_floats(&case.x[rows.start * k..rows.end * k], k, rows.len(), k, lane, block) };
            }
            let product = |packed| {
                let mut out = vec![7.0f32; m * case.n];
                let acts = FloatActs { packed, ..case.acts() };
                let scratch = &mut Scratch::for_shapes(k);
                // SAFETY: `out` is [m, n].
                unsafe {
                    kernels.matmul_f32(&case.matrix(), columns.clone(), &acts, out.as_mut_ptr(), case.n, scratch);
                }
                out
            };
            assert_eq!(product(Some(&packed)), product(None), "{} {dtype}", kernels.isa().name());
        }
    }
}

/// Results that stay lanes are those of the plain matmul, for more rows than a slab has and columns of several blocks.
#[test]
fn lanes_are_the_transposed_output() {
    for kernels in all_kernels().into_iter().filter(CpuKernels::has_lanes) {
        for (dtype, m, k, columns) in
            [(QuantType::Q4_K, 33, 512, 0..251), (QuantType::Q6_K, 545, 256, 7..40), (QuantType::Q8_0, 9, 1600, 3..4)]
        {
            let case = Case::new(dtype, m, 251, k, 8);
            let mut buffer = ActBuffer::default();
            let acts = buffer.quantize(&kernels, &case.x, k).unwrap();
            let (mut out, mut scratch) = (vec![7.0; m * case.n], Scratch::for_shapes(k));
            // SAFETY: `out` is [m, n].
            unsafe {
                kernels.matmul_q8(&case.matrix(), columns.clone(), &acts, out.as_mut_ptr(), case.n, &mut scratch);
            }
            let cols = CpuKernels::lane_cols(columns.len());
            let mut lanes = vec![7.0; m.next_multiple_of(PACK_ROWS) * cols];
            kernels.matmul_q8_lanes(&case.matrix(), columns.clone(), &acts, &mut lanes, &mut scratch);
            for (i, x) in out.iter().enumerate() {
                let (row, col) = (i / case.n, i % case.n);
                let expected = if columns.contains(&col) {
                    lanes[(row / PACK_ROWS * cols + col - columns.start) * PACK_ROWS + row % PACK_ROWS]
                } else {
                    7.0
                };
                assert_eq!(x.to_bits(), expected.to_bits(), "{} {dtype} [{row}, {col}]", kernels.isa().name());
            }
        }
    }
}

/// The product of 16-bit weights with activations, both rounded to bf16, on the tables that round.
#[test]
fn matmul_rounded_is_exact_on_rounded_factors() {
    let kernels: Vec<_> = all_kernels().into_iter().filter(|kernels| kernels.matmul_bf16.is_some()).collect();
    if kernels.is_empty() {
        eprintln!("SKIP: nothing multiplies bf16 here");
    }
    for kernels in kernels {
        for (dtype, (k, n, m)) in [QuantType::BF16, QuantType::F16].into_iter().flat_map(|dtype| {
            [(32, 1, 9), (64, 31, 16), (512, 33, 33), (544, 64, 40), (1056, 5, 515)].map(|shape| (dtype, shape))
        }) {
            let case = Case::new(dtype, m, n, k, k as u64);
            let mut out = vec![7777.0; m * (n + 3)];
            let mut scratch = Scratch::for_shapes(k);
            // SAFETY: `out` is [m, n + 3].
            unsafe {
                kernels.matmul_rounded(&case.matrix(), 0..n, &case.acts(), out.as_mut_ptr(), n + 3, &mut scratch);
            }
            let mut dense = vec![0.0; n * k];
            for (row, dense) in dense.chunks_exact_mut(k).enumerate() {
                dtype.dequantize_row(case.matrix().row(row), dense).unwrap();
            }
            let round = |x: &f32| half::bf16::from_f32(*x).to_f64();
            let (dense, rounded): (Vec<_>, Vec<_>) =
                (dense.iter().map(round).collect(), case.x.iter().map(round).collect());
            for (i, &got) in out.iter().enumerate() {
                let (m, n) = (i / (n + 3), i % (n + 3));
                if n >= case.n {
                    assert_eq!(got, 7777.0, "{} [{m}, {n}]", kernels.isa().name());
                    continue;
                }
                let terms = dense[n * k..][..k].iter().zip(&rounded[m * k..][..k]).map(|(w, x): (&f64, &f64)| w * x);
                let (expected, tolerance) = sum_of(k, terms);
                assert!(
                    (f64::from(got) - expected).abs() <= tolerance,
                    "{} {dtype} K {k} [{m}, {n}]: {got}, not {expected} ± {tolerance}",
                    kernels.isa().name(),
                );
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    for kernels in all_kernels() {
        for dtype in q8_types() {
            let k = 512;
            for m in [1, 9] {
                for poison in [f32::NAN, f32::INFINITY] {
                    let mut case = Case::new(dtype, m, 33, k, 2);
                    case.x[300] = poison;
                    let mut buffer = ActBuffer::default();
                    let acts = buffer.quantize(&kernels, &case.x, k).unwrap();
                    let mut out = vec![0.0; m * 33];
                    kernels.matmul_q8_all(&case.matrix(), &acts, &mut out, &mut Scratch::for_shapes(k));
                    assert!(out[..33].iter().all(|x| x.is_nan()), "{} {dtype} {poison}", kernels.isa().name());
                    assert!(out[33..].iter().all(|x| x.is_finite()), "{} {dtype} {poison}", kernels.isa().name());
                }
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(MatrixRef::new(QuantType::Q4_K, 2, 255, &[0; 288]).is_err());
    assert!(MatrixRef::new(QuantType::Q4_K, 2, 256, &[0; 287]).is_err());
    assert!(MatrixRef::new(QuantType::I8, 1, 256, &[0; 256]).is_err());
    assert!(MatrixRef::new(QuantType::F32, usize::MAX, 2, &[]).is_err());
    let kernels = CpuKernels::detect();
    assert!(ActBuffer::default().quantize(&kernels, &[0.0; 33], 33).is_err());
    assert!(ActBuffer::default().quantize(&kernels, &[0.0; 33], 32).is_err());
}
