//! Settings from `shimmy.toml` under those of the environment and the command line, and `shimmy config show`.
//!
//! A setting of the file becomes the default of the option that it is named after: so flags and variables go before it,
//! `--help` shows it, and each value is checked as if it had been typed.

mod file;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::{BoolishValueParser, OsStr as ClapStr};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Subcommand};
use serde::Serialize;
use shimmy_runtime::models::names::nearest;

use self::file::{ConfigFile, Setting};
use super::failure::{UsageError, usage};
use super::output;

/// Options that no file can set: they say what to do, not how.
const NOT_SETTINGS: [&str; 4] = ["help", "version", "config", "json"];

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a command would run with, and where each value comes from.
    Show {
        /// Print an object with a value and its source for each option.
        #[arg(long)]
        json: bool,
        /// The command [default: serve] and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND [ARGUMENT]")]
        command: Vec<OsString>,
    },
}

/// The command line with the file's settings as defaults.
pub(super) struct Layered {
    pub(super) command: Command,
    /// Where a default comes from: by command and option.
    places: BTreeMap<(String, String), String>,
}

/// Puts the settings of the file that `args` or the environment name, or that is found, under the command line.
///
/// # Errors
/// When the file can't be read, has a key that no command knows, or a value that the command doesn't take.
pub(super) fn layer(command: Command, args: &[OsString]) -> Result<Layered, UsageError> {
    // What is wrong on the command line is said later; `--deterministic=false` isn't, if the file says true.
    let lenient = command.clone().ignore_errors(true).mut_subcommands(|command| command.mut_args(switch));
    let explicit = lenient.try_get_matches_from(args).ok();
    let named = explicit.as_ref().and_then(|matches| matches.try_get_one::<OsString>("config").ok().flatten());
    let file = ConfigFile::find(named.map(Path::new), |name| std::env::var_os(name)).map_err(UsageError)?;
    let unlayered = Layered { command, places: BTreeMap::new() };
    let Some(file) = file else { return Ok(unlayered) };
    let called = explicit.as_ref().and_then(ArgMatches::subcommand);
    apply(unlayered, &file, called)
}

fn apply(mut layered: Layered, file: &ConfigFile, called: Option<(&str, &ArgMatches)>) -> Result<Layered, UsageError> {
    let names: Vec<String> = layered.command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    // Those in tables come last, so that they win.
    let (general, of_commands): (Vec<_>, Vec<_>) = file.settings.iter().partition(|setting| setting.command.is_none());
    for setting in general.into_iter().chain(of_commands) {
        let mut is_known = false;
        for name in names.iter().filter(|name| setting.command.as_ref().is_none_or(|command| command == *name)) {
            let Some(id) = layered.command.find_subcommand(name).and_then(|command| option(command, &setting.key))
            else {
                continue;
            };
            is_known = true;
            let matches = called.filter(|(called, _)| called == name).map(|(_, matches)| matches);
            if matches.is_none() {
                // Another command is called: whether this one takes the value is its own concern.
                continue;
            }
            check(&layered.command, name, setting).map_err(|error| at(file, setting, &error))?;
            if !layered.command.find_subcommand(name).is_some_and(|command| is_overridden(command, &id, matches)) {
                layered.command = layered
                    .command
                    .mut_subcommand(name, |command| command.mut_arg(&id, |arg| with_default(arg, &setting.values)));
                layered.places.insert((name.clone(), id), file.place(setting));
            }
        }
        if !is_known {
            return Err(at(file, setting, &unknown(&layered.command, &names, setting)));
        }
    }
    Ok(layered)
}

fn at(file: &ConfigFile, setting: &Setting, error: &str) -> UsageError {
    UsageError(format!("{}: {error}", file.place(setting)))
}

/// The identifier of the option that a key means.
fn option(command: &Command, key: &str) -> Option<String> {
    let names = |arg: &Arg| arg.get_long_and_visible_aliases().is_some_and(|names| names.contains(&key));
    let arg = command.get_arguments().find(|arg| names(arg))?;
    (!NOT_SETTINGS.contains(&arg.get_id().as_str())).then(|| arg.get_id().to_string())
}

fn unknown(command: &Command, names: &[String], setting: &Setting) -> String {
    let key = &setting.key;
    if let Some(table) = setting.command.as_ref().filter(|table| !names.contains(table)) {
        let near = nearest(table, names.iter().map(String::as_str), 3);
        return format!("there is no command `{table}`{}", did_you_mean(&near));
    }
    let commands = command
        .get_subcommands()
        .filter(|command| setting.command.as_ref().is_none_or(|table| table == command.get_name()));
    let keys: Vec<String> = commands
        .flat_map(Command::get_arguments)
        .filter(|arg| !NOT_SETTINGS.contains(&arg.get_id().as_str()))
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    let near = nearest(key, keys.iter().map(String::as_str), 3);
    let whose = setting.command.as_ref().map_or("any command".to_owned(), |table| format!("`shimmy {table}`"));
    format!("`{key}` is no option of {whose}{}", did_you_mean(&near))
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

/// Whether the command takes the values, as if they had been typed.
fn check(command: &Command, name: &str, setting: &Setting) -> Result<(), String> {
    let flag = format!("--{}", setting.key);
    let is_switch = command.find_subcommand(name).is_some_and(|command| {
        option(command, &setting.key).is_some_and(|id| {
            command
                .get_arguments()
                .any(|arg| arg.get_id() == id.as_str() && matches!(arg.get_action(), ArgAction::SetTrue))
        })
    });
    if is_switch {
        let is_bool = matches!(setting.values.as_slice(), [value] if value == "true" || value == "false");
        return if is_bool { Ok(()) } else { Err(format!("`{}` must be true or false", setting.key)) };
    }
    let typed = setting.values.iter().map(|value| format!("{flag}={value}"));
    let args = ["shimmy".to_owned(), name.to_owned()].into_iter().chain(typed);
    match command.clone().try_get_matches_from(args) {
        Err(error) if is_about_a_value(error.kind()) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(first.strip_prefix("error: ").unwrap_or(first).to_owned())
        }
        _ => Ok(()),
    }
}

fn is_about_a_value(kind: ErrorKind) -> bool {
    // `ArgumentConflict`: an option that takes one value was given a list.
    matches!(
        kind,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::TooManyValues | ErrorKind::ArgumentConflict
    )
}

/// Whether something that was typed, or is in the environment, excludes this option.
fn is_overridden(command: &Command, id: &str, matches: Option<&ArgMatches>) -> bool {
    let Some(matches) = matches else { return false };
    let is_explicit =
        |id: &str| matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    let Some(own) = command.get_arguments().find(|arg| arg.get_id() == id) else { return false };
    command.get_arguments().filter(|arg| is_explicit(arg.get_id().as_str())).any(|arg| {
        command.get_arg_conflicts_with(arg).iter().any(|other| other.get_id() == own.get_id())
            || command.get_arg_conflicts_with(own).iter().any(|other| other.get_id() == arg.get_id())
    })
}

/// `--deterministic=false` takes back what the file says.
fn switch(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .value_parser(BoolishValueParser::new())
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
}

fn with_default(arg: Arg, values: &[String]) -> Arg {
    switch(arg).default_values(values.iter().map(|value| ClapStr::from(OsString::from(value))))
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub(super) fn run(args: Args, cli: Command, config: Option<OsString>) -> anyhow::Result<()> {
    let Action::Show { json, command } = args.action;
    let (name, rest) = match command.split_first() {
        Some((name, rest)) => (name.clone(), rest),
        None => ("serve".into(), &[][..]),
    };
    // What it is asked to do is of no concern here, only how.
    let cli = cli.mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
    let unlayered = cli.clone();
    let named = config.map(|path| [OsString::from("--config"), path]);
    let typed = [OsString::from("shimmy")].into_iter().chain(named.into_iter().flatten());
    let typed: Vec<OsString> = typed.chain([name]).chain(rest.iter().cloned()).collect();
    let layered = layer(cli, &typed)?;
    let matches = layered.command.clone().try_get_matches_from(&typed).map_err(|error| usage(error.to_string()))?;
    let Some((name, matches)) = matches.subcommand() else { return Err(usage("which command?")) };
    let Some(command) = layered.command.find_subcommand(name) else { return Err(usage("which command?")) };
    let order: Vec<String> = options(&unlayered, name);
    let mut rows: Vec<Row> = command.get_arguments().filter_map(|arg| Row::new(arg, matches, name, &layered)).collect();
    // Options with a new default have moved to the end.
    rows.sort_by_key(|row| order.iter().position(|key| *key == row.key));
    if json {
        let object: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
        return output::json(&object);
    }
    let head = ["OPTION", "VALUE", "SOURCE"].map(String::from).to_vec();
    let rows = rows.iter().map(|row| {
        vec![row.key.clone(), output::printable(row.value.as_deref().unwrap_or("-"), 60), row.source.clone()]
    });
    output::write(&output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[]))
}

/// The options of a command in the order of its help.
fn options(cli: &Command, name: &str) -> Vec<String> {
    let arguments = cli.find_subcommand(name).into_iter().flat_map(Command::get_arguments);
    arguments.filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

/// An option and what it is.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip)]
    key: String,
    value: Option<String>,
    source: String,
}

impl Row {
    fn new(arg: &Arg, matches: &ArgMatches, command: &str, layered: &Layered) -> Option<Self> {
        let (id, key) = (arg.get_id().as_str(), arg.get_long()?);
        if NOT_SETTINGS.contains(&id) {
            return None;
        }
        let place = layered.places.get(&(command.to_owned(), id.to_owned()));
        let source = match (matches.value_source(id), place) {
            (Some(ValueSource::CommandLine), _) => "command line".into(),
            (Some(ValueSource::EnvVariable), _) => {
                format!("environment: {}", arg.get_env().map(OsStr::to_string_lossy).unwrap_or_default())
            }
            (Some(ValueSource::DefaultValue), Some(place)) => place.clone(),
            (Some(_), _) => "default".into(),
            (None, _) => "not set".into(),
        };
        let values = matches.get_raw(id).map(|values| values.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(","));
        // What must not be seen in the environment must not be seen here.
        let value = values.map(|values| if arg.is_hide_env_values_set() { "(hidden)".into() } else { values });
        Some(Self { key: key.to_owned(), value, source })
    }
}
