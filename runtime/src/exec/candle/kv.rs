//! The candle executor's paged cache and attention, in f32. A block's memory is taken when it is first written. Of another
//! element type it holds the f32 numbers that the type gives back.

use std::ops::Range;

use candle_core::{D, Device, Tensor};
use candle_nn::ops;
use shimmy_kernels::cpu::kv::{KvType, KvTypes};

use crate::error::{Error, Result};
use crate::exec::batch::{SeqStep, StepBatch};
use crate::kv::{BLOCK_TOKENS, KvPool};
use crate::plan::{KvSpec, Mask};

/// What an attention op says beside its buffers.
pub(super) struct AttentionArgs {
    pub(super) num_heads: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) mask: Mask,
    /// `[num_heads]`
    pub(super) sinks: Option<Tensor>,
}

/// Keys and values of one layer.
pub(super) struct PagedKv {
    spec: KvSpec,
    pool: KvPool,
    keys: Blocks,
    values: Blocks,
}

/// Rows of `width` elements in blocks of [`BLOCK_TOKENS`]; a block is empty until its first row comes.
struct Blocks {
    kv: KvType,
    /// Elements of a head.
    dim: usize,
    width: usize,
    blocks: Vec<Vec<f32>>,
}

impl Blocks {
    fn write(&mut self, table: &[u32], start: usize, rows: &[f32]) {
        for (position, row) in (start..).zip(rows.chunks_exact(self.width)) {
            let block = &mut self.blocks[table[position / BLOCK_TOKENS] as usize];
            block.resize(BLOCK_TOKENS * self.width, 0.0);
            let slot = position % BLOCK_TOKENS * self.width;
            let stored = &mut block[slot..slot + self.width];
            stored.copy_from_slice(row);
            stored.chunks_exact_mut(self.dim).for_each(|head| self.kv.round(head));
        }
    }

    /// Rows of a sequence; the first of them is the first of a block.
    fn read(&self, table: &[u32], rows_wanted: Range<usize>) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(rows_wanted.len() * self.width);
        let blocks = rows_wanted.start / BLOCK_TOKENS..rows_wanted.end.div_ceil(BLOCK_TOKENS);
        for (index, &block) in blocks.clone().zip(&table[blocks]) {
            let wanted = (rows_wanted.end - index * BLOCK_TOKENS).min(BLOCK_TOKENS) * self.width;
            let written = self.blocks.get(block as usize).and_then(|block| block.get(..wanted));
            let rows_of_block = written.ok_or_else(|| Error::InvalidRequest {
                param: "batch",
                message: format!("block {block} is read before anything was written to it, or after it left a window"),
            })?;
            rows.extend_from_slice(rows_of_block);
        }
        Ok(rows)
    }
}

impl Blocks {
    /// A block that nothing was written to is zeros.
    fn append_to(&self, block: u32, bytes: &mut Vec<u8>) {
        let end = bytes.len() + self.block_bytes();
        bytes.extend(self.blocks[block as usize].iter().flat_map(|x| x.to_le_bytes()));
        bytes.resize(end, 0);
    }

    fn replace(&mut self, block: u32, bytes: &[u8]) {
        self.blocks[block as usize] = bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
    }

    fn block_bytes(&self) -> usize {
        BLOCK_TOKENS * self.width * size_of::<f32>()
    }
}

impl PagedKv {
    /// `kv` takes the heads of `spec`: `exec::limits` has checked that.
    pub(super) fn new(spec: KvSpec, kv: KvTypes, pool: KvPool, num_blocks: usize) -> Self {
        let blocks = |kv, dim| Blocks { kv, dim, width: spec.num_kv_heads * dim, blocks: vec![Vec::new(); num_blocks] };
        Self { keys: blocks(kv.k, spec.k_dim), values: blocks(kv.v, spec.v_dim), spec, pool }
    }

    /// The blocks that it lies in.
    pub(super) fn pool(&self) -> KvPool {
        self.pool
    }

    /// Copies a block over another one.
    pub(super) fn copy_block(&mut self, from: u32, to: u32) {
        for Blocks { blocks, .. } in [&mut self.keys, &mut self.values] {
            blocks[to as usize] = blocks[from as usize].clone();
        }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.keys.block_bytes() + self.values.block_bytes()
    }

    pub(super) fn read_block(&self, block: u32, into: &mut Vec<u8>) {
        self.keys.append_to(block, into);
        self.values.append_to(block, into);
    }

    /// `bytes` are as many as [`block_bytes`](Self::block_bytes).
    pub(super) fn write_block(&mut self, block: u32, bytes: &[u8]) {
        let (keys, values) = bytes.split_at(self.keys.block_bytes());
        self.keys.replace(block, keys);
        self.values.replace(block, values);
    }

    /// Appends `k` and `v` (`[tokens, heads · dim]`) and attends with `q`, sequence by sequence. Returns
    /// `[tokens, num_heads · v_dim]`.
    pub(super) fn attend(
        &mut self,
        batch: &StepBatch,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        args: &AttentionArgs,
    ) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(batch.seqs.len());
        for seq in &batch.seqs {
            let blocks = match self.pool {
                KvPool::Full => &batch.blocks,
                KvPool::Window => &batch.window_blocks,
            };
            let table = &blocks[seq.blocks.clone()];
            let piece = |x: &Tensor| x.narrow(0, seq.tokens.start, seq.tokens.len());
            self.keys.write(table, seq.start, &piece(k)?.flatten_all()?.to_vec1::<f32>()?);
            self.values.write(table, seq.start, &piece(v)?.flatten_all()?.to_vec1::<f32>()?);
            rows.push(self.attend_one(seq, table, &piece(q)?, args)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn attend_one(&self, seq: &SeqStep, table: &[u32], q: &Tensor, args: &AttentionArgs) -> Result<Tensor> {
        let KvSpec { num_kv_heads, k_dim, v_dim, .. } = self.spec;
        // Blocks that no query sees may be gone.
        let first = self.spec.window.map_or(0, |window| (seq.start + 1).saturating_sub(window));
        let seen = first / BLOCK_TOKENS * BLOCK_TOKENS..seq.start + seq.tokens.len();
        let (num_queries, num_keys) = (seq.tokens.len(), seen.len());
        let group = args.num_heads / num_kv_heads;
        // [kv heads, keys, dim]
        let heads = |rows: Vec<f32>, dim: usize| {
            Tensor::from_vec(rows, (num_keys, num_kv_heads, dim), &Device::Cpu)?.transpose(0, 1)?.contiguous()
        };
        let k = heads(self.keys.read(table, seen.clone())?, k_dim)?;
        let v = heads(self.values.read(table, seen.clone())?, v_dim)?;
        // Query heads that share a key head are rows of one matrix: [kv heads, group · queries, dim].
        let q = q
            .reshape((num_queries, num_kv_heads, group, k_dim))?
            .permute((1, 2, 0, 3))?
            .reshape((num_kv_heads, group * num_queries, k_dim))?
            .contiguous()?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * f64::from(args.scale))?;
        let scores = match args.softcap {
            Some(cap) => super::softcapped(&scores, cap)?,
            None => scores,
        };
        let mask = self.mask(seq, seen, args.mask)?;
        let scores = scores.reshape((num_kv_heads, group, num_queries, num_keys))?.broadcast_add(&mask)?;
        // A sink is one more score of each query, without a value.
        let probabilities = match &args.sinks {
            None => ops::softmax(&scores, D::Minus1)?,
            Some(sinks) => {
                let sinks = sinks.reshape((num_kv_heads, group, 1, 1))?;
                let sinks = sinks.broadcast_as((num_kv_heads, group, num_queries, 1))?;
                let all = Tensor::cat(&[&scores, &sinks.contiguous()?], D::Minus1)?;
                ops::softmax(&all, D::Minus1)?.narrow(D::Minus1, 0, num_keys)?.contiguous()?
            }
        };
        let probabilities = probabilities.reshape((num_kv_heads, group * num_queries, num_keys))?;
        let attended = probabilities
            .matmul(&v)?
            .reshape((num_kv_heads, group, num_queries, v_dim))?
            .permute((2, 0, 1, 3))?
            .reshape((num_queries, args.num_heads * v_dim))?;
        Ok(attended.contiguous()?)
    }

    /// 0 where a query sees a key, −∞ elsewhere: `[queries, keys]`, of the keys at these positions. A window counts the token itself and, without a causal
    /// order, reaches as far to the right as to the left.
    fn mask(&self, seq: &SeqStep, keys: Range<usize>, mask: Mask) -> Result<Tensor> {
        let window = self.spec.window.unwrap_or(usize::MAX);
        let sees = |query: usize, key: usize| {
            query.abs_diff(key) < window
                && match mask {
                    Mask::Causal => key <= query,
                    Mask::Bidirectional => true,
                }
        };
        let queries = seq.start..keys.end;
        let mask: Vec<f32> = queries
            .flat_map(|query| keys.clone().map(move |key| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Ok(Tensor::from_vec(mask, (seq.tokens.len(), keys.len()), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::OutputRows;

    #[test]
    fn sinks_take_their_part_of_the_weights() {
        // One token: without a sink its value passes whole. Two heads on one KV head.
        let spec = KvSpec { num_kv_heads: 1, k_dim: 2, v_dim: 2, window: None };
        let tensor = |data: &[f32], shape: (usize, usize)| Tensor::from_slice(data, shape, &Device::Cpu).unwrap();
        let (q, k, v) =
            (tensor(&[1.0, 2.0, -1.0, 0.5], (1, 4)), tensor(&[0.5, 1.0], (1, 2)), tensor(&[4.0, -8.0], (1, 2)));
        let mut batch = StepBatch::default();
        batch.push(&[7], 0, 1, &[0], OutputRows::Last);
        let attend = |sinks: Option<Tensor>| -> Vec<f32> {
            let args = AttentionArgs { num_heads: 2, scale: 2.0, softcap: None, mask: Mask::Causal, sinks };
            let mut kv = PagedKv::new(spec.clone(), KvType::F32.into(), KvPool::Full, 1);
            kv.attend(&batch, &q, &k, &v, &args).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(attend(None), [4.0, -8.0, 4.0, -8.0]);
        // Scores 2 · 2.5 and 2 · 0 against sinks of 5 and 1.
        let shares = [0.5, 1.0 / (1.0 + 1f32.exp())];
        let got = attend(Some(Tensor::new(&[5.0f32, 1.0], &Device::Cpu).unwrap()));
        for (head, share) in got.chunks(2).zip(shares) {
            assert!((head[0] - 4.0 * share).abs() < 1e-5 && (head[1] + 8.0 * share).abs() < 1e-5, "{got:?}");
        }
    }
}
