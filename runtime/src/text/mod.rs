//! Text in and out of a model: tokenizers, incremental detokenising, stop strings, chat templates.

pub mod detok;
pub mod stop;

pub use detok::Detokenizer;
pub use stop::StopMatcher;
