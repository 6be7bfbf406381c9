//! What a block format provides, and the scalar reference that follows from it.
//!
//! Every format here is affine: a weight is `scale · (code − offset)` or `scale · code + min`, with an unsigned 8-bit code and
//! one scale for a group of 16 or 32. [`Block::unpack`] says which, and that is enough for every kernel that isn't in a hurry:
//! the reference below, packing for GEMM, and dot products of the rarer types.

/// How the groups of a format turn codes into weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// `scale · (code − offset)`.
    Offset(u8),
    /// `scale · code + min`, with a `min` for each group.
    Min,
}

/// One block format, as it lies in a file: structs are byte arrays, so any address will do.
pub trait Block: bytemuck::Pod + Send + Sync {
    /// Its name in the table.
    const TYPE: super::QuantType;
    /// Elements in a block.
    const LEN: usize;
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize;
    /// What the codes mean.
    const KIND: GroupKind;
    /// Largest code: what the saturation proofs of 16-bit kernels rest on.
    const MAX_CODE: u8;

    /// The block that stands for `LEN` values.
    fn quantize(x: &[f32]) -> Self;

    /// Codes `[LEN]`, scales `[LEN / GROUP]` and, for [`GroupKind::Min`], minima `[LEN / GROUP]` (else left alone).
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]);

    /// The values `[LEN]`.
    #[inline]
    fn dequantize(&self, out: &mut [f32]) {
        let (mut codes, mut scales, mut mins) = ([0; 256], [0.0; 16], [0.0; 16]);
        self.unpack(&mut codes[..Self::LEN], &mut scales, &mut mins);
        for (group, (out, codes)) in out.chunks_exact_mut(Self::GROUP).zip(codes.chunks_exact(Self::GROUP)).enumerate()
        {
            let (scale, min) = (scales[group], mins[group]);
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = match Self::KIND {
                    GroupKind::Offset(offset) => scale * f32::from(i16::from(code) - i16::from(offset)),
                    GroupKind::Min => scale * f32::from(code) + min,
                };
            }
        }
    }

    /// Dot product with `x`, `[LEN]`.
    #[inline]
    fn dot(&self, x: &[f32]) -> f32 {
        let mut w = [0.0; 256];
        self.dequantize(&mut w[..Self::LEN]);
        w.iter().zip(x).map(|(w, x)| w * x).sum()
    }
}

/// Row of blocks to values.
#[inline]
pub(crate) fn dequantize_row<B: Block>(blocks: &[B], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(B::LEN)) {
        block.dequantize(out);
    }
}

/// Row of values to blocks.
pub(crate) fn quantize_row<B: Block>(x: &[f32], blocks: &mut [B]) {
    for (block, x) in blocks.iter_mut().zip(x.chunks_exact(B::LEN)) {
        *block = B::quantize(x);
    }
}
