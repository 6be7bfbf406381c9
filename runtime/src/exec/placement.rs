//! Which layers run where: how many fit on the GPUs, how these divide them, and what is left of their memory for KV caches.
//!
//! The first layers stay on the CPU and the last go to the GPUs, as in llama.cpp: the output matrix, which is the largest and
//! is read at every token, is then with them, and the embedding table, of which a step reads a few rows, is not.

use std::ops::Range;

use shimmy_kernels::cuda::program::Needs;
use shimmy_kernels::program::{Cut, ProgramBuilder, ProgramError, ProgramSize, Span};

use crate::error::{Error, Result};
use crate::exec::Limits;
use crate::exec::build::{Room, in_mib, limits_in};
use crate::exec::lower::program_size;
use crate::exec::options::{ExecOptions, GpuLayers, KvSize};
use crate::kv::{BLOCK_TOKENS, KvWindow};
use crate::plan::Plan;

/// Layers leave the GPU until a context of so many tokens fits beside the others, where no size of the KV cache was asked for.
const LEAST_CONTEXT: usize = 4096;
/// Heads on a GPU have a multiple of so many elements.
const GPU_HEADS: usize = 8;
/// What a block takes in the input of a step, which is half as large again as it must be.
const TABLE_BYTES: usize = 6;
/// A cache's keys and values begin at multiples of 256 bytes, all of them and the input at the driver's.
const ALIGNMENT: usize = 2 * 256;

/// What a GPU can give.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// For messages, such as `GPU 0`.
    pub(super) device: String,
    /// Bytes.
    pub(super) bytes: usize,
    /// Where that number comes from.
    pub(super) why: String,
}

/// A stage of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of its budget; `None`: the CPU.
    pub(super) gpu: Option<usize>,
    /// Its layers.
    pub(super) layers: Range<usize>,
    /// Bytes of its matrices in the file.
    pub(super) weight_bytes: usize,
}

/// What runs where.
#[derive(Debug)]
pub(super) struct Placement {
    /// One fewer than places.
    pub(super) cuts: Vec<Cut>,
    pub(super) places: Vec<Place>,
    pub(super) limits: Limits,
}

impl Placement {
    /// For people. `names` are the GPUs'.
    pub(super) fn describe(&self, names: &[String]) -> String {
        let last = self.places.len() - 1;
        let place = |(index, place): (usize, &Place)| {
            let Range { start, end } = place.layers;
            let mut what = match end - start {
                0 => "the embeddings".to_owned(),
                1 => format!("layer {end}"),
                _ => format!("layers {}-{end}", start + 1),
            };
            if index == last {
                what += " and the output";
            }
            format!("{what} on {}", place.gpu.map_or("the CPU", |gpu| &names[gpu]))
        };
        self.places.iter().enumerate().map(place).collect::<Vec<_>>().join(", ")
    }
}

/// Finds a place for every layer of a program.
///
/// # Errors
/// [`Error::OutOfMemory`] with the numbers and what to ask for, [`Error::Unsupported`] for a program that can't be run or cut.
pub(super) fn place(
    plan: &Plan,
    options: &ExecOptions,
    (program, output): (&ProgramBuilder, &Span),
    budgets: &[Budget],
) -> Result<Placement> {
    let all = (0..plan.kv.len()).collect();
    let most = limits_in(plan, options, options.kv_types, &[Room::unknown(all)])?;
    // A pool that is smaller than a step's tokens makes steps smaller, too. Blocks are counted with the cache.
    let (window, max_step_tokens) =
        (most.window.map(|window| KvWindow { num_blocks: 0, ..window }), step_tokens(options));
    let limits = Limits { num_kv_blocks: 0, window, max_step_tokens, max_step_outputs: max_step_tokens, ..most };
    let size = program_size(plan, options, &limits);
    let refused = |error: ProgramError| Error::Unsupported(format!("cuda: {error}"));
    let cuts = program.cuts(output, &size).map_err(refused)?;
    let placer = Placer { plan, options, program, output, budgets, size, cuts: &cuts };
    let num_layers = plan.kv.len();
    match options.gpu.layers {
        GpuLayers::All => placer.attempt(None),
        GpuLayers::Last(layers) if layers >= num_layers => placer.attempt(None),
        GpuLayers::Last(layers) => {
            let begin = cuts.iter().position(|cut| cut.layer >= num_layers - layers);
            placer.attempt(Some(begin.ok_or_else(|| {
                Error::Unsupported("cuda: this model's layers can't be divided; ask for --gpu-layers all".into())
            })?))
        }
        GpuLayers::Auto => {
            let mut least = Err(Error::OutOfMemory("no layer fits".into()));
            for begin in std::iter::once(None).chain((0..cuts.len()).map(Some)) {
                least = placer.attempt(begin).and_then(|placement| placer.with_context(placement));
                if !matches!(least, Err(Error::OutOfMemory(_))) {
                    break;
                }
            }
            least
        }
    }
}

/// Most tokens of a step.
fn step_tokens(options: &ExecOptions) -> usize {
    match options.kv_size {
        KvSize::Tokens(tokens) => options.max_step_tokens.min(tokens.next_multiple_of(BLOCK_TOKENS)),
        KvSize::Auto | KvSize::Bytes(_) => options.max_step_tokens,
    }
}

struct Placer<'a> {
    plan: &'a Plan,
    options: &'a ExecOptions,
    program: &'a ProgramBuilder,
    output: &'a Span,
    budgets: &'a [Budget],
    /// Without a KV cache.
    size: ProgramSize,
    cuts: &'a [Cut],
}

impl Placer<'_> {
    /// With everything from a cut on the GPUs; `None`: all of it.
    fn attempt(&self, begin: Option<usize>) -> Result<Placement> {
        let inner = self.divide(begin);
        let cuts: Vec<Cut> = begin.into_iter().chain(inner).map(|cut| self.cuts[cut].clone()).collect();
        let edges: Vec<Option<&Cut>> = std::iter::once(None).chain(cuts.iter().map(Some)).chain([None]).collect();
        let (mut places, mut rooms) = (Vec::new(), Vec::new());
        for (index, edge) in edges.windows(2).enumerate() {
            let (from, to) = (edge[0], edge[1]);
            let stage = self.program.stage(self.output, from, to);
            let layers = from.map_or(0, |cut| cut.layer)..to.map_or(self.plan.kv.len(), |cut| cut.layer);
            let needs = Needs::of(&stage.program, stage.output.as_ref(), &self.size);
            let caches: Vec<usize> = stage.caches.iter().map(|cache| cache.0).collect();
            let gpu = if begin.is_some() { index.checked_sub(1) } else { Some(index) };
            let room = match gpu {
                None => Room::of_process(caches),
                Some(gpu) => self.room(&self.budgets[gpu], &needs, caches, &layers)?,
            };
            places.push(Place { gpu, layers, weight_bytes: stage.program.weight_bytes() });
            // One without layers says nothing about the size of a cache.
            rooms.extend(Some(room).filter(|room| !room.caches.is_empty()));
        }
        let limits = limits_in(self.plan, self.options, self.options.kv_types, &rooms)?;
        Ok(Placement { cuts, places, limits })
    }

    /// Refuses a context that is too short to be of use, where nobody asked for a size.
    fn with_context(&self, placement: Placement) -> Result<Placement> {
        let wanted = self.options.max_context.unwrap_or(self.plan.max_context).min(LEAST_CONTEXT);
        let got = placement.limits.max_context;
        if self.options.kv_size != KvSize::Auto || got >= wanted {
            return Ok(placement);
        }
        Err(Error::OutOfMemory(format!(
            "beside the weights there is room for a context of {got} tokens, which is fewer than {wanted}; ask for a smaller --ctx \
             or --batch-tokens, a larger --gpu-memory, or run the model on the CPU (--backend cpu)"
        )))
    }

    /// What weights and buffers leave of a GPU's memory.
    fn room(&self, budget: &Budget, needs: &Needs, caches: Vec<usize>, layers: &Range<usize>) -> Result<Room> {
        let Budget { device, bytes, why } = budget;
        let used = needs.weights + needs.buffers + ALIGNMENT * (caches.len() + 2);
        let Some(available) = bytes.checked_sub(used) else {
            let of_layers = match layers.len() {
                all if all == self.plan.kv.len() => String::new(),
                1 => format!(" of layer {}", layers.end),
                _ => format!(" of layers {}-{}", layers.start + 1, layers.end),
            };
            return Err(Error::OutOfMemory(format!(
                "the weights{of_layers} take {} and a step's buffers {} of the memory of {device}, of which {} can be used ({why}); \
                 ask for fewer --gpu-layers, a smaller --batch-tokens, or run the model on the CPU (--backend cpu)",
                in_mib(needs.weights),
                in_mib(used - needs.weights),
                in_mib(*bytes)
            )));
        };
        let owner = format!(" of the memory of {device}");
        Ok(Room { owner, caches, available: Some(available), head_multiple: GPU_HEADS, table_bytes: TABLE_BYTES })
    }

    /// The cuts between the GPUs: weights in proportion to the budgets.
    fn divide(&self, begin: Option<usize>) -> Vec<usize> {
        let first = begin.map_or(0, |begin| begin + 1);
        // Embeddings aren't a layer: the first GPU has at least one.
        let first = first + self.cuts[first.min(self.cuts.len())..].iter().take_while(|cut| cut.layer == 0).count();
        let edges: Vec<Option<&Cut>> = std::iter::once(begin.map(|begin| &self.cuts[begin]))
            .chain(self.cuts[first.min(self.cuts.len())..].iter().map(Some))
            .chain([None])
            .collect();
        if self.budgets.len() < 2 {
            return Vec::new();
        }
        let weights = |edge: &[Option<&Cut>]| {
            let stage = self.program.stage(self.output, edge[0], edge[1]);
            Needs::of(&stage.program, stage.output.as_ref(), &self.size).weights
        };
        let costs: Vec<usize> = edges.windows(2).map(weights).collect();
        let shares: Vec<usize> = self.budgets.iter().map(|budget| budget.bytes).collect();
        divide(&costs, &shares).into_iter().map(|end| first + end - 1).collect()
    }
}

/// Divides pieces in a row in proportion to shares, at least one for each as long as there are any: where the second share's
/// pieces begin, the third's, and so on.
fn divide(costs: &[usize], shares: &[usize]) -> Vec<usize> {
    let shares = &shares[..shares.len().min(costs.len())];
    let sum = |numbers: &[usize]| numbers.iter().map(|&number| number as f64).sum::<f64>();
    let mut begins: Vec<usize> = Vec::new();
    for device in 1..shares.len() {
        let wanted = sum(costs) * sum(&shares[..device]) / sum(shares).max(1.0);
        let least = begins.last().map_or(1, |begin| begin + 1);
        let most = costs.len() - (shares.len() - device);
        let off = |begin: usize| (sum(&costs[..begin]) - wanted).abs();
        begins.extend((least..=most).min_by(|&a, &b| off(a).total_cmp(&off(b))));
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_divided_in_proportion_to_the_memory() {
        for (costs, shares, begins) in [
            (&[1, 1, 1, 1][..], &[5, 5][..], &[2][..]),
            (&[1, 1, 1, 1], &[9, 3], &[3]),
            (&[1, 1, 1, 1], &[1000, 1], &[3]),
            (&[1, 1, 1, 1], &[1, 1000], &[1]),
            (&[1, 1, 1, 5], &[1, 1], &[3]),
            (&[2, 2, 2, 2, 2, 2], &[1, 1, 1], &[2, 4]),
            (&[2, 2, 2, 2, 2, 2], &[0, 1, 0], &[1, 5]),
            (&[1, 1], &[1, 1, 1], &[1]),
            (&[1], &[1, 1], &[]),
            (&[1, 1], &[0, 0], &[1]),
        ] {
            assert_eq!(divide(costs, shares), begins, "{costs:?} among {shares:?}");
        }
    }
}
