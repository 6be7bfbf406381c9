//! Formats: round trips within the step of the format, and values against an implementation that shares no code with ours.

use candle_core::quantized::k_quants::{self, GgmlType};

use super::*;

/// xorshift64*: seeded, so that a failure can be repeated.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// About normal, with a deviation of 1.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() * 0.5
    }

    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Random bytes as a row of `dtype`, with the half-precision fields made finite and small: what no quantiser would write
/// but a file may hold.
pub(crate) fn random_row(dtype: QuantType, elements: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..dtype.row_bytes(elements).unwrap()).map(|_| rng.next() as u8).collect();
    let halves: &[usize] = match dtype {
        QuantType::Q8_K => {
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block[..4].copy_from_slice(&(rng.unit() * 0.01).to_le_bytes());
            }
            &[]
        }
        // The top nibbles of four words make up d: between 2^-7 and 2^-8, or its negative.
        QuantType::IQ1_M => {
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block[53] = block[53] & 15 | 0xf0;
                block[55] = block[55] & 15 | if rng.next() & 1 == 0 { 0x10 } else { 0x90 };
            }
            &[]
        }
        QuantType::MXFP4 => {
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block[0] = 117 + (rng.next() % 6) as u8;
            }
            &[]
        }
        // Any byte is a scale.
        QuantType::NVFP4 => &[],
        QuantType::TQ1_0 => &[52],
        QuantType::TQ2_0 => &[64],
        QuantType::Q8_1 => &[0, 2],
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4_K | QuantType::Q5_K => &[0, 2],
        QuantType::Q2_K => &[80, 82],
        QuantType::Q3_K => &[108],
        QuantType::Q6_K => &[208],
        _ => &[0],
    };
    if !dtype.is_float() {
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&float::f16_bytes(rng.unit() * 0.01));
            }
        }
    } else {
        let values: Vec<f32> = (0..elements).map(|_| rng.normal() * 0.05).collect();
        dtype.quantize_row(&values, &mut bytes).unwrap();
    }
    bytes
}

#[test]
fn ids_round_trip_and_sizes_hold() {
    for &dtype in QuantType::all() {
        assert_eq!(QuantType::from_ggml(dtype.ggml_id()), Some(dtype));
        assert_eq!(QuantType::from_name(&dtype.name().to_lowercase()), Some(dtype));
        assert_eq!(dtype.row_bytes(dtype.block_len() * 3), Some(dtype.block_bytes() * 3));
        if dtype.block_len() > 1 {
            assert_eq!(dtype.row_bytes(dtype.block_len() + 1), None);
        }
    }
    assert_eq!(QuantType::from_ggml(4), None);
    assert_eq!(QuantType::from_ggml(1 << 20), None);
    assert_eq!(QuantType::F64.row_bytes(usize::MAX), None);
}

#[test]
fn types_without_kernels_say_so() {
    let error = QuantType::I8.dequantize_row(&[0; 256], &mut [0.0; 256]).unwrap_err();
    assert!(error.to_string().contains("I8") && error.to_string().contains("Q4_K"), "{error}");
    assert!(matches!(QuantType::Q4_0.dequantize_row(&[0; 18], &mut [0.0; 31]), Err(Error::RowLength { got: 31, .. })));
    assert!(matches!(QuantType::Q4_0.dequantize_row(&[0; 17], &mut [0.0; 32]), Err(Error::Length { got: 17, .. })));
}

#[test]
fn halves_are_exact() {
    for bits in 0..=u16::MAX {
        let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}: {ours} {theirs}");
    }
}

/// Root mean square error of a normal row through a format, and the most that it may be.
#[test]
fn round_trips_stay_within_the_step() {
    let cases = [
        (QuantType::F32, 0.0),
        (QuantType::F16, 5e-4),
        (QuantType::BF16, 4e-3),
        (QuantType::Q4_0, 0.11),
        (QuantType::Q4_1, 0.10),
        (QuantType::Q5_0, 0.055),
        (QuantType::Q5_1, 0.05),
        (QuantType::Q8_0, 0.007),
        (QuantType::Q4_K, 0.09),
        (QuantType::Q5_K, 0.045),
        (QuantType::Q6_K, 0.025),
        (QuantType::Q2_K, 0.35),
        (QuantType::Q3_K, 0.25),
        (QuantType::IQ4_NL, 0.10),
        (QuantType::IQ4_XS, 0.10),
        (QuantType::Q8_1, 0.007),
        (QuantType::Q8_K, 0.009),
        (QuantType::IQ3_S, 0.2),
        (QuantType::IQ3_XXS, 0.2),
        (QuantType::IQ2_S, 0.32),
        (QuantType::IQ2_XS, 0.33),
        (QuantType::IQ2_XXS, 0.34),
        (QuantType::IQ1_M, 0.5),
        (QuantType::IQ1_S, 0.55),
        (QuantType::TQ1_0, 0.5),
        (QuantType::TQ2_0, 0.5),
        (QuantType::MXFP4, 0.15),
        (QuantType::NVFP4, 0.13),
        (QuantType::Q1_0, 0.62),
        (QuantType::Q2_0, 0.45),
    ];
    let covered = cases.map(|case| case.0);
    assert!(QuantType::all().iter().all(|dtype| !dtype.has_kernels() || covered.contains(dtype)));
    for (dtype, bound) in cases {
        let x = Rng(7).normals(4096);
        let mut bytes = vec![0; dtype.row_bytes(x.len()).unwrap()];
        let mut y = vec![0.0; x.len()];
        dtype.quantize_row(&x, &mut bytes).unwrap();
        dtype.dequantize_row(&bytes, &mut y).unwrap();
        let rms = (x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f32>() / x.len() as f32).sqrt();
        eprintln!("{dtype}: {rms}");
        assert!(rms <= bound, "{dtype}: {rms} > {bound}");
        let zeros = vec![0.0; 256];
        let mut bytes = vec![0; dtype.row_bytes(256).unwrap()];
        dtype.quantize_row(&zeros, &mut bytes).unwrap();
        dtype.dequantize_row(&bytes, &mut y[..256]).unwrap();
        assert_eq!(y[..256], zeros, "{dtype}");
    }
}

fn same_as_candle<B: GgmlType>(dtype: QuantType) {
    let mut rng = Rng(u64::from(dtype.ggml_id()) + 1);
    for _ in 0..50 {
        let bytes = random_row(dtype, 512, &mut rng);
        assert_eq!(size_of::<B>(), dtype.block_bytes());
        let blocks: Vec<B> = bytes
            .chunks_exact(size_of::<B>())
            // SAFETY: candle's blocks are `repr(C)` structs of integers and halves, any bytes are a value; sizes just checked.
            .map(|chunk| unsafe { chunk.as_ptr().cast::<B>().read_unaligned() })
            .collect();
        let (mut theirs, mut ours) = (vec![0.0; 512], vec![0.0; 512]);
        B::to_float(&blocks, &mut theirs);
        dtype.dequantize_row(&bytes, &mut ours).unwrap();
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            // Products of three factors may be rounded in another order.
            assert!((ours - theirs).abs() <= 1e-6 * theirs.abs().max(0.1), "{dtype}[{i}]: {ours} vs {theirs}");
        }
    }
}

/// Formats that candle doesn't have: blocks written by hand.
#[test]
fn uneven_levels_are_where_the_format_puts_them() {
    const LEVELS: [f32; 16] =
        [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
    let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let mut block = float::f16_bytes(0.5).to_vec();
    block.extend_from_slice(&nibbles);
    let mut y = [0.0; 32];
    QuantType::IQ4_NL.dequantize_row(&block, &mut y).unwrap();
    for i in 0..16 {
        assert_eq!((y[i], y[16 + i]), (0.5 * LEVELS[i], 0.5 * LEVELS[15 - i]));
    }
    // Scales −32, −31, … by their low nibbles (high bits 0), then 31, 30, … with high bits 3: groups 0..4 and 4..8.
    let mut block = float::f16_bytes(0.25).to_vec();
    block.extend_from_slice(&0b11_11_11_11_00_00_00_00_u16.to_le_bytes());
    block.extend_from_slice(&[0x10, 0x32, 0xef, 0xcd]);
    block.extend((0..8).flat_map(|_| nibbles.clone()));
    let mut y = [0.0; 256];
    QuantType::IQ4_XS.dequantize_row(&block, &mut y).unwrap();
    for (group, scale) in [-32.0, -31.0, -30.0, -29.0, 31.0, 30.0, 29.0, 28.0].into_iter().enumerate() {
        for i in 0..16 {
            assert_eq!(y[32 * group + i], 0.25 * scale * LEVELS[i]);
            assert_eq!(y[32 * group + 16 + i], 0.25 * scale * LEVELS[15 - i]);
        }
    }
}

#[test]
fn values_are_those_of_an_independent_implementation() {
    same_as_candle::<k_quants::BlockQ4_0>(QuantType::Q4_0);
    same_as_candle::<k_quants::BlockQ4_1>(QuantType::Q4_1);
    same_as_candle::<k_quants::BlockQ5_0>(QuantType::Q5_0);
    same_as_candle::<k_quants::BlockQ5_1>(QuantType::Q5_1);
    same_as_candle::<k_quants::BlockQ8_0>(QuantType::Q8_0);
    same_as_candle::<k_quants::BlockQ4K>(QuantType::Q4_K);
    same_as_candle::<k_quants::BlockQ5K>(QuantType::Q5_K);
    same_as_candle::<k_quants::BlockQ6K>(QuantType::Q6_K);
    same_as_candle::<k_quants::BlockQ2K>(QuantType::Q2_K);
    same_as_candle::<k_quants::BlockQ3K>(QuantType::Q3_K);
}

/// Blocks of random bytes with scales from the least subnormal to the largest, and their values as computed by ggml (llama.cpp of
/// September 2026, built from the source in the package llama-cpp-python 0.3.36; for Q8_1, which ggml doesn't read, d · q). Those that
/// the Python package gguf reads were compared with it too, and agree. A file holds blocks, then f32 values.
#[test]
fn values_are_those_of_ggml() {
    macro_rules! golden {
        ($($dtype:ident)*) => {
            [$((QuantType::$dtype, include_bytes!(concat!("golden/", stringify!($dtype), ".bin")).as_slice()),)*]
        };
    }
    let files = golden!(Q8_1 Q8_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0);
    for (dtype, file) in files {
        let num_blocks = file.len() / (dtype.block_bytes() + 4 * dtype.block_len());
        let (blocks, values) = file.split_at(num_blocks * dtype.block_bytes());
        let expected: Vec<f32> = values.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert!(num_blocks >= 3 && expected.len() == num_blocks * dtype.block_len(), "{dtype}");
        let mut got = vec![f32::NAN; expected.len()];
        dtype.dequantize_row(blocks, &mut got).unwrap();
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!(got == expected, "{dtype}[{i}]: {got}, not {expected}");
        }
    }
}
