//! The one error type of this crate.

use std::path::PathBuf;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a model file and a token. Messages say what was found and, where there is something
/// to do about it, what to do next.
///
/// Not `non_exhaustive`: the service maps every variant to a status, and a new one must not compile until it does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to open, read or map a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its format demands: truncated, damaged or hostile.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the name of the key or tensor and the numbers.
        what: String,
    },
    /// A sound file asks for something that this build can't compute.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A metadata key that the architecture needs is not in the file.
    #[error("metadata key `{key}` is missing")]
    MissingMetadata {
        /// The full key.
        key: String,
    },
    /// A metadata key has another type or an impossible value.
    #[error("metadata key `{key}`: expected {expected}, got {got}")]
    BadMetadata {
        /// The full key.
        key: String,
        /// What would be right.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// The tensor's name in the file.
        name: String,
    },
    /// A tensor's shape doesn't follow from the metadata.
    #[error("tensor `{name}`: expected shape {expected:?}, got {got:?}")]
    TensorShape {
        /// The tensor's name in the file.
        name: String,
        /// Row-major, outermost axis first.
        expected: Vec<usize>,
        /// Row-major, outermost axis first.
        got: Vec<usize>,
    },
    /// The vocabulary or `tokenizer.json` can't be used, or a text can't be encoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is broken or refused the messages.
    #[error("chat template: {0}")]
    Template(String),
    /// No model is called so.
    #[error("there is no model `{name}`{}", suggestions(nearest))]
    ModelNotFound {
        /// What was asked for.
        name: String,
        /// Names most like it, best first.
        nearest: Vec<String>,
    },
    /// Prompt and answer together don't fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens and asks for {max_tokens} more, but the context holds {context_tokens}"
    )]
    ContextLength {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens the context holds.
        context_tokens: usize,
    },
    /// A request's field has a value that makes no sense.
    #[error("`{param}`: {message}")]
    InvalidRequest {
        /// The field's name on the wire.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// As many requests wait as are allowed.
    #[error("too many requests are waiting; try again in {retry_after_ms} ms")]
    Overloaded {
        /// When one of them will likely have been started.
        retry_after_ms: u64,
    },
    /// The model computed a row from which no token can be chosen.
    #[error("the model computed no usable logits: {0}")]
    BadLogits(String),
    /// The client doesn't read its events.
    #[error("the generation was cancelled: its client left {0} events unread")]
    SlowReader(usize),
    /// More memory is needed than is allowed or free.
    #[error("not enough memory: {0}")]
    OutOfMemory(String),
    /// The engine's thread is gone or a step failed; the model must be loaded again.
    #[error("the engine stopped: {0}")]
    EngineStopped(String),
    /// candle refused an operation.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] shimmy_kernels::Error),
}

fn suggestions(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
}
