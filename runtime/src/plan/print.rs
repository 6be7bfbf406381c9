//! A plan as a table: op, weight, shapes, type, bytes and FLOPs, with repeated layers folded. What `shimmy inspect --plan`
//! shows, as text or as JSON.

use std::fmt;

use serde::Serialize;

use crate::plan::cost::{Cost, Workload};
use crate::plan::op::{BufferId, Columns, Op, Plan, Rows, WeightId};

/// One op.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Name of the op and what sets it apart: `rope neox 64 base 10000`.
    pub op: String,
    /// `inputs → output`, buffers with their widths.
    pub shapes: String,
    /// Name of the weight with `*` for the layer's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Type of the weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<&'static str>,
    /// What it moves and computes.
    #[serde(flatten)]
    pub cost: Cost,
}

/// An op outside of the layers, or a layer or a group of layers with the number of times that it comes in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Entry {
    /// One op.
    Row(Row),
    /// Equal layers or groups of them; the costs inside are those of one.
    Repeat {
        /// How often.
        times: usize,
        /// The layer's ops, or the layers of the group.
        entries: Vec<Entry>,
    },
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanTable {
    /// As the registry names it.
    pub architecture: String,
    /// Ops, repeats included.
    pub num_ops: usize,
    /// The step that the costs are for.
    pub workload: Workload,
    /// The ops in order.
    pub entries: Vec<Entry>,
    /// Sum over all ops.
    pub total: Cost,
}

impl PlanTable {
    /// The table of a plan for a step.
    pub fn new(plan: &Plan, workload: Workload) -> Self {
        let rows: Vec<Row> = plan.ops.iter().map(|op| row(plan, op, &workload)).collect();
        Self {
            architecture: plan.architecture.clone(),
            num_ops: plan.ops.len(),
            workload,
            entries: fold(&units(plan, rows)),
            total: plan.total_cost(&workload),
        }
    }
}

/// What folds as one piece: a layer, or an op outside of the layers.
#[derive(Debug, PartialEq, Eq)]
enum Unit {
    Op(Row),
    Layer(Vec<Row>),
}

/// Groups the ops by layer. The numbers in the weights' names tell the layers apart; an op without a weight belongs to the
/// layer before it, unless it works on the wanted outputs, which are past the last layer.
fn units(plan: &Plan, rows: Vec<Row>) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut open = None;
    for (op, row) in plan.ops.iter().zip(rows) {
        let layer = match op.weight() {
            _ if plan.buffers[op.out().0].rows != Rows::Tokens => None,
            Some(id) => layer_number(&plan.weights[id.0].name),
            None => open,
        };
        match units.last_mut() {
            Some(Unit::Layer(rows)) if layer.is_some() && layer == open => rows.push(row),
            _ if layer.is_some() => units.push(Unit::Layer(vec![row])),
            _ => units.push(Unit::Op(row)),
        }
        open = layer;
    }
    units
}

/// Folds runs of equal units: at each unit the period that covers most, the shortest of those.
fn fold(units: &[Unit]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < units.len() {
        let rest = &units[at..];
        let mut best = (1, 1);
        for period in 1..=rest.len() / 2 {
            let times = rest.chunks_exact(period).take_while(|chunk| *chunk == &rest[..period]).count();
            if times > 1 && times * period > best.0 * best.1 {
                best = (period, times);
            }
        }
        let (period, times) = best;
        match &rest[..period] {
            [Unit::Op(row)] if times == 1 => entries.push(Entry::Row(row.clone())),
            [Unit::Op(row)] => entries.push(Entry::Repeat { times, entries: vec![Entry::Row(row.clone())] }),
            [Unit::Layer(rows)] => {
                entries.push(Entry::Repeat { times, entries: rows.iter().cloned().map(Entry::Row).collect() });
            }
            block => entries.push(Entry::Repeat { times, entries: fold(block) }),
        }
        at += period * times;
    }
    entries
}

fn row(plan: &Plan, op: &Op, workload: &Workload) -> Row {
    let name = |id: BufferId| plan.buffers[id.0].name.as_str();
    let columns = |x: Columns| {
        if x.width == plan.buffers[x.buffer.0].width {
            format!("{}[{}]", name(x.buffer), x.width)
        } else {
            format!("{}[{}..{}]", name(x.buffer), x.start, x.start + x.width)
        }
    };
    let whole = |id: BufferId| columns(plan.columns(id));
    let shapes = |inputs: &[Columns], out: Columns| {
        let inputs: Vec<_> = inputs.iter().map(|&x| columns(x)).collect();
        format!("{} → {}", inputs.join(", "), columns(out))
    };
    let (label, shapes, weight): (String, String, Option<WeightId>) = match op {
        Op::Embed { weight, scale, out } => {
            let label = if *scale == 1.0 { "embed".into() } else { format!("embed × {scale}") };
            (label, format!("tokens → {}", whole(*out)), Some(*weight))
        }
        Op::Norm { kind, x, out, weight, groups, .. } => {
            let kind = format!("{kind:?}").to_lowercase();
            let label = if *groups == 1 { format!("norm {kind}") } else { format!("norm {kind} × {groups} heads") };
            (label, shapes(&[*x], *out), *weight)
        }
        Op::Linear { x, weight, bias, out } => {
            (if bias.is_some() { "linear + bias" } else { "linear" }.into(), shapes(&[*x], *out), Some(*weight))
        }
        Op::Rope { x, rope, .. } => {
            let spec = &plan.ropes[rope.0];
            let style = format!("{:?}", spec.style).to_lowercase();
            let scaling = format!("{:?}", spec.scaling);
            let scaling = scaling.split([' ', '{']).next().unwrap_or_default().to_lowercase();
            let scaling = if scaling == "none" { String::new() } else { format!(" {scaling}") };
            (format!("rope {style} {} base {}{scaling}", spec.rotary_dim, spec.base), shapes(&[*x], *x), None)
        }
        Op::Attention { q, k, v, out, num_heads, mask, kv, .. } => {
            let spec = &plan.kv[kv.0];
            let mask = format!("{mask:?}").to_lowercase();
            let window = spec.window.map_or_else(String::new, |window| format!(" window {window}"));
            let label = format!("attention {mask} {num_heads}/{} heads{window}", spec.num_kv_heads);
            (label, shapes(&[*q, *k, *v], *out), None)
        }
        Op::Glu { act, gate, up, out } => {
            (format!("glu {}", format!("{act:?}").to_lowercase()), shapes(&[*gate, *up], *out), None)
        }
        Op::Activation { act, x, out } => (format!("{act:?}").to_lowercase(), shapes(&[*x], *out), None),
        Op::Add { a, b, out } => ("add".into(), shapes(&[*a, *b], *out), None),
        Op::Scale { x, factor, out } => (format!("scale × {factor}"), shapes(&[*x], *out), None),
        Op::Softcap { x, cap, out } => (format!("softcap {cap}"), shapes(&[*x], *out), None),
        Op::Gather { x, out } => ("gather".into(), format!("{} → {}", whole(*x), whole(*out)), None),
    };
    Row {
        op: label,
        shapes,
        weight: weight.map(|id| without_numbers(&plan.weights[id.0].name)),
        dtype: weight.map(|id| plan.weights[id.0].view.dtype.name()),
        cost: plan.cost(op, workload),
    }
}

/// `blk.7.attn_q.weight` → `blk.*.attn_q.weight`.
fn without_numbers(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// The layer's number in a weight's name.
fn layer_number(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// A number of bytes or operations with a decimal prefix: `1.23 M`.
fn short(value: u64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " G", " T"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { value.to_string() } else { format!("{scaled:.2}{}", UNITS[unit]) }
}

impl fmt::Display for PlanTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { num_tokens, num_outputs, context, .. } = self.workload;
        writeln!(
            f,
            "{}: {} ops; a step of {num_tokens} tokens ({num_outputs} outputs) at a context of {context}",
            self.architecture, self.num_ops
        )?;
        let mut lines = vec![[
            "op".to_owned(),
            "shapes".into(),
            "weight".into(),
            "type".into(),
            "weight B".into(),
            "other B".into(),
            "FLOP".into(),
        ]];
        collect(&self.entries, 0, &mut lines);
        let numbers = |label: &str, cost: &Cost| {
            let others = cost.activation_bytes + cost.kv_bytes;
            let [a, b, c] = [cost.weight_bytes, others, cost.flops].map(short);
            [label.to_owned(), String::new(), String::new(), String::new(), a, b, c]
        };
        lines.push(numbers("total", &self.total));
        let mut widths = [0; 7];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in &lines {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if column < 4 { ("", padding.as_str()) } else { (padding.as_str(), "") };
                text += &format!("{before}{cell}{after}  ");
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn collect(entries: &[Entry], depth: usize, lines: &mut Vec<[String; 7]>) {
    let indent = "  ".repeat(depth);
    for entry in entries {
        match entry {
            Entry::Row(row) => {
                let cost = &row.cost;
                let [a, b, c] = [cost.weight_bytes, cost.activation_bytes + cost.kv_bytes, cost.flops].map(short);
                lines.push([
                    format!("{indent}{}", row.op),
                    row.shapes.clone(),
                    row.weight.clone().unwrap_or_default(),
                    row.dtype.unwrap_or_default().to_owned(),
                    a,
                    b,
                    c,
                ]);
            }
            Entry::Repeat { times, entries } => {
                let empty = String::new;
                lines.push([format!("{indent}× {times}"), empty(), empty(), empty(), empty(), empty(), empty()]);
                collect(entries, depth + 1, lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Bytes, TensorView};
    use crate::plan::op::{Buffer, KvSpec, Mask, OutputKind, Weight};
    use crate::plan::{Act, KvId};
    use shimmy_kernels::quant::QuantType;

    /// `layers` × (attention, glu), the attention of every third one without a window.
    fn plan(layers: usize) -> Plan {
        let buffer = |name: &str| Buffer { name: name.into(), width: 8, rows: Rows::Tokens };
        let mut plan = Plan {
            architecture: "test".into(),
            buffers: vec![buffer("x"), buffer("y")],
            weights: Vec::new(),
            ropes: Vec::new(),
            kv: Vec::new(),
            ops: Vec::new(),
            output: BufferId(0),
            output_kind: OutputKind::Hidden,
            hidden: None,
            vocab_size: 1,
            max_context: 64,
        };
        let (x, y) = (plan.columns(BufferId(0)), plan.columns(BufferId(1)));
        for layer in 0..layers {
            let window = if layer % 3 == 2 { None } else { Some(4) };
            plan.kv.push(KvSpec { num_kv_heads: 2, k_dim: 4, v_dim: 4, window });
            plan.ops.push(Op::Attention {
                q: x,
                k: x,
                v: x,
                out: y,
                num_heads: 2,
                scale: 1.0,
                softcap: None,
                mask: Mask::Causal,
                sinks: None,
                kv: KvId(layer),
            });
            plan.ops.push(Op::Glu { act: Act::Silu, gate: y, up: y, out: x });
        }
        plan
    }

    fn count(entries: &[Entry]) -> usize {
        entries
            .iter()
            .map(|entry| match entry {
                Entry::Row(_) => 1,
                Entry::Repeat { times, entries } => times * count(entries),
            })
            .sum()
    }

    #[test]
    fn layers_fold_into_nested_repeats_and_none_is_lost() {
        for layers in 1..10 {
            let table = PlanTable::new(&plan(layers), Workload::decode(16));
            assert_eq!(count(&table.entries), 2 * layers);
            assert_eq!(table.num_ops, 2 * layers);
        }
        // Six layers are twice (two local, one global).
        let table = PlanTable::new(&plan(6), Workload::decode(16));
        let [Entry::Repeat { times: 2, entries }] = &table.entries[..] else { panic!("{:?}", table.entries) };
        assert!(matches!(entries[0], Entry::Repeat { times: 2, .. }), "{entries:?}");
        let text = table.to_string();
        assert_eq!(text.matches("× 2").count(), 2, "{text}");
        assert!(text.contains("window 4"), "{text}");
    }

    #[test]
    fn a_layer_with_other_weights_stands_alone_and_whole() {
        let mut plan = plan(1);
        let attention = plan.ops.remove(0);
        let glu = plan.ops.remove(0);
        let (x, y) = (plan.columns(BufferId(0)), plan.columns(BufferId(1)));
        for layer in 0..4 {
            let dtype = if layer == 3 { QuantType::F16 } else { QuantType::F32 };
            let data = Bytes::from(vec![0; 64 * dtype.block_bytes()]);
            let view = TensorView { dtype, shape: vec![8, 8], data };
            plan.weights.push(Weight { name: format!("blk.{layer}.q.weight"), view });
            plan.ops.push(Op::Linear { x, weight: WeightId(layer), bias: None, out: y });
            plan.ops.extend([attention.clone(), glu.clone()]);
        }
        plan.buffers.push(Buffer { name: "last".into(), width: 8, rows: Rows::Outputs });
        plan.ops.push(Op::Gather { x: BufferId(0), out: BufferId(2) });
        let table = PlanTable::new(&plan, Workload::decode(16));
        let [Entry::Repeat { times: 3, .. }, Entry::Repeat { times: 1, entries }, Entry::Row(gather)] =
            &table.entries[..]
        else {
            panic!("{:?}", table.entries)
        };
        assert_eq!(entries.len(), 3);
        assert_eq!(gather.op, "gather");
        assert_eq!(count(&table.entries), plan.ops.len());
    }

    #[test]
    fn attention_costs_follow_the_window() {
        let plan = plan(3);
        let load = Workload::decode(16);
        let (local, global) = (plan.cost(&plan.ops[0], &load), plan.cost(&plan.ops[4], &load));
        // Rows of 2 heads · 8 elements · 2 bytes; the window of 4 reads 4 of them, the global layer 16; one is written.
        assert_eq!((local.kv_bytes, global.kv_bytes), (32 * 5, 32 * 17));
        assert_eq!(global.flops, 4 * local.flops);
        // A prompt of 3: 1 + 2 + 3 pairs a head.
        let prefill = plan.cost(&plan.ops[4], &Workload::prefill(3));
        assert_eq!(prefill.flops, 6 * global.flops / 16);
    }

    #[test]
    fn totals_are_the_sum_and_json_has_the_numbers() {
        let plan = plan(4);
        let load = Workload::prefill(5);
        let table = PlanTable::new(&plan, load);
        let sum: Cost = plan.ops.iter().map(|op| plan.cost(op, &load)).sum();
        assert_eq!(table.total, sum);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["total"]["flops"], sum.flops);
        assert_eq!(json["workload"]["num_tokens"], 5);
    }
}
