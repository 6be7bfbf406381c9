//! `shimmy generate`: one prompt, one answer.

use std::io::{IsTerminal, Read};

use serde_json::{Map, json};
use shimmy_runtime::engine::{Event, GenerateRequest};
use shimmy_runtime::models::LoadedModel;

use super::args::{ExecArgs, KeepArgs, RootArgs, SamplingArgs, SpeculateArgs, find, load};
use super::failure::usage;
use super::interrupt::Interrupt;
use super::{Context, output};
use crate::routes::openai::types::{Usage, finish_reason};
use crate::routes::request::report::{Done, Timings};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder with safetensors, or a name that `shimmy list` shows.
    model: String,
    /// The prompt [default: read from stdin].
    #[arg(short, long)]
    prompt: Option<String>,
    /// What the model is told before the prompt.
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Complete the prompt as it is, without the model's chat template.
    #[arg(long)]
    raw: bool,
    /// Print one JSON object with text, usage and timings when the answer is complete.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    #[command(flatten)]
    exec: ExecArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    roots: RootArgs,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub(super) fn run(args: Args, context: Context) -> anyhow::Result<()> {
    Interrupt::install()?;
    let found = find(&args.model, &args.roots)?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => read_stdin()?,
    };
    if prompt.is_empty() {
        return Err(usage("the prompt is empty"));
    }
    let model = load(&found, &args.exec, &args.keep, &args.speculate, &args.roots)?;
    let prompt = if args.raw { model.encode_text(&prompt)? } else { chat_prompt(&model, args.system, &prompt)? };
    let request = GenerateRequest {
        max_tokens: args.sampling.max_tokens.map(Into::into),
        sampling: args.sampling.over(&model.defaults),
        stop: args.sampling.stop.clone(),
        ..GenerateRequest::new(prompt)
    };
    let mut generation = model.engine.submit(request)?;
    let mut whole = String::new();
    while let Some(event) = generation.blocking_recv() {
        match event {
            Event::Text { text, .. } if args.json => whole.push_str(&text),
            Event::Text { text, .. } => output::write(&text)?,
            Event::Done { reason, usage, timings, seed } => {
                let done = Done { reason, usage, timings, seed };
                if args.json {
                    output::json(&json!({
                        "model": model.name,
                        "text": whole,
                        "finish_reason": finish_reason(reason),
                        "usage": Usage::from(usage),
                        "timings": Timings::new(&timings, &usage),
                        "seed": seed,
                    }))?;
                } else {
                    output::write("\n")?;
                }
                if context.verbose > 0 {
                    eprintln!("{}", summary(&model, &done));
                }
                return Ok(());
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the engine stopped before the answer was complete")
}

fn read_stdin() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return Err(usage("no prompt: give one with --prompt or pipe it in"));
    }
    let mut prompt = String::new();
    std::io::stdin().read_to_string(&mut prompt).map_err(|error| usage(format!("stdin: {error}")))?;
    Ok(prompt)
}

fn chat_prompt(model: &LoadedModel, system: Option<String>, prompt: &str) -> anyhow::Result<Vec<u32>> {
    if model.template.is_none() {
        let message = format!("`{}` has no chat template; add --raw to complete the prompt as it is", model.name);
        return Err(usage(message));
    }
    let mut messages: Vec<_> = system.iter().map(|system| json!({"role": "system", "content": system})).collect();
    messages.push(json!({"role": "user", "content": prompt}));
    Ok(model.encode_chat(&messages.into(), &Map::new())?)
}

/// One line about how fast it was.
pub(super) fn summary(model: &LoadedModel, done: &Done) -> String {
    let timings = Timings::new(&done.timings, &done.usage);
    let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.1}"));
    format!(
        "load {:.0} ms | prompt {} tokens ({} cached) in {:.0} ms, {} tokens/s | answer {} tokens in {:.0} ms, {} tokens/s | seed {}",
        model.load_time.as_secs_f64() * 1e3,
        done.usage.prompt_tokens,
        done.usage.cached_tokens,
        done.timings.prompt_ms,
        rate(timings.prompt_per_second()),
        done.usage.completion_tokens,
        done.timings.predicted_ms,
        rate(timings.predicted_per_second()),
        done.seed,
    )
}
