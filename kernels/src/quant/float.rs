//! Rows of F32, F16 and BF16, scalar.

use half::{bf16, f16};

use super::QuantType;
use crate::error::Result;

/// Half to single precision, exact. In plain integer arithmetic: the `half` crate asks for CPU features on each call.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal; an exponent of all ones stays all ones.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// Little-endian half at the start of a block.
#[inline]
pub(crate) fn f16_le(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// Nearest half, as bytes.
pub(crate) fn f16_bytes(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// `src` holds exactly `dst.len()` elements.
pub(crate) fn to_f32(dtype: QuantType, src: &[u8], dst: &mut [f32]) -> Result<()> {
    match dtype {
        QuantType::F32 => {
            for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
                *dst = f32::from_le_bytes(*src);
            }
        }
        QuantType::F16 => {
            for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
                *dst = f16_le(*src);
            }
        }
        QuantType::BF16 => {
            for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
                *dst = f32::from_bits(u32::from(u16::from_le_bytes(*src)) << 16);
            }
        }
        _ => return Err(dtype.no_kernel()),
    }
    Ok(())
}

/// `dst` holds exactly `src.len()` elements.
pub(crate) fn from_f32(dtype: QuantType, src: &[f32], dst: &mut [u8]) -> Result<()> {
    match dtype {
        QuantType::F32 => {
            for (src, dst) in src.iter().zip(dst.as_chunks_mut().0) {
                *dst = src.to_le_bytes();
            }
        }
        QuantType::F16 => {
            for (src, dst) in src.iter().zip(dst.as_chunks_mut().0) {
                *dst = f16_bytes(*src);
            }
        }
        QuantType::BF16 => {
            for (src, dst) in src.iter().zip(dst.as_chunks_mut().0) {
                *dst = bf16::from_f32(*src).to_le_bytes();
            }
        }
        _ => return Err(dtype.no_kernel()),
    }
    Ok(())
}
