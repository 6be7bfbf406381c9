//! Text in and out of a model: tokenizers, incremental detokenising, stop strings, chat templates.
//!
//! [`tokenizer`]: the one interface. Behind it, from GGUF metadata (`gguf`): byte-level BPE (`bpe`, cut into pieces by
//! `pretokenizer`) and SentencePiece-style (`spm`), both on the merge algorithm in `merge`, the tokens in `vocab` and
//! the special tokens in `special`; from `tokenizer.json`: `hf`. [`template`]: chat templates, with Python's habits in
//! `python`. [`detok`] and [`stop`]: tokens back to text as they arrive.

mod bpe;
pub mod detok;
mod gguf;
mod hf;
mod merge;
mod pretokenizer;
mod python;
mod special;
mod spm;
pub mod stop;
pub mod template;
pub mod tokenizer;
mod unicode;
mod vocab;

pub use detok::Detokenizer;
pub use stop::StopMatcher;
pub use template::{ChatTemplate, GenerationPrompt};
pub use tokenizer::{AddSpecial, ParseSpecial, Tokenizer};
