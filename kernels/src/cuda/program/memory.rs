//! What a program keeps on the device: matrices, vectors, buffers of rows, the KV cache.

use std::sync::Arc;

use crate::cpu::attention::KV_BLOCK;
use crate::cpu::kv::{KvPool, KvType, KvTypes};
use crate::cuda::args::{Acts, Planes};
use crate::cuda::planes;
use crate::cuda::{CudaError, DeviceBuffer, Function, Gpu};
use crate::program::builder::{CacheShape, WeightSlot};
use crate::program::{BufId, ProgramSize, Rows};
use crate::quant::QuantType;

/// Bytes that are arranged and uploaded at a time.
const PIECE_BYTES: usize = 16 << 20;
/// Alignment of buffers within an allocation, in bytes.
pub(super) const ALIGN: usize = 256;
/// Kernels for few rows, by the rows that they take.
pub(super) const MATVEC_ROWS: [usize; 4] = [1, 2, 4, 8];
/// Rows of the kernels on exact weights.
pub(super) const EXACT_ROWS: usize = 4;

/// Memory that grows by aligned pieces until it is allocated.
#[derive(Debug, Default)]
pub(super) struct Layout {
    bytes: usize,
}

impl Layout {
    /// Offset of the next `bytes`.
    pub(super) fn take(&mut self, bytes: usize) -> usize {
        let start = self.bytes.next_multiple_of(ALIGN);
        self.bytes = start + bytes;
        start
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A matrix on the device, and the kernels that take it.
pub(super) struct Matrix {
    _buffer: DeviceBuffer,
    _points: Option<DeviceBuffer>,
    pub(super) planes: Planes,
    pub(super) dtype: QuantType,
    pub(super) cols: usize,
    pub(super) embed: Function,
    /// In the order of [`MATVEC_ROWS`].
    pub(super) matvec: [Function; MATVEC_ROWS.len()],
    /// f32 rows on quantised weights; `None` for floats, whose other kernels do it.
    pub(super) exact: Option<Function>,
    /// Kernels for many quantised rows, for up to 16 and for more; `None` where the device or the type has none.
    pub(super) matmul: Option<[Function; 2]>,
}

impl Matrix {
    /// Uploads a matrix, plane by plane. `staging` are two buffers that take turns.
    pub(super) fn upload(gpu: &Gpu, slot: &WeightSlot) -> Result<Self, CudaError> {
        let WeightSlot { bytes, dtype, cols, .. } = slot;
        let (dtype, bytes) = (*dtype, (**bytes).as_ref());
        let (starts, len) = planes_of(slot);
        let buffer = gpu.alloc(len)?;
        let mut staging = [gpu.staging(PIECE_BYTES.min(len))?, gpu.staging(PIECE_BYTES.min(len))?];
        for (&start, &field) in starts.iter().zip(planes::fields(dtype)) {
            let piece_blocks = (PIECE_BYTES / field.1).min(staging[0].as_slice().len() / field.1).max(1);
            for (piece, blocks) in bytes.chunks(piece_blocks * dtype.block_bytes()).enumerate() {
                let piece_bytes = blocks.len() / dtype.block_bytes() * field.1;
                let staging = &mut staging[piece % 2];
                planes::gather(dtype, field, blocks, &mut staging.as_mut_slice()?[..piece_bytes]);
                gpu.upload_from(staging, 0, &buffer, start + piece * piece_blocks * field.1, piece_bytes)?;
            }
        }
        let mut args = Planes::default();
        for (plane, start) in args.plane.iter_mut().zip(starts) {
            *plane = buffer.address() + start as u64;
        }
        let points = planes::points(dtype).map(|points| upload(gpu, &points)).transpose()?;
        args.points = points.as_ref().map_or(0, DeviceBuffer::address);

        let name = dtype.name().to_ascii_lowercase();
        let function = |name: String| gpu.function(&name);
        let [a, b, c, d] = MATVEC_ROWS.map(|rows| function(format!("matvec_{name}_{rows}")));
        let matmul = match (function(format!("matmul_{name}_16")), function(format!("matmul_{name}_64"))) {
            (Ok(few), Ok(many)) => Some([few, many]),
            _ => None,
        };
        Ok(Self {
            embed: function(format!("embed_{name}"))?,
            matvec: [a?, b?, c?, d?],
            exact: if dtype.is_float() { None } else { Some(function(format!("matvec_exact_{name}_{EXACT_ROWS}"))?) },
            matmul,
            _buffer: buffer,
            _points: points,
            planes: args,
            dtype,
            cols: *cols,
        })
    }
}

/// Where the planes of a matrix begin, and the bytes of all.
pub(super) fn planes_of(slot: &WeightSlot) -> (Vec<usize>, usize) {
    planes::layout(slot.dtype, slot.rows * (slot.cols / slot.dtype.block_len()))
}

/// Where vectors lie in one allocation, and its bytes.
pub(super) fn bytes_of_vectors(vectors: &[Arc<[f32]>]) -> (Vec<usize>, usize) {
    let mut layout = Layout::default();
    let offsets = vectors.iter().map(|vector| layout.take(size_of_val(&vector[..]))).collect();
    (offsets, layout.bytes())
}

/// Bytes in a buffer of their own.
pub(super) fn upload(gpu: &Gpu, bytes: &[u8]) -> Result<DeviceBuffer, CudaError> {
    let buffer = gpu.alloc(bytes.len())?;
    gpu.upload(&buffer, 0, bytes)?;
    Ok(buffer)
}

/// A buffer of f32 rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsSlot {
    /// Address of the first row.
    pub(super) address: u64,
    pub(super) width: usize,
    pub(super) rows: Rows,
}

/// A buffer of quantised rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActSlot {
    pub(super) acts: Acts,
    pub(super) cols: usize,
}

/// The cache of one layer: `[num_blocks][num_kv_heads]` blocks of keys, and the same of values, as in `kv.cuh`.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheSlot {
    pub(super) shape: CacheShape,
    /// Offsets in the KV buffer.
    pub(super) k: usize,
    pub(super) v: usize,
    /// Bytes of a block over all heads.
    pub(super) k_bytes: usize,
    pub(super) v_bytes: usize,
}

/// Number of a type in `kv.cuh`.
pub(super) fn kind(kv: KvType) -> u32 {
    match kv {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Q8_0 => 2,
        KvType::Q4_0 => 3,
    }
}

/// Bytes of a block of one head on the device: its size is rounded up to whole octets.
pub(super) fn head_block_bytes(kv: KvType, dim: usize) -> usize {
    kv.token_bytes(dim.next_multiple_of(8)) * KV_BLOCK
}

/// All buffers whose size depends on the step, in one allocation.
pub(super) struct Arena {
    buffer: DeviceBuffer,
    pub(super) rows: Vec<RowsSlot>,
    pub(super) acts: Vec<ActSlot>,
}

/// Where each buffer begins in that allocation, and its bytes.
pub(super) struct ArenaLayout {
    rows: Vec<usize>,
    /// Values, scales and sums.
    acts: Vec<[usize; 3]>,
    pub(super) bytes: usize,
}

impl ArenaLayout {
    pub(super) fn of(buffers: &[(usize, Rows)], acts: &[usize], size: &ProgramSize) -> Self {
        let mut layout = Layout::default();
        let rows =
            buffers.iter().map(|&(width, rows)| layout.take(width * size.max_rows(rows) * size_of::<f32>())).collect();
        let num_rows = size.max_tokens.max(size.max_outputs);
        let acts = acts
            .iter()
            .map(|&cols| [cols, cols / 32 * size_of::<f32>(), cols / 16 * size_of::<i16>()])
            .map(|row_bytes| row_bytes.map(|bytes| layout.take(num_rows * bytes)))
            .collect();
        Self { rows, acts, bytes: layout.bytes() }
    }
}

impl Arena {
    pub(super) fn new(
        gpu: &Gpu,
        buffers: &[(usize, Rows)],
        acts: &[usize],
        size: &ProgramSize,
    ) -> Result<Self, CudaError> {
        let ArenaLayout { rows: row_offsets, acts: act_offsets, bytes } = ArenaLayout::of(buffers, acts, size);
        let buffer = gpu.alloc(bytes)?;
        let at = |offset: usize| buffer.address() + offset as u64;
        let rows = (buffers.iter().zip(row_offsets))
            .map(|(&(width, rows), offset)| RowsSlot { address: at(offset), width, rows })
            .collect();
        let acts = (acts.iter().zip(act_offsets))
            .map(|(&cols, [q, d, sums])| ActSlot { acts: Acts { q: at(q), d: at(d), sums: at(sums) }, cols })
            .collect();
        Ok(Self { buffer, rows, acts })
    }
}

impl Arena {
    /// Waits for the rows of a whole buffer, from row `row` on.
    pub(super) fn download(&self, gpu: &Gpu, buf: BufId, row: usize, into: &mut [f32]) -> Result<(), CudaError> {
        let RowsSlot { address, width, .. } = self.rows[buf.0];
        let offset = (address - self.buffer.address()) as usize + row * width * size_of::<f32>();
        gpu.download(&self.buffer, offset, bytemuck::cast_slice_mut(into))
    }

    /// Replaces the first rows of a whole buffer.
    pub(super) fn upload(&self, gpu: &Gpu, buf: BufId, rows: &[f32]) -> Result<(), CudaError> {
        let offset = (self.rows[buf.0].address - self.buffer.address()) as usize;
        gpu.upload(&self.buffer, offset, bytemuck::cast_slice(rows))
    }
}

/// The KV cache of all layers, in one allocation.
pub(super) struct KvMemory {
    pub(super) buffer: DeviceBuffer,
    pub(super) caches: Vec<CacheSlot>,
}

impl KvMemory {
    pub(super) fn new(gpu: &Gpu, shapes: &[CacheShape], size: &ProgramSize) -> Result<Self, CudaError> {
        let (caches, bytes) = Self::layout(shapes, size);
        Ok(Self { buffer: gpu.alloc(bytes)?, caches })
    }

    /// Where each cache lies in the allocation, and its bytes.
    pub(super) fn layout(shapes: &[CacheShape], size: &ProgramSize) -> (Vec<CacheSlot>, usize) {
        let mut layout = Layout::default();
        let KvTypes { k, v } = size.kv;
        let caches = shapes
            .iter()
            .map(|&shape| {
                let num_blocks = size.num_blocks_in(shape.pool);
                let [k_bytes, v_bytes] = [(k, shape.k_dim), (v, shape.v_dim)]
                    .map(|(kv, dim)| shape.num_kv_heads * head_block_bytes(kv, dim));
                let (k, v) = (layout.take(num_blocks * k_bytes), layout.take(num_blocks * v_bytes));
                CacheSlot { shape, k, v, k_bytes, v_bytes }
            })
            .collect();
        (caches, layout.bytes())
    }

    /// Offset and bytes of a block's keys and values in every cache of a pool.
    pub(super) fn ranges(&self, pool: KvPool, block: u32) -> impl Iterator<Item = (usize, usize)> {
        let caches = self.caches.iter().filter(move |cache| cache.shape.pool == pool);
        caches.flat_map(move |cache| {
            [(cache.k, cache.k_bytes), (cache.v, cache.v_bytes)]
                .map(|(start, bytes)| (start + block as usize * bytes, bytes))
        })
    }
}
