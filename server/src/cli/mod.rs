//! The command line: one file a command, one variant of [`Command`] each.
//!
//! A command is a clap struct `Args` and a function `run(args, &Context)`. Exit codes: 0 ok, 1 failure at run time,
//! 2 wrong usage or an unusable file, 130 interrupted. Results go to stdout, everything else to stderr.

mod args;
mod bench;
mod bench_load;
mod chat;
mod config;
mod failure;
mod generate;
mod gpu_info;
mod inspect;
mod interrupt;
mod key;
mod list;
mod output;
mod probe;
mod progress;
mod serve;
mod verify;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::OsStringValueParser;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Runs large language models on this machine and serves them over HTTP.
#[derive(Debug, Parser)]
#[command(name = "shimmy", disable_version_flag = true, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    /// Print version, CPU features and whether there is a CUDA driver.
    #[arg(short = 'V', long)]
    version: bool,
    /// Say more on stderr: -v what happens, -vv details.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Read settings from this file [default: ./shimmy.toml, else the one in ~/.config/shimmy]; an empty name reads none.
    #[arg(long, value_name = "FILE", env = "SHIMMY_CONFIG", global = true, value_parser = OsStringValueParser::new())]
    config: Option<OsString>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP (OpenAI's protocol).
    Serve(Box<serve::Args>),
    /// Answer one prompt.
    Generate(generate::Args),
    /// Talk with a model in the terminal.
    Chat(chat::Args),
    /// Show the settings and where they come from.
    Config(config::Args),
    /// Make, list and remove API keys for `serve`.
    Key(key::Args),
    /// List the models found on this machine.
    List(list::Args),
    /// Show what a model file holds.
    Inspect(inspect::Args),
    /// Show what this machine offers, and what would run a model.
    Probe(probe::Args),
    /// Show the GPUs of this machine, their memory and which of the built-in kernels they would run.
    GpuInfo(gpu_info::Args),
    /// Measure how fast a model runs here.
    Bench(bench::Args),
    /// Compare the fast executor with the reference, token by token.
    Verify(verify::Args),
}

/// What every command gets beside its own arguments.
#[derive(Debug, Clone, Copy)]
struct Context {
    /// How often `-v` was given.
    verbose: u8,
}

/// Parses, runs, and says how it went.
pub fn main() -> ExitCode {
    failure::install_panic_hook();
    shimmy_kernels::memory::map_large_allocations();
    let args = with_long_names(std::env::args_os());
    let layered = match config::layer(Cli::command(), &args) {
        Ok(layered) => layered,
        Err(error) => return failure::report(&error.into()),
    };
    let cli = match layered.command.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help on stdout with 0, mistakes on stderr with 2. Nobody to tell when even that pipe is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    start_log(cli.verbose);
    let context = Context { verbose: cli.verbose };
    let result = match cli.command {
        _ if cli.version => version::run(),
        None => {
            eprint!("{}", Cli::command().render_help());
            return ExitCode::from(failure::USAGE);
        }
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Generate(args)) => generate::run(args, context),
        Some(Command::Chat(args)) => chat::run(args, context),
        Some(Command::Config(args)) => config::run(args, Cli::command(), cli.config),
        Some(Command::Key(args)) => key::run(args),
        Some(Command::List(args)) => list::run(args),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Probe(args)) => probe::run(args),
        Some(Command::GpuInfo(args)) => gpu_info::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

/// The command line with the short name of several letters that people know from llama.cpp written out: as it is, it would be
/// `-n gl`.
fn with_long_names(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut are_options = true;
    args.map(|arg| {
        are_options &= arg != "--";
        if are_options && arg == "-ngl" { "--gpu-layers".into() } else { arg }
    })
    .collect()
}

/// Logs to stderr. What a client sends that is no HTTP is its own mistake, and an error of the server only to actix: it is
/// shown from `-vv` on. `SHIMMY_LOG` (the syntax of `RUST_LOG`) overrides `-v`.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn,actix_http::h1::dispatcher=off",
        1 => {
            "warn,actix_http::h1::dispatcher=off,shimmy=info,shimmy_server=info,shimmy_runtime=info,shimmy_kernels=info"
        }
        2 => "info,shimmy=debug,shimmy_server=debug,shimmy_runtime=debug,shimmy_kernels=debug",
        _ => "trace",
    };
    let filter = std::env::var("SHIMMY_LOG").ok().and_then(|filter| EnvFilter::try_new(filter).ok());
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(level)))
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_llama_cpp_is_written_out() {
        let args = ["shimmy", "generate", "-ngl", "5", "--", "-ngl"].map(OsString::from);
        assert_eq!(with_long_names(args.into_iter()), ["shimmy", "generate", "--gpu-layers", "5", "--", "-ngl"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
