//! Matmuls on quantised weights and many rows, both rounded to bf16.

use super::*;
use crate::cpu::pack::{RoundedActs, RoundedBuffer};

/// The tables that round, or a word that there are none.
fn rounding_kernels() -> Vec<CpuKernels> {
    let kernels: Vec<_> = all_kernels().into_iter().filter(CpuKernels::rounds_many).collect();
    if kernels.is_empty() {
        eprintln!("SKIP: nothing rounds quantised weights here");
    }
    kernels
}

fn product(kernels: &CpuKernels, case: &Case, columns: std::ops::Range<usize>, stride: usize) -> Vec<f32> {
    let mut buffer = RoundedBuffer::default();
    let acts = buffer.round(kernels, &case.x, case.k).unwrap();
    let (mut out, mut scratch) = (vec![7777.0; acts.num_rows * stride], Scratch::for_shapes(case.k));
    // SAFETY: `out` is [m, stride], and a stride holds all columns.
    unsafe {
        kernels.matmul_on_rounded(&case.matrix(), columns, &acts, out.as_mut_ptr(), stride, &mut scratch);
    }
    out
}

/// Every product of two bf16 is exact; what is left are the roundings of sums.
#[test]
fn products_are_those_of_rounded_factors() {
    let round = |x: f32| half::bf16::from_f32(x).to_f64();
    for kernels in rounding_kernels() {
        for dtype in q8_types() {
            for (m, n, k, columns) in [
                (9, 1, 256, 0..1),
                (16, 33, 768, 0..33),
                (17, 50, 1280, 17..50),
                (33, 300, 256, 0..300),
                (530, 20, 512, 3..20),
                (40, 35, 544, 0..35),
                (12, 16, 32, 0..16),
            ] {
                if dtype.row_bytes(k).is_none() {
                    continue;
                }
                let case = Case::new(dtype, m, n, k, (m + n + k) as u64);
                let out = product(&kernels, &case, columns.clone(), n + 3);
                let mut dense = vec![0.0; n * k];
                for (row, dense) in dense.chunks_exact_mut(k).enumerate() {
                    dtype.dequantize_row(case.matrix().row(row), dense).unwrap();
                }
                let dense: Vec<f64> = dense.into_iter().map(round).collect();
                let x: Vec<f64> = case.x.iter().map(|&x| round(x)).collect();
                for (i, &got) in out.iter().enumerate() {
                    let (row, col) = (i / (n + 3), i % (n + 3));
                    if !columns.contains(&col) {
                        assert_eq!(got, 7777.0, "{dtype} [{row}, {col}]");
                        continue;
                    }
                    let terms = dense[col * k..][..k].iter().zip(&x[row * k..][..k]).map(|(w, x)| w * x);
                    let (expected, tolerance) = sum_of(k, terms);
                    // Tiles take subnormal numbers for zero.
                    let tolerance = tolerance + 1e-30;
                    assert!(
                        (f64::from(got) - expected).abs() <= tolerance,
                        "{} {dtype} M {m} N {n} K {k} [{row}, {col}]: {got}, not {expected} ± {tolerance}",
                        kernels.isa().name(),
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_depends_on_nothing_else() {
    for kernels in rounding_kernels() {
        for dtype in [QuantType::Q4_0, QuantType::Q6_K] {
            let case = Case::new(dtype, 545, 70, 768, 3);
            let whole = product(&kernels, &case, 0..70, 70);
            for rows in [0..1, 7..12, 20..61, 500..545] {
                let x = case.x[rows.start * case.k..rows.end * case.k].to_vec();
                let part = Case { x, weights: case.weights.clone(), ..case };
                let part = product(&kernels, &part, 0..70, 70);
                assert_eq!(part, whole[rows.start * 70..rows.end * 70], "{dtype} {rows:?}");
            }
            let part = product(&kernels, &case, 31..49, 70);
            for (part, whole) in part.chunks(70).zip(whole.chunks(70)) {
                assert_eq!(part[31..49], whole[31..49], "{dtype}");
            }
        }
    }
}

#[test]
fn lanes_are_the_transposed_output_of_rounded_rows() {
    for kernels in rounding_kernels() {
        for (m, columns) in [(33, 0..96), (545, 7..40), (9, 60..61), (70, 0..250)] {
            let case = Case::new(QuantType::Q4_K, m, 251, 768, 8);
            let out = product(&kernels, &case, columns.clone(), case.n);
            let mut buffer = RoundedBuffer::default();
            let acts = buffer.round(&kernels, &case.x, case.k).unwrap();
            let cols = CpuKernels::lane_cols(columns.len());
            let mut lanes = vec![7.0; m.next_multiple_of(PACK_ROWS) * cols];
            let scratch = &mut Scratch::for_shapes(case.k);
            kernels.matmul_on_rounded_lanes(&case.matrix(), columns.clone(), &acts, &mut lanes, scratch);
            for (row, col) in (0..m).flat_map(|row| columns.clone().map(move |col| (row, col))) {
                let lane = lanes[(row / PACK_ROWS * cols + col - columns.start) * PACK_ROWS + row % PACK_ROWS];
                assert_eq!(lane.to_bits(), out[row * case.n + col].to_bits(), "[{row}, {col}]");
            }
        }
    }
}

/// Rows from any lane on, with another stride, and lanes that hold columns of rows.
#[test]
fn rows_and_lanes_are_rounded_alike() {
    for kernels in rounding_kernels() {
        let (k, stride) = (96, 100);
        let mut x = Rng(4).normals(PACK_ROWS * stride);
        (x[3], x[stride + 40], x[5 * stride + 1]) = (f32::INFINITY, f32::NAN, f32::MAX);
        let mut pairs = vec![1u32; RoundedActs::len(PACK_ROWS, k)];
        for rows in [0..8, 8..9, 9..31] {
            let (first, len) = (rows.start, rows.len());
            // SAFETY: lanes of a whole block.
            unsafe { kernels.round_acts(&x[first * stride..], stride, len, k, first, pairs.as_mut_ptr()) };
        }
        for (i, &pair) in pairs.iter().enumerate() {
            let (at, row) = (i / PACK_ROWS * 2, i % PACK_ROWS);
            let expected = [0, 1].map(|i| half::bf16::from_f32(x[row * stride + at + i]));
            let got = [pair & 0xffff, pair >> 16].map(|bits| half::bf16::from_bits(bits as u16));
            if row == 31 {
                assert_eq!(pair, 1, "a lane that nobody named");
            } else {
                let same = |(a, b): (&half::bf16, &half::bf16)| a == b || a.is_nan() && b.is_nan();
                assert!(got.iter().zip(&expected).all(same), "[{row}, {at}]: {got:?}, not {expected:?}");
            }
        }
        for (first, pairs) in (0..k).step_by(ACT_GROUP).zip(pairs.chunks_exact(ACT_GROUP / 2 * PACK_ROWS)) {
            let mut lanes = [[0.0; PACK_ROWS]; ACT_GROUP];
            for (col, lanes) in lanes.iter_mut().enumerate() {
                lanes.iter_mut().enumerate().for_each(|(row, lane)| *lane = x[row * stride + first + col]);
            }
            let mut rounded = [[0; PACK_ROWS]; ACT_GROUP / 2];
            kernels.round_lanes(&lanes, &mut rounded);
            for (rounded, pairs) in rounded.iter().zip(pairs.chunks_exact(PACK_ROWS)) {
                assert_eq!(rounded[..31], pairs[..31]);
            }
        }
    }
}

/// What the README says of rounding: it is closer to the exact product than activations in 8 bits.
#[test]
fn rounding_errs_less_than_8_bits() {
    for kernels in rounding_kernels() {
        for dtype in [QuantType::Q4_0, QuantType::Q4_K, QuantType::Q6_K, QuantType::Q8_0] {
            let case = Case::new(dtype, 20, 64, 1024, 11);
            let (mut exact, mut scratch) = (vec![0.0; 20 * 64], Scratch::for_shapes(case.k));
            kernels.matmul_f32_all(&case.matrix(), &case.x, 20, &mut exact, &mut scratch);
            let error = |out: &[f32]| -> f64 {
                out.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
            };
            let rounded = error(&product(&kernels, &case, 0..64, 64));
            let (mut buffer, mut out) = (ActBuffer::default(), vec![0.0; 20 * 64]);
            let acts = buffer.quantize(&kernels, &case.x, case.k).unwrap();
            kernels.matmul_q8_all(&case.matrix(), &acts, &mut out, &mut scratch);
            let (quantized, all) = (error(&out), error(&[0.0; 20 * 64]));
            println!("{dtype}: {:.5} rounded, {:.5} in 8 bits", rounded / all, quantized / all);
            assert!(rounded < quantized, "{dtype}: {rounded}, {quantized} in 8 bits");
        }
    }
}

/// What AMX must pass before it is used: other tables do, and one that multiplies wrongly doesn't.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_check_of_amx_can_fail() {
    let Some(kernels) = CpuKernels::for_isa(Isa::Avx512Vnni) else {
        eprintln!("SKIP avx512vnni: this CPU lacks it");
        return;
    };
    assert!(avx512::amx::agrees_with_scalar(&kernels).unwrap());
    for wrong in [
        CpuKernels { matmul_q8: |w, rows, _, out, stride, _| clear(w, rows, out, stride), ..kernels },
        CpuKernels { matmul_bf16: Some(|w, rows, _, out, stride, _| clear(w, rows, out, stride)), ..kernels },
        // Takes weights and activations for zeros.
        CpuKernels {
            rounded: Some(crate::cpu::kernels::Rounding {
                matmul: |w, rows, acts, output, _| {
                    let gemm::Output::Rows { out, stride } = output else { return };
                    (0..acts.num_rows).for_each(|row| clear(w, rows.clone(), out.wrapping_add(row * stride), stride));
                },
                round_acts: |_, _, _, _, _| {},
                round_lanes: |_, _| {},
            }),
            ..kernels
        },
    ] {
        assert!(!avx512::amx::agrees_with_scalar(&wrong).unwrap());
    }

    /// Only the first row, and that as zeros.
    fn clear(_: &MatrixRef, rows: std::ops::Range<usize>, out: *mut f32, _: usize) {
        for n in rows {
            // SAFETY: the caller's output.
            unsafe { out.add(n).write(0.0) };
        }
    }
}

#[test]
fn rounded_shapes_that_do_not_fit_are_refused() {
    for kernels in rounding_kernels() {
        assert!(RoundedBuffer::default().round(&kernels, &[0.0; 33], 33).is_err());
        assert!(RoundedBuffer::default().round(&kernels, &[0.0; 33], 32).is_err());
        let case = Case::new(QuantType::Q4_0, 9, 4, 64, 1);
        let mut buffer = RoundedBuffer::default();
        let acts = buffer.round(&kernels, &case.x, case.k).unwrap();
        let (mut lanes, mut scratch) = (vec![0.0; PACK_ROWS * CpuKernels::lane_cols(4)], Scratch::for_shapes(case.k));
        let short = RoundedActs { pairs: &acts.pairs[1..], ..acts };
        for (acts, rows, len) in [(acts, 0..5, lanes.len()), (short, 0..4, lanes.len()), (acts, 0..4, 1)] {
            let call = std::panic::AssertUnwindSafe(|| {
                kernels.matmul_on_rounded_lanes(&case.matrix(), rows, &acts, &mut lanes[..len], &mut scratch);
            });
            assert!(std::panic::catch_unwind(call).is_err());
        }
    }
}
