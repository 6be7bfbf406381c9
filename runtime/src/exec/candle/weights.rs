//! A plan's weights for candle: vectors and float matrices as f32 tensors, quantised matrices as the kernels' matmul
//! op on the mapped bytes, embedding rows dequantised as they are looked up.

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use shimmy_kernels::candle::QMatMul;

use crate::error::{Error, Result};
use crate::loader::{Bytes, TensorView};
use crate::plan::{Op, Plan, WeightId};

/// A mapped matrix as the matmul op shares it.
struct Mapped(Bytes);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// How a matrix multiplies.
enum Matrix {
    /// `[in, out]` in f32: the transposed weight.
    Dense(Tensor),
    /// The file's own blocks.
    Quantised(QMatMul),
}

/// Prepared weights, by [`WeightId`].
pub(super) struct Weights {
    views: Vec<TensorView>,
    matrices: Vec<Option<Matrix>>,
    vectors: Vec<Option<Tensor>>,
}

impl Weights {
    /// Prepares each weight for the ops that use it.
    pub(super) fn load(plan: &Plan) -> Result<Self> {
        let (mut matrices, mut vectors) = (HashSet::new(), HashSet::new());
        for op in &plan.ops {
            match op {
                Op::Linear { weight, bias, .. } => {
                    matrices.insert(*weight);
                    vectors.extend(*bias);
                }
                Op::Attention { sinks, .. } => vectors.extend(*sinks),
                Op::Norm { weight, bias, .. } => vectors.extend([*weight, *bias].into_iter().flatten()),
                _ => {}
            }
        }
        let views: Vec<_> = plan.weights.iter().map(|weight| weight.view.clone()).collect();
        let prepare = |index: usize, view: &TensorView| -> Result<(Option<Matrix>, Option<Tensor>)> {
            let id = WeightId(index);
            let name = &plan.weights[index].name;
            let matrix = if matrices.contains(&id) { Some(matrix(name, view)?) } else { None };
            let vector = if vectors.contains(&id) { Some(dense(name, view)?) } else { None };
            Ok((matrix, vector))
        };
        let prepared = views.iter().enumerate().map(|(index, view)| prepare(index, view));
        let (matrices, vectors) = prepared.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self { views, matrices, vectors })
    }

    /// A vector `[n]`: of a norm, a bias, or sinks.
    pub(super) fn vector(&self, id: WeightId) -> Result<Tensor> {
        self.vectors[id.0].clone().ok_or_else(|| Error::Unsupported(format!("weight {} as a vector", id.0)))
    }

    /// `x · weightᵀ`, `x` being `[rows, in]`.
    pub(super) fn matmul(&self, id: WeightId, x: &Tensor) -> Result<Tensor> {
        match &self.matrices[id.0] {
            Some(Matrix::Dense(transposed)) => Ok(x.matmul(transposed)?),
            Some(Matrix::Quantised(op)) => Ok(op.forward(x)?),
            None => Err(Error::Unsupported(format!("weight {} as a matrix", id.0))),
        }
    }

    /// Rows `indices` of a table, `[indices, width]`. The caller has checked the indices against the table's rows.
    pub(super) fn rows(&self, id: WeightId, indices: &[u32]) -> Result<Tensor> {
        let view = &self.views[id.0];
        let [num_rows, width] = view.shape[..] else {
            return Err(Error::Unsupported(format!("an embedding table of shape {:?}", view.shape)));
        };
        let row_bytes = view.data.len() / num_rows.max(1);
        let mut rows = vec![0.0; indices.len() * width];
        for (&index, row) in indices.iter().zip(rows.chunks_exact_mut(width)) {
            let start = index as usize * row_bytes;
            view.dtype.dequantize_row(&view.data[start..start + row_bytes], row)?;
        }
        Ok(Tensor::from_vec(rows, (indices.len(), width), &Device::Cpu)?)
    }
}

/// The whole tensor in f32.
fn dense(name: &str, view: &TensorView) -> Result<Tensor> {
    let num_elements = view.num_elements();
    let mut elements = Vec::new();
    elements.try_reserve_exact(num_elements).map_err(|_| {
        Error::OutOfMemory(format!("tensor `{name}` needs {} bytes as f32", num_elements.saturating_mul(4)))
    })?;
    elements.resize(num_elements, 0.0);
    // Rows are contiguous and whole blocks, so that all of them together are one long row.
    view.dtype.dequantize_row(&view.data, &mut elements)?;
    Ok(Tensor::from_vec(elements, view.shape.as_slice(), &Device::Cpu)?)
}

fn matrix(name: &str, view: &TensorView) -> Result<Matrix> {
    let [n, k] = view.shape[..] else {
        return Err(Error::Unsupported(format!("tensor `{name}` of shape {:?} as a matrix", view.shape)));
    };
    if view.dtype.is_float() {
        return Ok(Matrix::Dense(dense(name, view)?.t()?.contiguous()?));
    }
    Ok(Matrix::Quantised(QMatMul::new(view.dtype, n, k, Arc::new(Mapped(view.data.clone())))?))
}
