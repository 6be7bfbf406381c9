//! The arguments of the kernels in `kernels/cu`, field by field: one struct a kernel, passed by value.
//!
//! Addresses are those of the device. Every struct is a multiple of 8 bytes without holes, so that it can be taken as bytes.

use bytemuck::{Pod, Zeroable};

/// A matrix as `quant.cuh` reads it.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Planes {
    /// Where each plane begins.
    pub(crate) plane: [u64; 5],
    /// Codebook of the IQ types.
    pub(crate) points: u64,
}

/// Quantised rows.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Acts {
    /// int8 `[rows, cols]`; 0: none.
    pub(crate) q: u64,
    /// f32 `[rows, cols / 32]`.
    pub(crate) d: u64,
    /// i16 `[rows, cols / 16]`.
    pub(crate) sums: u64,
}

/// Of `norm_rows`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct NormArgs {
    pub(crate) x: u64,
    pub(crate) out: u64,
    /// 0: ones.
    pub(crate) weight: u64,
    /// 0: none.
    pub(crate) bias: u64,
    /// Where the result goes quantised, too.
    pub(crate) acts: Acts,
    pub(crate) x_stride: u32,
    pub(crate) out_stride: u32,
    /// Elements of a part.
    pub(crate) width: u32,
    /// Parts of a row.
    pub(crate) groups: u32,
    pub(crate) eps: f32,
    pub(crate) centre: u32,
}

/// Of `quantize_rows`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QuantizeArgs {
    pub(crate) x: u64,
    pub(crate) acts: Acts,
    pub(crate) x_stride: u32,
    pub(crate) width: u32,
    pub(crate) num_rows: u32,
    pub(crate) unused: u32,
}

/// Of `rope_rows`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RopeArgs {
    pub(crate) x: u64,
    pub(crate) cos: u64,
    pub(crate) sin: u64,
    pub(crate) stride: u32,
    pub(crate) num_heads: u32,
    pub(crate) head_dim: u32,
    /// Pairs of a head.
    pub(crate) half: u32,
    /// Whether a pair's elements are `half` apart.
    pub(crate) halves: u32,
    pub(crate) unused: u32,
}

/// Of `glu_rows`, `activation_rows`, `add_rows`, `scale_rows` and `softcap_rows`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct MapArgs {
    pub(crate) a: u64,
    /// 0: none.
    pub(crate) b: u64,
    pub(crate) out: u64,
    pub(crate) a_stride: u32,
    pub(crate) b_stride: u32,
    pub(crate) out_stride: u32,
    pub(crate) width: u32,
    pub(crate) factor: f32,
    pub(crate) act: u32,
}

/// Of `gather_rows`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GatherArgs {
    pub(crate) x: u64,
    pub(crate) out: u64,
    pub(crate) rows: u64,
    pub(crate) x_stride: u32,
    pub(crate) out_stride: u32,
    pub(crate) width: u32,
    pub(crate) unused: u32,
}

/// Of the kernels in `logits.cu`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LogitsArgs {
    pub(crate) logits: u64,
    /// u64 `[rows, num_groups]`.
    pub(crate) groups: u64,
    /// f64 `[rows, 2, num_chunks]`.
    pub(crate) sums: u64,
    pub(crate) tasks: u64,
    pub(crate) results: u64,
    /// u64 `[rows, num_best]`.
    pub(crate) best: u64,
    pub(crate) stride: u32,
    pub(crate) width: u32,
    pub(crate) num_groups: u32,
    pub(crate) group_shift: u32,
    pub(crate) num_best: u32,
    pub(crate) num_chunks: u32,
}

/// Of `embed_*`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct EmbedArgs {
    pub(crate) table: Planes,
    pub(crate) out: u64,
    pub(crate) tokens: u64,
    pub(crate) out_stride: u32,
    pub(crate) width: u32,
    pub(crate) factor: f32,
    pub(crate) unused: u32,
}

/// One matrix of a matmul.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Part {
    pub(crate) w: Planes,
    pub(crate) out: u64,
    /// 0: none.
    pub(crate) bias: u64,
    /// Rows of the matrix: columns of the output.
    pub(crate) width: u32,
    pub(crate) out_stride: u32,
    /// The first block that works on it.
    pub(crate) first_block: u32,
    pub(crate) unused: u32,
}

/// Of `matvec_*` and `matmul_*`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct MatmulArgs {
    pub(crate) parts: [Part; 3],
    pub(crate) acts: Acts,
    /// The rows as f32, where they are not quantised.
    pub(crate) x: u64,
    /// What the product is added to.
    pub(crate) sum: u64,
    pub(crate) x_stride: u32,
    pub(crate) sum_stride: u32,
    pub(crate) num_parts: u32,
    /// Columns of the matrices.
    pub(crate) cols: u32,
    /// Rows of activations.
    pub(crate) num_rows: u32,
    /// 0: nothing more; 1: add to `sum`; 2: gate and up.
    pub(crate) then: u32,
    pub(crate) act: u32,
    pub(crate) unused: u32,
}

/// Where the rows of a step stand in the KV cache; all `[rows]` but the last.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RowsInKv {
    pub(crate) positions: u64,
    /// End of what the row's sequence has in the cache after the step.
    pub(crate) ends: u64,
    /// Where the row's block table begins in `blocks`.
    pub(crate) tables: u64,
    pub(crate) blocks: u64,
}

/// Of `store_kv`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct StoreArgs {
    pub(crate) k: u64,
    pub(crate) v: u64,
    pub(crate) k_cache: u64,
    pub(crate) v_cache: u64,
    pub(crate) rows: RowsInKv,
    pub(crate) k_stride: u32,
    pub(crate) v_stride: u32,
    pub(crate) num_kv_heads: u32,
    pub(crate) k_dim: u32,
    pub(crate) v_dim: u32,
    pub(crate) k_kind: u32,
    pub(crate) v_kind: u32,
    pub(crate) unused: u32,
}

/// Of `attend_*` and `merge_splits`.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AttendArgs {
    pub(crate) q: u64,
    pub(crate) out: u64,
    pub(crate) k_cache: u64,
    pub(crate) v_cache: u64,
    /// 0: none.
    pub(crate) sinks: u64,
    /// `[rows][num_heads][num_splits][v_dim, rounded up to 8, + 2]`.
    pub(crate) parts: u64,
    pub(crate) rows: RowsInKv,
    /// Of tiles: the first row and the number of rows of each.
    pub(crate) tiles: u64,
    pub(crate) q_stride: u32,
    pub(crate) out_stride: u32,
    pub(crate) num_heads: u32,
    pub(crate) num_kv_heads: u32,
    pub(crate) k_dim: u32,
    pub(crate) v_dim: u32,
    pub(crate) k_kind: u32,
    pub(crate) v_kind: u32,
    pub(crate) scale: f32,
    /// 0: none.
    pub(crate) softcap: f32,
    /// Positions seen, the own one included; 0: all.
    pub(crate) window: u32,
    pub(crate) causal: u32,
    /// Positions of a split.
    pub(crate) split: u32,
    pub(crate) num_splits: u32,
}

impl RowsInKv {
    /// The same without the first rows.
    pub(crate) fn without_rows(self, row: usize) -> Self {
        let at = |address: u64| address + (row * size_of::<u32>()) as u64;
        Self { positions: at(self.positions), ends: at(self.ends), tables: at(self.tables), blocks: self.blocks }
    }
}
