//! `shimmy verify`: how far the fast executor is from the reference, on a real text.

use std::num::NonZeroUsize;

use serde_json::json;
use shimmy_runtime::exec::{self, Activations, Backend, ExecOptions, KvSize, KvType, WindowKv};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::measure::divergence::{self, Divergence};
use shimmy_runtime::measure::speed;
use shimmy_runtime::plan::{OutputKind, Plan};
use shimmy_runtime::text::{AddSpecial, ParseSpecial, Tokenizer};

use super::args::{ExecArgs, RootArgs, find};
use super::output;

/// Written for this purpose: prose, a list, numbers, code and other scripts, more than 200 tokens in any vocabulary.
const TEXT: &str = include_str!("verify.txt");

/// Tokens of a step when prefill is compared: few enough to hold the logits of every position.
const PIECE: usize = 64;

/// Tokens that are also fed one by one: the reference takes tenths of a second for each.
const DECODED: usize = 48;

/// Compare the fast executor with the reference, token by token.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file, a folder or a name that `shimmy list` shows.
    model: String,
    /// Tokens of text that are compared.
    #[arg(long, value_name = "N", default_value = "200")]
    tokens: NonZeroUsize,
    /// Tokens of the greedy continuation that is compared.
    #[arg(long, value_name = "N", default_value_t = 32)]
    greedy: usize,
    /// Fail when the mean KL divergence reaches this.
    #[arg(long, value_name = "NATS", default_value_t = 0.01)]
    max_kl: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    roots: RootArgs,
    #[command(flatten)]
    exec: ExecArgs,
}

struct Row {
    name: String,
    divergence: Divergence,
    greedy: usize,
}

/// Runs the command.
///
/// # Errors
/// When the model can't be loaded, or the divergence is too large.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let found = find(&args.model, &args.roots)?;
    let file = ModelFile::open(&found.path)?;
    let (_, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits)?;
    let (tokens, source) = tokens(&file, &plan, args.tokens.get());

    let room = tokens.len() + args.greedy;
    let sized = |options: ExecOptions| ExecOptions {
        max_context: Some(room),
        kv_size: KvSize::Tokens(room),
        window_kv: WindowKv::All,
        // Small steps: the logits of every position are wanted.
        max_step_tokens: PIECE,
        ..options
    };
    let exact = |backend| {
        sized(ExecOptions {
            backend,
            activations: Activations::F32,
            kv_types: KvType::F32.into(),
            ..args.exec.options()
        })
    };
    let mut reference = exec::build(&plan, &exact(Backend::Candle))?;
    let expected = divergence::greedy(&mut *reference, &tokens[..tokens.len().min(32)], args.greedy)?;

    let mut rows = Vec::new();
    let fast = if args.exec.options().backend == Backend::Cuda { Backend::Cuda } else { Backend::Cpu };
    for (name, options) in [("as asked", sized(args.exec.options())), ("exact arithmetic", exact(fast))] {
        let mut tested = exec::build(&plan, &options)?;
        let got = divergence::greedy(&mut *tested, &tokens[..tokens.len().min(32)], args.greedy)?;
        let greedy = expected.iter().zip(&got).take_while(|(a, b)| a == b).count();
        let kinds = format!("{:?} activations, {} KV", options.activations, options.kv_types).to_lowercase();
        for (how, piece, count) in [("prefill", PIECE, tokens.len()), ("decode", 1, tokens.len().min(DECODED))] {
            let divergence = divergence::compare(&mut *reference, &mut *tested, &tokens[..count], piece)?;
            rows.push(Row { name: format!("{} {name}, {how}: {kinds}", tested.name()), divergence, greedy });
        }
    }

    if args.json {
        output::json(&json!({
            "model": found.name,
            "reference": "candle, f32",
            "text": source,
            "rows": rows.iter().map(|row| json!({
                "executor": row.name,
                "positions": row.divergence.positions,
                "mean_kl": row.divergence.mean_kl,
                "max_kl": row.divergence.max_kl,
                "max_logit_difference": row.divergence.max_logit_difference,
                "same_top_token": row.divergence.same_top_token,
                "greedy_tokens_equal": row.greedy,
                "greedy_tokens": args.greedy,
            })).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut table = vec![
            ["executor", "mean KL", "max KL", "max |Δlogit|", "same top", "greedy equal"].map(String::from).to_vec(),
        ];
        table.extend(rows.iter().map(|row| {
            let d = &row.divergence;
            vec![
                row.name.clone(),
                format!("{:.2e}", d.mean_kl),
                format!("{:.2e}", d.max_kl),
                format!("{:.2e}", d.max_logit_difference),
                format!("{:.1}%", d.same_top_token * 100.0),
                format!("{}/{}", row.greedy, args.greedy),
            ]
        }));
        let text = format!("{} against candle in f32, over {} tokens of {source}\n", found.name, tokens.len());
        output::write(&(text + &output::table(&table, &[1, 2, 3, 4, 5])))?;
    }
    // A comparison that NaN fails too.
    match rows.iter().find(|row| !(row.divergence.mean_kl < args.max_kl)) {
        Some(row) => anyhow::bail!("{}: mean KL {:.4} is not below {}", row.name, row.divergence.mean_kl, args.max_kl),
        None => Ok(()),
    }
}

/// Tokens to compare on: a text where the model has a tokenizer that we know, else a fixed pseudo-random sequence.
fn tokens(file: &ModelFile, plan: &Plan, count: usize) -> (Vec<u32>, &'static str) {
    let count = count.min(plan.max_context);
    let text = TEXT.repeat(count.div_ceil(200));
    let encoded = Tokenizer::for_model(file)
        .and_then(|tokenizer| tokenizer.encode(&text, AddSpecial::Yes, ParseSpecial::No))
        .unwrap_or_default();
    // A folder may hold a tokenizer that isn't its model's.
    if encoded.len() >= count && encoded.iter().all(|&id| (id as usize) < plan.vocab_size) {
        return (encoded[..count].to_vec(), "text");
    }
    ((0..count).map(|index| speed::token(index, plan.vocab_size)).collect(), "pseudo-random tokens")
}
