//! `shimmy inspect`: what a model file holds.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use shimmy_runtime::loader::{Metadata, ModelFile};
use shimmy_runtime::models::Summary;
use shimmy_runtime::plan::OutputKind;

use super::args::{RootArgs, find};
use super::output;

/// Elements of a metadata array that are shown.
const MAX_ARRAY: usize = 8;
/// Characters of a metadata value in the text output.
const MAX_VALUE_CHARS: usize = 160;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
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
    #[command(flatten)]
    roots: RootArgs,
}

/// Runs the command.
///
/// # Errors
/// When the file is damaged or, with `--plan`, not supported.
pub fn run(args: Args) -> anyhow::Result<()> {
    let found = find(&args.model, &args.roots)?;
    let file = ModelFile::open(&found.path)?;
    let summary = Summary::of(&file)?;
    let plan = match args.plan {
        true => Some(shimmy_runtime::arch::load(&file, OutputKind::Logits)?.1),
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
            object["plan"] = shimmy_runtime::plan::print(plan).into();
        }
        return output::json(&object);
    }
    if let (Some(plan), false) = (&plan, args.tensors) {
        return output::write(&shimmy_runtime::plan::print(plan));
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
        text += &shimmy_runtime::plan::print(plan);
    }
    output::write(&text)
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
    line("size", &format!("{} ({} in {} tensors)", output::bytes(file_bytes), output::bytes(summary.tensor_bytes), summary.tensors));
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
