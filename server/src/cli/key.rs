//! `shimmy key`: API keys for `shimmy serve --api-key-file`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::failure::usage;
use super::output;
use crate::access::keys;
use crate::access::quota::Rates;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key, show it once, and add its hash to the file.
    New {
        /// What logs call it: who or what uses it.
        name: String,
        /// Most requests a minute.
        #[arg(long, value_name = "N")]
        requests_per_minute: Option<NonZeroU32>,
        /// Most tokens of prompts and answers a minute.
        #[arg(long, value_name = "N")]
        tokens_per_minute: Option<NonZeroU32>,
        /// Least `priority` of its requests: below 0 they may go before those of others [default: that of the server, or 0].
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        least_priority: Option<i32>,
        #[command(flatten)]
        file: File,
    },
    /// List the keys of the file: names and limits.
    List {
        /// Print an array of JSON objects.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: File,
    },
    /// Take a key out of the file; a running server notices within seconds.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        file: File,
    },
}

#[derive(Debug, clap::Args)]
struct File {
    /// The key file.
    #[arg(long = "file", value_name = "FILE", env = "SHIMMY_API_KEY_FILE", default_value = "shimmy-keys.toml")]
    path: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::New { name, requests_per_minute, tokens_per_minute, least_priority, file } => {
            let key = keys::generate()?;
            let rates = Rates { requests_per_minute, tokens_per_minute };
            keys::add(&file.path, &name, &key, rates, least_priority).map_err(usage)?;
            output::write(&format!("{key}\n"))?;
            eprintln!("this is the only time that the key of {name} is shown; its hash is in {}", file.path.display());
            Ok(())
        }
        Action::List { json, file } => {
            let entries = keys::read(&file.path).map_err(usage)?;
            if json {
                let list = entries.iter().map(|entry| {
                    let rates = entry.rates();
                    json!({
                        "name": entry.name,
                        "requests_per_minute": rates.requests_per_minute,
                        "tokens_per_minute": rates.tokens_per_minute,
                        "least_priority": entry.least_priority,
                    })
                });
                return output::json(&list.collect::<Vec<_>>());
            }
            let or_any = |limit: Option<NonZeroU32>| limit.map_or("any".into(), |limit| limit.to_string());
            let head = ["NAME", "REQUESTS A MINUTE", "TOKENS A MINUTE", "LEAST PRIORITY"].map(String::from).to_vec();
            let rows = entries.into_iter().map(|entry| {
                let rates = entry.rates();
                let least = entry.least_priority.map_or("server's".into(), |least| least.to_string());
                vec![entry.name, or_any(rates.requests_per_minute), or_any(rates.tokens_per_minute), least]
            });
            output::write(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[1, 2, 3]))
        }
        Action::Remove { name, file } => {
            keys::remove(&file.path, &name).map_err(usage)?;
            eprintln!("{} has no key of {name} any more", file.path.display());
            Ok(())
        }
    }
}
