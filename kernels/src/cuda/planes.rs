//! How matrices lie on the device: a block's fields in planes of their own, so that loads are aligned and contiguous.
//!
//! Plane `p` holds bytes `fields[p]` of each block, block after block and row after row; `quant.cuh` reads them in this order.
//! Planes begin at multiples of [`PLANE_ALIGN`].

use crate::quant::{self, QuantType};

/// Alignment of a plane, in bytes: that of the widest load and of a cache line.
pub(crate) const PLANE_ALIGN: usize = 128;

/// First byte and number of bytes in a block of each plane's field. Empty for types without kernels.
pub(crate) fn fields(dtype: QuantType) -> &'static [(usize, usize)] {
    use QuantType::*;
    match dtype {
        F32 => &[(0, 4)],
        F16 | BF16 => &[(0, 2)],
        Q4_0 | IQ4_NL | Q1_0 | Q2_0 => &[(2, 16), (0, 2)],
        Q4_1 => &[(4, 16), (0, 4)],
        Q5_0 => &[(6, 16), (2, 4), (0, 2)],
        Q5_1 => &[(8, 16), (4, 4), (0, 4)],
        Q8_0 => &[(2, 32), (0, 2)],
        Q8_1 => &[(4, 32), (0, 2)],
        Q2_K => &[(16, 64), (0, 16), (80, 4)],
        Q3_K => &[(32, 64), (0, 32), (96, 12), (108, 2)],
        Q4_K => &[(16, 128), (0, 16)],
        Q5_K => &[(48, 128), (16, 32), (0, 16)],
        Q6_K => &[(0, 128), (128, 64), (192, 16), (208, 2)],
        Q8_K => &[(4, 256), (0, 4)],
        IQ1_S => &[(2, 32), (34, 16), (0, 2)],
        IQ1_M => &[(0, 32), (32, 16), (48, 8)],
        IQ2_XXS => &[(2, 64), (0, 2)],
        IQ2_XS => &[(2, 64), (66, 8), (0, 2)],
        IQ2_S => &[(2, 32), (34, 32), (66, 8), (74, 8), (0, 2)],
        IQ3_XXS => &[(2, 64), (66, 32), (0, 2)],
        IQ3_S => &[(2, 64), (66, 8), (74, 32), (106, 4), (0, 2)],
        IQ4_XS => &[(8, 128), (0, 8)],
        TQ1_0 => &[(0, 48), (48, 4), (52, 2)],
        TQ2_0 => &[(0, 64), (64, 2)],
        MXFP4 => &[(1, 16), (0, 1)],
        NVFP4 => &[(4, 32), (0, 4)],
        I8 | I16 | I32 | I64 | F64 => &[],
    }
}

/// The signed levels of a codebook's points, as bytes; `None` for types without one.
pub(crate) fn points(dtype: QuantType) -> Option<Vec<u8>> {
    let eights = |points: &[u64], offset: u8| {
        points.iter().flat_map(|point| point.to_le_bytes().map(|code| code.wrapping_sub(offset))).collect()
    };
    let fours = |points: &[u32], offset: u8| {
        points.iter().flat_map(|point| point.to_le_bytes().map(|code| code.wrapping_sub(offset))).collect()
    };
    match dtype {
        QuantType::IQ1_S | QuantType::IQ1_M => Some(eights(&quant::IQ1_POINTS, 9)),
        QuantType::IQ2_XXS => Some(eights(&quant::IQ2_XXS_POINTS, 128)),
        QuantType::IQ2_XS => Some(eights(&quant::IQ2_XS_POINTS, 128)),
        QuantType::IQ2_S => Some(eights(&quant::IQ2_S_POINTS, 128)),
        QuantType::IQ3_XXS => Some(fours(&quant::IQ3_XXS_POINTS, 128)),
        QuantType::IQ3_S => Some(fours(&quant::IQ3_S_POINTS, 15)),
        _ => None,
    }
}

/// Where the planes of so many blocks begin, and the bytes of all.
pub(crate) fn layout(dtype: QuantType, num_blocks: usize) -> (Vec<usize>, usize) {
    let mut end = 0usize;
    let starts = fields(dtype)
        .iter()
        .map(|(_, bytes)| {
            let start = end.next_multiple_of(PLANE_ALIGN);
            end = start + bytes * num_blocks;
            start
        })
        .collect();
    (starts, end)
}

/// Copies a field of whole blocks, one after the other, to `to`.
pub(crate) fn gather(dtype: QuantType, (start, len): (usize, usize), blocks: &[u8], to: &mut [u8]) {
    let block_bytes = dtype.block_bytes();
    if len == block_bytes {
        to.copy_from_slice(blocks);
        return;
    }
    for (block, to) in blocks.chunks_exact(block_bytes).zip(to.chunks_exact_mut(len)) {
        to.copy_from_slice(&block[start..start + len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_in_their_blocks_and_dont_overlap() {
        for &dtype in QuantType::all() {
            let fields = fields(dtype);
            assert_eq!(fields.is_empty(), !dtype.has_kernels(), "{dtype}");
            let mut seen = vec![false; dtype.block_bytes()];
            for &(start, len) in fields {
                seen[start..start + len].iter_mut().for_each(|seen| assert!(!std::mem::replace(seen, true), "{dtype}"));
            }
            // The sums of the activations' types are nobody's.
            let unused = seen.iter().filter(|seen| !**seen).count();
            let expected = match dtype {
                QuantType::Q8_1 => 2,
                QuantType::Q8_K => 32,
                _ if fields.is_empty() => dtype.block_bytes(),
                _ => 0,
            };
            assert_eq!(unused, expected, "{dtype}");
        }
    }

    #[test]
    fn planes_hold_the_fields_in_order() {
        let blocks: Vec<u8> = (0..3 * 18).collect();
        let (starts, bytes) = layout(QuantType::Q4_0, 3);
        assert_eq!((starts, bytes), (vec![0, PLANE_ALIGN], PLANE_ALIGN + 6));
        let mut scales = [0; 6];
        gather(QuantType::Q4_0, (0, 2), &blocks, &mut scales);
        assert_eq!(scales, [0, 1, 18, 19, 36, 37]);
    }
}
