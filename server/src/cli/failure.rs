//! How a command ends when it fails: one message, one exit code, never a backtrace.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use shimmy_runtime::Error;

/// Exit code of wrong usage and of unusable files.
pub(super) const USAGE: u8 = 2;
/// Exit code of a failure at run time.
const FAILED: u8 = 1;
/// Exit code after Ctrl-C (128 + SIGINT).
pub(super) const INTERRUPTED: u8 = 130;

/// Arguments that parse but make no sense together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(pub String);

/// An [`UsageError`] for `?` and `bail`.
pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Prints the error and gives the exit code.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    // `shimmy list | head` closes our stdout: that is no failure.
    if error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
    {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    if let Some(hint) = runtime_error(error).and_then(hint) {
        eprintln!("{hint}");
    }
    ExitCode::from(code(error))
}

fn runtime_error(error: &anyhow::Error) -> Option<&Error> {
    error.chain().find_map(|cause| {
        cause.downcast_ref::<Error>().or_else(|| cause.downcast_ref::<Arc<Error>>().map(|shared| &**shared))
    })
}

/// What to do next, where the message doesn't say it.
fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::ModelNotFound { .. } => {
            Some("`shimmy list` shows the models of this machine; a path to a file works too")
        }
        Error::OutOfMemory(_) => Some("a smaller context (--ctx) or a smaller model needs less"),
        _ => None,
    }
}

fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        return USAGE;
    }
    match runtime_error(error) {
        Some(
            Error::Io { .. }
            | Error::Format { .. }
            | Error::Unsupported(_)
            | Error::MissingMetadata { .. }
            | Error::BadMetadata { .. }
            | Error::MissingTensor { .. }
            | Error::TensorShape { .. }
            | Error::Tokenizer(_)
            | Error::Template(_)
            | Error::ModelNotFound { .. }
            | Error::ContextLength { .. }
            | Error::InvalidRequest { .. },
        ) => USAGE,
        Some(
            Error::Overloaded { .. }
            | Error::DeadlineExceeded { .. }
            | Error::BadLogits(_)
            | Error::BadEmbedding(_)
            | Error::SlowReader(_)
            | Error::OutOfMemory(_)
            | Error::EngineStopped(_)
            | Error::Candle(_)
            | Error::Kernel(_),
        )
        | None => FAILED,
    }
}

/// A panic is a bug: one line that says where, and how to report it.
pub(super) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        let payload = info.payload();
        let what =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|s| s.as_str()));
        eprintln!(
            "shimmy {}: internal error{place}: {}. This is a bug: please report this line and the command you ran.",
            env!("CARGO_PKG_VERSION"),
            what.unwrap_or("unknown").replace('\n', " ")
        );
    }));
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn exit_codes_tell_files_from_failures() {
        let missing = Error::MissingTensor { name: "x".into() };
        assert_eq!(code(&missing.into()), 2);
        assert_eq!(code(&anyhow::Error::from(Arc::new(Error::Unsupported("x".into())))), 2);
        assert_eq!(code(&usage("x")), 2);
        assert_eq!(code(&anyhow::Error::from(Error::EngineStopped("x".into()))), 1);
        assert_eq!(code(&anyhow::anyhow!("x")), 1);
        let wrapped = Err::<(), _>(Error::Template("x".into())).context("while").unwrap_err();
        assert_eq!(code(&wrapped), 2);
    }
}
