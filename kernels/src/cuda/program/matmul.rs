//! What a group of matmuls launches: the kernels for few rows, or those of the tensor cores.

use super::launch::{Step, act_number, shape, u};
use super::memory::{ActSlot, EXACT_ROWS, MATVEC_ROWS, Matrix};
use crate::cuda::CudaError;
use crate::cuda::args::{Acts, MapArgs, MatmulArgs, Part};
use crate::program::{MatMulPart, MatMulThen, MatMulX};

/// Rows that go through the kernels which read each matrix for a few rows; more go through the tensor cores.
const DECODE_ROWS: usize = 8;
/// Warps of a block of the kernels for few rows: `WARPS` of `matvec.cu`.
const MATVEC_WARPS: usize = 4;
/// Weights and rows of a block of the tensor cores' kernels, few and many: as in `matmul.cu`.
const MATMUL_TILES: [(usize, usize); 2] = [(32, 16), (128, 64)];
/// Elements along K that the tensor cores' kernels for float weights take at a time.
const FLOAT_STEP: usize = 8;
/// Threads of a block of the tensor cores' kernels.
const MATMUL_THREADS: u32 = 256;

impl ActSlot {
    fn without_rows(&self, row: usize) -> Acts {
        let at = |address: u64, row_bytes: usize| address + (row * row_bytes) as u64;
        let Acts { q, d, sums } = self.acts;
        Acts { q: at(q, self.cols), d: at(d, self.cols / 8), sums: at(sums, self.cols / 8) }
    }
}

impl Step<'_> {
    pub(super) fn matmul(
        &self,
        x: &MatMulX,
        num_rows: usize,
        parts: &[MatMulPart],
        then: &MatMulThen,
    ) -> Result<(), CudaError> {
        if num_rows == 0 {
            return Ok(());
        }
        let matrix = |part: &MatMulPart| &self.code.matrices[part.weight.0];
        if let MatMulThen::Glu(act) = then {
            let fused = matrix(&parts[0]).dtype == matrix(&parts[1]).dtype
                && !self.uses_tensor_cores(x, num_rows, matrix(&parts[0]));
            if !fused {
                self.matmul(x, num_rows, parts, &MatMulThen::Done)?;
                let args = MapArgs { act: act_number(*act), ..MapArgs::default() };
                return self.map(self.code.functions.glu, &parts[0].out, Some(&parts[1].out), &parts[0].out, args);
            }
        }
        // One launch for neighbours of one type.
        for same in parts.chunk_by(|a, b| matrix(a).dtype == matrix(b).dtype) {
            for parts in same.chunks(3) {
                self.matmul_of_one_type(x, num_rows, parts, then)?;
            }
        }
        Ok(())
    }

    /// Whether so many rows go through the tensor cores. Where a row's result may not depend on the others, all do.
    fn uses_tensor_cores(&self, x: &MatMulX, num_rows: usize, matrix: &Matrix) -> bool {
        let fits = match x {
            MatMulX::Act(_) => true,
            // Rows would be rounded to the weights' type; and these kernels take 8 elements at a time.
            MatMulX::Float(_) => {
                matrix.dtype.is_float() && !self.code.is_exact && matrix.cols.is_multiple_of(FLOAT_STEP)
            }
        };
        fits && matrix.matmul.is_some() && (num_rows > DECODE_ROWS || self.shape.is_invariant)
    }

    fn matmul_of_one_type(
        &self,
        x: &MatMulX,
        num_rows: usize,
        parts: &[MatMulPart],
        then: &MatMulThen,
    ) -> Result<(), CudaError> {
        let first = &self.code.matrices[parts[0].weight.0];
        let tensor_cores = first.matmul.filter(|_| self.uses_tensor_cores(x, num_rows, first));
        let is_exact = matches!(x, MatMulX::Float(_)) && first.exact.is_some();
        // Weights of a block, rows of a launch.
        let (tile, rows_at_once) = match tensor_cores {
            Some(_) => (self.matmul_tile(num_rows).1.0, num_rows),
            None if is_exact => (MATVEC_WARPS, EXACT_ROWS),
            None => (MATVEC_WARPS, DECODE_ROWS),
        };
        for row in (0..num_rows).step_by(rows_at_once) {
            let rows_now = rows_at_once.min(num_rows - row);
            let (args, blocks) = self.matmul_args(x, row, rows_now, parts, then, tile);
            let (function, launch) = match tensor_cores {
                Some(functions) => {
                    let (choice, (_, tile_rows)) = self.matmul_tile(rows_now);
                    let grid = [blocks, rows_now.div_ceil(tile_rows), 1];
                    (functions[choice], shape(grid, MATMUL_THREADS))
                }
                None => {
                    let choice = MATVEC_ROWS.iter().position(|&rows| rows >= rows_now).unwrap_or(MATVEC_ROWS.len() - 1);
                    let function = first.exact.filter(|_| is_exact).unwrap_or(first.matvec[choice]);
                    (function, shape([blocks, 1, 1], u(MATVEC_WARPS * 32)))
                }
            };
            self.gpu.launch(function, &launch, &args)?;
        }
        Ok(())
    }

    /// Which of the tensor cores' kernels takes so many rows, and its tile. Where a row's result may not depend on the others,
    /// always the same.
    fn matmul_tile(&self, num_rows: usize) -> (usize, (usize, usize)) {
        let choice = usize::from(num_rows > 2 * MATMUL_TILES[0].1 && !self.shape.is_invariant);
        (choice, MATMUL_TILES[choice])
    }

    /// The arguments for rows from `row` on, and the blocks that share the parts' columns.
    fn matmul_args(
        &self,
        x: &MatMulX,
        row: usize,
        num_rows: usize,
        parts: &[MatMulPart],
        then: &MatMulThen,
        tile: usize,
    ) -> (MatmulArgs, usize) {
        let arena = &self.code.arena;
        let mut args = MatmulArgs {
            num_parts: u(parts.len()),
            cols: u(self.code.matrices[parts[0].weight.0].cols),
            num_rows: u(num_rows),
            ..MatmulArgs::default()
        };
        match x {
            MatMulX::Act(act) => args.acts = arena.acts[act.0].without_rows(row),
            MatMulX::Float(span) => (args.x, args.x_stride) = arena.at_row(span, row),
        }
        match then {
            MatMulThen::Done => {}
            MatMulThen::AddTo(sum) => {
                args.then = 1;
                (args.sum, args.sum_stride) = arena.at_row(sum, row);
            }
            MatMulThen::Glu(act) => (args.then, args.act) = (2, act_number(*act)),
        }
        let mut blocks = 0;
        for (part, to) in parts.iter().zip(&mut args.parts) {
            let (out, out_stride) = arena.at_row(&part.out, row);
            *to = Part {
                w: self.code.matrices[part.weight.0].planes,
                out,
                bias: self.vector(part.bias),
                width: u(part.out.width),
                out_stride,
                first_block: u(blocks),
                unused: 0,
            };
            blocks += part.out.width.div_ceil(tile);
        }
        if let MatMulThen::Glu(_) = then {
            // Gate's blocks compute both.
            args.num_parts = 1;
            blocks = parts[0].out.width.div_ceil(tile);
        }
        (args, blocks)
    }
}
