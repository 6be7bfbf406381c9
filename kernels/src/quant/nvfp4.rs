//! NVFP4: `w = ue4m3(d) · e2m1(q)`, a scale for 16, 64 weights in 36 bytes. Codes here are twice the e2m1 value, plus 12.

use super::{
    Block, GroupKind, QuantType, fit,
    mxfp4::{LEVELS, nearest, unpack_levels},
};

/// d: four scales, 4 bits of exponent and 3 of mantissa, the eighth bit ignored. Bytes `8·g ..+ 8` of `qs` are group g: low nibbles its
/// first 8 elements, high nibbles the rest.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockNvfp4 {
    d: [u8; 4],
    qs: [u8; 32],
}

/// Half the value of each scale: for doubled values. 0x7f is a NaN that ggml reads as zero; with the ignored bit set it reads as a number.
pub(crate) static HALF_SCALES: [f32; 256] = {
    let mut out = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        let (exponent, mantissa) = (i as u32 >> 3 & 15, (i & 7) as f32);
        out[i] = if i == 0x7f {
            0.0
        } else if exponent == 0 {
            mantissa / 1024.0
        } else {
            // 2^(exponent − 8).
            (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 119) << 23)
        };
        i += 1;
    }
    out
};

impl Block for BlockNvfp4 {
    const TYPE: QuantType = QuantType::NVFP4;
    const LEN: usize = 64;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(12);
    const MAX_CODE: u8 = 24;

    fn quantize(x: &[f32]) -> Self {
        let (mut d, mut qs) = ([0; 4], [0; 32]);
        for (g, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let wanted = fit::extreme(x).abs() / 12.0;
            let above = HALF_SCALES[..0x7f].partition_point(|&scale| scale < wanted).min(0x7e);
            let mut least = f32::INFINITY;
            // The extreme at 6, or at 4 (levels are denser there), and scales beside them.
            let at_4 = HALF_SCALES[..0x7f].partition_point(|&scale| scale < wanted * 1.5).min(0x7e);
            for index in [above, above.saturating_sub(1), at_4, at_4.saturating_sub(1)] {
                let scale = HALF_SCALES[index];
                let nibbles = x.map(|x| nearest(x, fit::inverse(scale)));
                let value = |nibble: u8| scale * (f32::from(LEVELS[usize::from(nibble)]) - 12.0);
                let error: f32 = x.iter().zip(nibbles).map(|(x, nibble)| (value(nibble) - x).powi(2)).sum();
                if error < least {
                    (least, d[g]) = (error, index as u8);
                    for i in 0..8 {
                        qs[8 * g + i] = nibbles[i] | nibbles[i + 8] << 4;
                    }
                }
            }
        }
        Self { d, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (codes, qs) in codes[..64].as_chunks_mut::<16>().0.iter_mut().zip(self.qs.as_chunks::<8>().0) {
            unpack_levels(qs, codes);
        }
        for (scale, d) in scales[..4].iter_mut().zip(self.d) {
            *scale = HALF_SCALES[usize::from(d)];
        }
    }
}
