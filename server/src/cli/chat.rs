//! `shimmy chat`: a conversation in the terminal. The whole conversation is rendered again each turn, with the
//! model's template; what the engine still has in its cache it doesn't compute again.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use shimmy_runtime::Error;
use shimmy_runtime::engine::{Event, GenerateRequest};
use shimmy_runtime::models::LoadedModel;
use shimmy_runtime::models::discover::cache_folder;

use super::args::{ExecArgs, KeepArgs, RootArgs, SamplingArgs, SpeculateArgs, find, load};
use super::failure::usage;
use super::interrupt::Interrupt;
use super::{Context, generate, output};
use crate::routes::request::report::Done;

const HELP: &str = "/help           this list\n\
                    /reset          forget the conversation\n\
                    /system TEXT    tell the model TEXT first, and forget the conversation; without TEXT: tell it nothing\n\
                    /exit           end (so does Ctrl-D)\n\
                    Ctrl-C stops an answer.\n";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder with safetensors, or a name that `shimmy list` shows.
    model: String,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
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
    let interrupt = Interrupt::install()?;
    let found = find(&args.model, &args.roots)?;
    let model = load(&found, &args.exec, &args.keep, &args.speculate, &args.roots)?;
    if model.template.is_none() {
        let message =
            format!("`{}` has no chat template; `shimmy generate --raw` completes a text with it", model.name);
        return Err(usage(message));
    }
    let mut input = Input::new()?;
    if input.is_interactive() {
        eprintln!("{}, context {} tokens. /help lists commands.", model.name, model.engine.context_tokens());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut conversation = Conversation { system: args.system, turns: Vec::new() };
    while let Some(line) = input.read()? {
        let line = line.trim();
        match parse(line) {
            Line::Empty => {}
            Line::Exit => break,
            Line::Help => eprint!("{HELP}"),
            Line::Reset => conversation.turns.clear(),
            Line::System(text) => {
                conversation.system = (!text.is_empty()).then(|| text.to_owned());
                conversation.turns.clear();
            }
            Line::Unknown(command) => eprintln!("there is no command {command}; /help lists them"),
            Line::Text(text) => {
                conversation.turns.push(json!({"role": "user", "content": text}));
                let answered = runtime.block_on(answer(&model, &conversation, &args.sampling, &interrupt));
                match answered {
                    Ok((text, done)) => {
                        conversation.turns.push(json!({"role": "assistant", "content": text}));
                        if let Some(done) = done.filter(|_| context.verbose > 0) {
                            eprintln!("{}", generate::summary(&model, &done));
                        }
                    }
                    Err(Failed::Turn(error)) => {
                        conversation.turns.pop();
                        eprintln!("error: {error}");
                        if matches!(error, Error::ContextLength { .. }) {
                            eprintln!("the conversation no longer fits; /reset starts a new one");
                        }
                    }
                    Err(Failed::Program(error)) => return Err(error),
                }
            }
        }
    }
    input.save();
    Ok(())
}

/// What was said so far.
struct Conversation {
    system: Option<String>,
    /// Messages of user and assistant in turn.
    turns: Vec<Value>,
}

impl Conversation {
    fn messages(&self) -> Value {
        let system = self.system.iter().map(|system| json!({"role": "system", "content": system}));
        system.chain(self.turns.iter().cloned()).collect()
    }
}

/// A line of input.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Empty,
    Help,
    Reset,
    System(&'a str),
    Exit,
    Unknown(&'a str),
    Text(&'a str),
}

/// A word after a slash is a command, unless it holds another slash (`/etc/passwd`).
fn parse(line: &str) -> Line<'_> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "" => Line::Empty,
        "/help" | "/?" => Line::Help,
        "/reset" => Line::Reset,
        "/system" => Line::System(rest.trim()),
        "/exit" | "/quit" | "/bye" => Line::Exit,
        _ if word.starts_with('/') && !word[1..].contains('/') && word.len() > 1 => Line::Unknown(word),
        _ => Line::Text(line),
    }
}

/// Why there is no answer.
enum Failed {
    /// The conversation can go on.
    Turn(Error),
    /// It can't.
    Program(anyhow::Error),
}

/// Streams one answer to stdout. Ctrl-C ends it early: then what was said so far counts, and there are no timings.
async fn answer(
    model: &LoadedModel,
    conversation: &Conversation,
    sampling: &SamplingArgs,
    interrupt: &Interrupt,
) -> Result<(String, Option<Done>), Failed> {
    let prompt = model.encode_chat(&conversation.messages(), &Map::new()).map_err(Failed::Turn)?;
    let request = GenerateRequest {
        max_tokens: sampling.max_tokens.map(Into::into),
        sampling: sampling.over(&model.defaults),
        stop: sampling.stop.clone(),
        ..GenerateRequest::new(prompt)
    };
    let listener = interrupt.listen();
    let mut generation = model.engine.submit(request).map_err(Failed::Turn)?;
    let mut whole = String::new();
    let end = loop {
        let event = tokio::select! {
            biased;
            () = listener.pressed() => break None,
            event = generation.recv() => event,
        };
        match event {
            Some(Event::Text { text, .. }) => {
                output::write(&text).map_err(Failed::Program)?;
                whole.push_str(&text);
            }
            Some(Event::Done { reason, usage, timings, seed }) => break Some(Done { reason, usage, timings, seed }),
            Some(Event::Failed(error @ Error::EngineStopped(_))) => return Err(Failed::Program(error.into())),
            Some(Event::Failed(error)) => return Err(Failed::Turn(error)),
            None => return Err(Failed::Program(anyhow::anyhow!("the engine stopped before the answer was complete"))),
        }
    };
    output::write("\n").map_err(Failed::Program)?;
    Ok((whole, end))
}

/// Lines from a terminal, with editing and history, or from a pipe.
enum Input {
    Terminal { editor: Box<rustyline::DefaultEditor>, history: Option<PathBuf> },
    Pipe,
}

impl Input {
    fn new() -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            return Ok(Self::Pipe);
        }
        let mut editor = Box::new(rustyline::DefaultEditor::new()?);
        let history = history_file();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor, history })
    }

    fn is_interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line; `None` at the end.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Pipe => {
                let mut line = Vec::new();
                if std::io::stdin().lock().read_until(b'\n', &mut line)? == 0 {
                    return Ok(None);
                }
                Ok(Some(String::from_utf8(line).map_err(|_| usage("stdin is not UTF-8"))?))
            }
            Self::Terminal { editor, .. } => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        if !line.trim().is_empty() {
                            // A full or read-only history is no reason to stop talking.
                            let _ = editor.add_history_entry(line.as_str());
                        }
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => eprintln!("/exit or Ctrl-D ends"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }

    fn save(&mut self) {
        if let Self::Terminal { editor, history: Some(path) } = self {
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(anyhow::Error::from);
            if let Err(error) = saved.and_then(|()| Ok(editor.save_history(path)?)) {
                tracing::warn!("the history could not be saved to {}: {error}", path.display());
            }
        }
    }
}

/// In the cache folder.
fn history_file() -> Option<PathBuf> {
    Some(cache_folder(|name| std::env::var_os(name))?.join("chat-history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_text() {
        assert_eq!(parse(""), Line::Empty);
        assert_eq!(parse("/reset"), Line::Reset);
        assert_eq!(parse("/system  be brief "), Line::System("be brief"));
        assert_eq!(parse("/system"), Line::System(""));
        assert_eq!(parse("/rest"), Line::Unknown("/rest"));
        assert_eq!(parse("/etc/passwd is a file"), Line::Text("/etc/passwd is a file"));
        assert_eq!(parse("/ is the root"), Line::Text("/ is the root"));
        assert_eq!(parse("what is /help"), Line::Text("what is /help"));
    }

    #[test]
    fn the_system_message_comes_first() {
        let conversation =
            Conversation { system: Some("s".into()), turns: vec![json!({"role": "user", "content": "u"})] };
        assert_eq!(conversation.messages()[0]["role"], "system");
        assert_eq!(conversation.messages()[1]["content"], "u");
    }
}
