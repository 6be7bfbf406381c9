//! `shimmy inspect`: what a model file holds.

use std::fmt::Write;
use std::num::NonZeroUsize;

use serde_json::{Map, Value, json};
use shimmy_runtime::loader::{Metadata, ModelFile};
use shimmy_runtime::models::Summary;
use shimmy_runtime::plan::OutputKind;
use shimmy_runtime::plan::cost::Workload;
use shimmy_runtime::plan::print::PlanTable;

use super::args::{RootArgs, find};
use super::output;

/// Elements of a metadata array that are shown.
const MAX_ARRAY: usize = 8;
/// Characters of a metadata value in the text output.
const MAX_VALUE_CHARS: usize = 160;

/// Positions that the last token of a plan's step sees.
const PLAN_CONTEXT: usize = 1024;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder with safetensors, or a name that `shimmy list` shows.
    model: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Print the plan: operations with shapes, types, bytes and FLOPs.
    #[arg(long)]
    plan: bool,
    /// With --plan: count bytes and FLOPs for a step of so many tokens.
    #[arg(long, value_name = "N", default_value = "1", requires = "plan")]
    plan_tokens: NonZeroUsize,
    #[command(flatten)]
    roots: RootArgs,
}

/// Runs the command.
///
/// # Errors
/// When the file is damaged or, with `--plan`, not supported.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let found = find(&args.model, &args.roots)?;
    let file = ModelFile::open(&found.path)?;
    let summary = Summary::of(&file)?;
    let plan = match args.plan {
        true => Some(plan_table(&file, args.plan_tokens.get())?),
        false => None,
    };
    let metadata = match &file.metadata {
        Metadata::Gguf(metadata) => metadata.to_json(MAX_ARRAY),
        Metadata::Hf(metadata) => metadata.config.as_object().cloned().unwrap_or_default(),
    };
    if args.json {
        let mut object = json!({
            "name": found.name,
            "path": file.path.display().to_string(),
            "file_bytes": found.bytes,
            "summary": summary,
            "metadata": metadata,
        });
        if args.tensors {
            object["tensors"] = tensors(&file);
        }
        if let Some(plan) = &plan {
            object["plan"] = serde_json::to_value(plan)?;
        }
        return output::json(&object);
    }
    if let (Some(plan), false) = (&plan, args.tensors) {
        return output::write(&plan.to_string());
    }
    let mut text = overview(&summary, found.bytes, &metadata);
    if args.tensors {
        text += "\ntensors\n";
        let rows: Vec<Vec<String>> = file
            .tensors()
            .map(|(name, view)| {
                let shape: Vec<String> = view.shape.iter().map(ToString::to_string).collect();
                vec![
                    format!("  {}", output::printable(name, 120)),
                    view.dtype.name().into(),
                    format!("[{}]", shape.join(", ")),
                    output::bytes(view.data.len() as u64),
                ]
            })
            .collect();
        text += &output::table(&rows, &[3]);
    }
    if let Some(plan) = &plan {
        text += "\n";
        text += &plan.to_string();
    }
    output::write(&text)
}

/// The plan with the costs of a step whose last token sees a typical context.
fn plan_table(file: &ModelFile, num_tokens: usize) -> anyhow::Result<PlanTable> {
    let (_, plan) = shimmy_runtime::arch::load(file, OutputKind::Logits)?;
    let context = plan.max_context.min(PLAN_CONTEXT).max(num_tokens);
    Ok(PlanTable::new(&plan, Workload { num_tokens, ..Workload::decode(context) }))
}

fn tensors(file: &ModelFile) -> Value {
    file.tensors()
        .map(|(name, view)| json!({"name": name, "type": view.dtype.name(), "shape": view.shape, "bytes": view.data.len()}))
        .collect()
}

fn overview(summary: &Summary, file_bytes: u64, metadata: &Map<String, Value>) -> String {
    let or_dash = |text: &Option<String>| output::printable(text.as_deref().unwrap_or("-"), 80);
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("format", summary.format);
    line("architecture", &or_dash(&summary.architecture));
    line("title", &or_dash(&summary.title));
    line("context", &summary.context.map_or("-".into(), |context| context.to_string()));
    line("parameters", &format!("{} ({})", output::count(summary.parameters), summary.parameters));
    line(
        "size",
        &format!(
            "{} ({} in {} tensors)",
            output::bytes(file_bytes),
            output::bytes(summary.tensor_bytes),
            summary.tensors
        ),
    );
    line("chat template", if summary.chat_template { "yes" } else { "no" });
    let rows: Vec<Vec<String>> = summary
        .types
        .iter()
        .map(|(name, count)| {
            let share = count.bytes as f64 * 100.0 / summary.tensor_bytes.max(1) as f64;
            let tensors = format!("{} tensors", count.tensors);
            vec![format!("  {name}"), tensors, output::bytes(count.bytes), format!("{share:.1}%")]
        })
        .collect();
    text += "\ntypes\n";
    text += &output::table(&rows, &[1, 2, 3]);
    text += "\nmetadata\n";
    for (key, value) in metadata {
        let value = value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
        let _ = writeln!(text, "  {} = {}", output::printable(key, 120), output::printable(&value, MAX_VALUE_CHARS));
    }
    text
}
