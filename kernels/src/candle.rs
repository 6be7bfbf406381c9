//! Matmuls on weights in any of our types as candle `CustomOp`s, so that any candle model can call them.
//!
//! The arithmetic is that of f32 on the exact values of the weights: a drop-in for `matmul` on a dequantised tensor, without
//! the memory of one.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    cpu::{CpuKernels, FloatActs, MatrixRef, Numerics, ROW_TILE, Scratch},
    error::Result,
    quant::QuantType,
};

/// Whoever owns the bytes of a matrix: a mapped file, a `Vec`.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A linear layer without bias: `y = x · Wᵀ`, `W` being `[n, k]` as it lies in a file.
#[derive(Clone)]
pub struct QMatMul {
    dtype: QuantType,
    n: usize,
    k: usize,
    data: SharedBytes,
    kernels: CpuKernels,
}

impl std::fmt::Debug for QMatMul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QMatMul({} [{}, {}])", self.dtype, self.n, self.k)
    }
}

impl QMatMul {
    /// Checks that `data` is a matrix of `n` rows of `k` elements of `dtype`.
    ///
    /// # Errors
    /// Those of [`MatrixRef::new`].
    pub fn new(dtype: QuantType, n: usize, k: usize, data: SharedBytes) -> Result<Self> {
        MatrixRef::new(dtype, n, k, (*data).as_ref())?;
        Ok(Self { dtype, n, k, data, kernels: CpuKernels::detect() })
    }

    /// Output width N.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// Input width K.
    pub fn in_features(&self) -> usize {
        self.k
    }

    /// `x [.., k]` in f32 on the CPU → `[.., n]`.
    ///
    /// # Errors
    /// If `x` is not f32, not on the CPU, or its last axis is not `k`.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if x.dtype() != DType::F32 {
            bail!("{self:?}: x must be f32, got {:?}", x.dtype());
        }
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    /// `x` is `[num_rows, k]`, `out` `[num_rows, n]`.
    fn matmul(&self, x: &[f32], num_rows: usize, out: &mut [f32]) -> Result<()> {
        /// Base of `out`, for workers that write disjoint columns.
        struct Base(*mut f32);
        // SAFETY: each worker writes its own range of columns only.
        unsafe impl Sync for Base {}
        impl Base {
            fn get(&self) -> *mut f32 {
                self.0
            }
        }
        let matrix = MatrixRef::new(self.dtype, self.n, self.k, (*self.data).as_ref())?;
        assert!(x.len() == num_rows * self.k && out.len() == num_rows * self.n, "QMatMul: shapes");
        let acts = FloatActs { x, stride: self.k, num_rows, numerics: Numerics::Fast, packed: None };
        let base = Base(out.as_mut_ptr());
        // A few parts a thread even out the load; each is whole tiles.
        let parts = rayon::current_num_threads() * 4;
        let part_rows = self.n.div_ceil(parts).next_multiple_of(ROW_TILE);
        (0..self.n.div_ceil(part_rows)).into_par_iter().for_each_init(
            || Scratch::for_shapes(self.k),
            |scratch, part| {
                let rows = part * part_rows..((part + 1) * part_rows).min(self.n);
                // SAFETY: `out` holds `num_rows · n` elements (asserted) and is borrowed mutably by this call; the ranges of
                // columns are disjoint.
                unsafe { self.kernels.matmul_f32(&matrix, rows, &acts, base.get(), self.n, scratch) };
            },
        );
        Ok(())
    }
}

impl CustomOp1 for QMatMul {
    fn name(&self) -> &'static str {
        "shimmy-qmatmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{self:?}: x must be contiguous");
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let mut dims = layout.dims().to_vec();
        match dims.last_mut() {
            Some(width) if *width == self.k => *width = self.n,
            _ => bail!("{self:?}: x is {:?}, its last axis must be {}", layout.dims(), self.k),
        }
        let num_rows = x.len().checked_div(self.k).unwrap_or(0);
        let mut out = vec![0.0; num_rows * self.n];
        if !out.is_empty() {
            self.matmul(x, num_rows, &mut out).map_err(candle_core::Error::wrap)?;
        }
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::quant::tests::{Rng, random_row};

    #[test]
    fn agrees_with_candle_on_dequantised_weights() {
        let mut rng = Rng(11);
        for &dtype in QuantType::all().iter().filter(|dtype| dtype.has_kernels()) {
            for (lead, n) in [(vec![1], 33), (vec![2, 3], 64), (vec![1, 19], 7)] {
                let k = 512;
                let rows: Vec<u8> = (0..n).flat_map(|_| random_row(dtype, k, &mut rng)).collect();
                let mut dense = vec![0.0; n * k];
                dtype.dequantize_row(&rows, &mut dense).unwrap();
                let num_rows: usize = lead.iter().product();
                let x = rng.normals(num_rows * k);
                let shape: Vec<usize> = lead.iter().copied().chain([k]).collect();
                let x = Tensor::from_vec(x, shape, &Device::Cpu).unwrap();
                let ours = QMatMul::new(dtype, n, k, Arc::new(rows)).unwrap().forward(&x).unwrap();
                let w = Tensor::from_vec(dense, (n, k), &Device::Cpu).unwrap();
                let theirs = x.broadcast_matmul(&w.t().unwrap()).unwrap();
                assert_eq!(ours.dims(), theirs.dims());
                let (ours, theirs): (Vec<f32>, Vec<f32>) =
                    (ours.flatten_all().unwrap().to_vec1().unwrap(), theirs.flatten_all().unwrap().to_vec1().unwrap());
                let scale = theirs.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    let difference = (ours - theirs).abs();
                    assert!(difference <= 1e-5 * scale, "{dtype}: {ours} vs {theirs}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let owner: SharedBytes = Arc::new(vec![0u8; 36]);
        assert!(QMatMul::new(QuantType::Q4_0, 2, 64, owner.clone()).is_err());
        assert!(QMatMul::new(QuantType::I32, 1, 256, owner.clone()).is_err());
        let layer = QMatMul::new(QuantType::Q4_0, 2, 32, owner).unwrap();
        let wrong = Tensor::zeros((3, 31), DType::F32, &Device::Cpu).unwrap();
        assert!(layer.forward(&wrong).unwrap_err().to_string().contains("last axis"));
        let wrong = Tensor::zeros((3, 32), DType::F64, &Device::Cpu).unwrap();
        assert!(layer.forward(&wrong).unwrap_err().to_string().contains("f32"));
    }
}
