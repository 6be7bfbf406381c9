//! Bytes and FLOPs of an op: what a perfect executor would have to move and compute. Weights count in the type they have in
//! the file, each once a step; activations are f32; a multiply-add is two FLOPs; transcendental functions count as one.

use serde::Serialize;

use crate::plan::op::{Columns, Mask, Op, Plan, Rows, WeightId};

/// The step whose cost is asked for: `num_tokens` tokens of one sequence whose last one sees `context` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Tokens in the step.
    pub num_tokens: usize,
    /// Tokens whose output is wanted.
    pub num_outputs: usize,
    /// Positions that the last token sees, itself included; at least `num_tokens`.
    pub context: usize,
    /// Bytes of an element of the KV cache.
    pub kv_element_bytes: usize,
}

impl Workload {
    /// One token of generation after `context - 1` others, with an f16 cache.
    pub fn decode(context: usize) -> Self {
        Self { num_tokens: 1, num_outputs: 1, context, kv_element_bytes: 2 }
    }

    /// A prompt from its first token, with an f16 cache.
    pub fn prefill(num_tokens: usize) -> Self {
        Self { num_tokens, num_outputs: 1, context: num_tokens, kv_element_bytes: 2 }
    }
}

/// What an op moves and computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Read from weights.
    pub weight_bytes: u64,
    /// Read from and written to buffers.
    pub activation_bytes: u64,
    /// Read from and written to the KV cache.
    pub kv_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

impl Cost {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.kv_bytes
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.weight_bytes += other.weight_bytes;
        self.activation_bytes += other.activation_bytes;
        self.kv_bytes += other.kv_bytes;
        self.flops += other.flops;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |mut total, cost| {
            total += cost;
            total
        })
    }
}

/// Multiply-adds of products with weights, by the arithmetic that the weights' type allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MultiplyAdds {
    /// With quantised weights.
    pub int8: u64,
    /// With float weights.
    pub float: u64,
}

const F32_BYTES: u64 = 4;

impl Plan {
    /// Elements of these columns in a step.
    fn elements(&self, columns: Columns, load: &Workload) -> u64 {
        let rows = match self.buffers[columns.buffer.0].rows {
            Rows::Tokens => load.num_tokens,
            Rows::Outputs => load.num_outputs,
            // A step of an answer asks for none.
            Rows::Hidden => 0,
        };
        rows as u64 * columns.width as u64
    }

    /// Bytes and FLOPs of one op of this plan.
    pub fn cost(&self, op: &Op, load: &Workload) -> Cost {
        let elements = |columns: Columns| self.elements(columns, load);
        let weight = |id: WeightId| self.weights[id.0].view.data.len() as u64;
        let simple = |inputs: &[Columns], out: Columns, weights: u64, flops_an_element: u64| Cost {
            weight_bytes: weights,
            activation_bytes: F32_BYTES * (inputs.iter().map(|&x| elements(x)).sum::<u64>() + elements(out)),
            kv_bytes: 0,
            flops: flops_an_element * elements(out),
        };
        match *op {
            Op::Embed { weight: id, out, .. } => {
                let row_bytes = weight(id) / self.vocab_size.max(1) as u64;
                simple(&[], self.columns(out), row_bytes * load.num_tokens as u64, 1)
            }
            Op::Norm { x, out, weight: scale, bias, .. } => {
                let vectors = [scale, bias].into_iter().flatten().map(weight).sum();
                simple(&[x], out, vectors, 4)
            }
            Op::Linear { x, weight: id, bias, out } => {
                let cost = simple(&[x], out, weight(id) + bias.map_or(0, weight), 2 * x.width as u64);
                Cost { flops: cost.flops + bias.map_or(0, |_| elements(out)), ..cost }
            }
            // Two products and a sum an element, for the elements that rotate.
            Op::Rope { num_heads, rope, .. } => {
                let rotated = (num_heads * self.ropes[rope.0].rotary_dim) as u64 * load.num_tokens as u64;
                Cost { activation_bytes: 2 * F32_BYTES * rotated, flops: 3 * rotated, ..Cost::default() }
            }
            Op::Attention { q, k, v, out, num_heads, mask, sinks, kv, softcap, .. } => {
                let spec = &self.kv[kv.0];
                let window = spec.window.unwrap_or(usize::MAX);
                let first = load.context.saturating_sub(load.num_tokens);
                let seen = |position: usize| match mask {
                    Mask::Causal => (position + 1).min(window),
                    Mask::Bidirectional => load.context.min(window.saturating_mul(2)),
                };
                let pairs: u64 = (first..load.context).map(|position| seen(position) as u64).sum();
                let read = load.context.min(window.saturating_add(load.num_tokens - 1)) as u64;
                let row = (spec.num_kv_heads * (spec.k_dim + spec.v_dim) * load.kv_element_bytes) as u64;
                let a_pair = 2 * (spec.k_dim + spec.v_dim) as u64 + 4 + if softcap.is_some() { 2 } else { 0 };
                Cost {
                    weight_bytes: sinks.map_or(0, weight),
                    activation_bytes: F32_BYTES * [q, k, v, out].map(elements).iter().sum::<u64>(),
                    kv_bytes: row * (read + load.num_tokens as u64),
                    flops: pairs * num_heads as u64 * a_pair,
                }
            }
            Op::Glu { gate, up, out, .. } => simple(&[gate, up], out, 0, 4),
            Op::Activation { x, out, .. } => simple(&[x], out, 0, 3),
            Op::Add { a, b, out } => simple(&[a, b], out, 0, 1),
            Op::Scale { x, out, .. } => simple(&[x], out, 0, 1),
            Op::Softcap { x, out, .. } => simple(&[x], out, 0, 3),
            // Reads only the rows it writes.
            Op::Gather { out, .. } => {
                let out = elements(self.columns(out));
                Cost { activation_bytes: 2 * F32_BYTES * out, ..Cost::default() }
            }
        }
    }

    /// Multiply-adds of a step's products with weights: the arithmetic of a prompt, but for attention.
    pub fn multiply_adds(&self, load: &Workload) -> MultiplyAdds {
        let mut total = MultiplyAdds::default();
        for op in &self.ops {
            let Op::Linear { x, weight, out, .. } = op else { continue };
            let float = self.weights[weight.0].view.dtype.is_float();
            let count = if float { &mut total.float } else { &mut total.int8 };
            *count += self.elements(*out, load) * x.width as u64;
        }
        total
    }

    /// Bytes and FLOPs of a whole step.
    pub fn total_cost(&self, load: &Workload) -> Cost {
        self.ops.iter().map(|op| self.cost(op, load)).sum()
    }
}
