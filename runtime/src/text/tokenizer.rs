//! One interface to every tokenizer: text to token ids and ids back to the bytes that they stand for.

use std::borrow::Cow;
use std::path::Path;

use super::gguf::GgufTokenizer;
use super::hf::HfTokenizer;
use crate::engine::Vocabulary;
use crate::error::{Error, Result};
use crate::loader::{GgufMetadata, HfMetadata, Metadata, ModelFile};

/// Whether a text gets the tokens that the model wants around every input (BOS in front, for some EOS behind).
///
/// A rendered chat template writes them itself: encode it with [`AddSpecial::No`] and [`ParseSpecial::Yes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// Add them.
    Yes,
    /// The text alone.
    No,
}

/// Whether control tokens that are spelled out in a text become those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseSpecial {
    /// `<|im_end|>` in the text is the token: for rendered chat templates.
    Yes,
    /// `<|im_end|>` in the text is ten ordinary characters: for text from outside.
    No,
}

/// Texts that end an answer wherever a vocabulary has them as control tokens: the ends of turns, messages and texts of
/// the published model families. Files often name one of several.
const END_MARKERS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
    "<\u{FF5C}end\u{2581}of\u{2581}sentence\u{FF5C}>",
    "[e~[",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// A model's tokenizer. It is immutable and can be shared by threads.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    ids: SpecialIds,
}

#[derive(Debug)]
enum Model {
    Gguf(Box<GgufTokenizer>),
    Hf(Box<HfTokenizer>),
}

/// What a file says of single tokens.
#[derive(Debug, Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// Other ids that the file says end an answer.
    pub(crate) ends: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer of a model: from the metadata of a GGUF file, or `tokenizer.json` in a Hugging Face folder.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`] and [`Tokenizer::from_json`].
    pub fn for_model(file: &ModelFile) -> Result<Self> {
        match &file.metadata {
            Metadata::Gguf(metadata) => Self::from_gguf(metadata),
            Metadata::Hf(metadata) => Self::from_json(&metadata.folder.join("tokenizer.json"), metadata),
        }
    }

    /// The tokenizer in the metadata of a GGUF file: `gpt2` (byte-level BPE) or `llama` (SentencePiece-style).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another kind of tokenizer or an unknown pre-tokenizer, [`Error::MissingMetadata`] and
    /// [`Error::BadMetadata`] for keys, [`Error::Tokenizer`] for a vocabulary that contradicts itself.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self> {
        let (model, ids) = GgufTokenizer::from_metadata(metadata)?;
        Ok(Self::new(Model::Gguf(Box::new(model)), ids))
    }

    /// The tokenizer in a `tokenizer.json`, with the beginning and the ends of texts as its companions name them.
    ///
    /// # Errors
    /// [`Error::Io`] when the file can't be read, [`Error::Tokenizer`] when it isn't a tokenizer.
    pub fn from_json(path: &Path, metadata: &HfMetadata) -> Result<Self> {
        let (model, ids) = HfTokenizer::open(path, metadata)?;
        Ok(Self::new(Model::Hf(Box::new(model)), ids))
    }

    fn new(model: Model, mut ids: SpecialIds) -> Self {
        let mut tokenizer = Self { model, ids: SpecialIds::default() };
        let mut ends: Vec<u32> = std::mem::take(&mut ids.ends);
        ends.extend(ids.eos);
        ends.extend(END_MARKERS.iter().filter_map(|text| tokenizer.special_id(text)));
        // Harmony's and Solar's <|end|> closes a message, not the answer; Gemma 4 has </s> as ordinary text.
        let has = |ends: &[u32], text: &str| tokenizer.special_id(text).is_some_and(|id| ends.contains(&id));
        let messages = (has(&ends, "<|return|>") && has(&ends, "<|call|>"))
            || (has(&ends, "<|flush|>") && (has(&ends, "<|call|>") || has(&ends, "<|calls|>")));
        let not_ends = [
            messages.then(|| tokenizer.special_id("<|end|>")).flatten(),
            has(&ends, "<|tool_response>").then(|| tokenizer.special_id("</s>")).flatten(),
        ];
        ends.retain(|id| !not_ends.contains(&Some(*id)) || ids.eos == Some(*id));
        ends.sort_unstable();
        ends.dedup();
        ids.ends = ends;
        tokenizer.ids = ids;
        tokenizer
    }

    /// The token ids of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary has no tokens for a part of the text.
    pub fn encode(&self, text: &str, add_special: AddSpecial, parse_special: ParseSpecial) -> Result<Vec<u32>> {
        if text.len() >= u32::MAX as usize {
            return Err(Error::Tokenizer(format!("a text of {} bytes is too long", text.len())));
        }
        match &self.model {
            Model::Gguf(model) => model.encode(text, add_special, parse_special, &self.ids),
            Model::Hf(model) => model.encode(text, add_special, parse_special),
        }
    }

    /// The bytes that token `id` stands for in a text: part of a character possibly, nothing for a control token or an
    /// id that the vocabulary doesn't have.
    pub fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        match &self.model {
            Model::Gguf(model) => model.token_bytes(id),
            Model::Hf(model) => Cow::Borrowed(model.token_bytes(id)),
        }
    }

    /// The token as the vocabulary writes it, such as `<|im_end|>`, `Ġthe` or `▁the`; `None` beyond the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        match &self.model {
            Model::Gguf(model) => model.token_text(id),
            Model::Hf(model) => model.token_text(id).map(Cow::Owned),
        }
    }

    /// The id of the token that the vocabulary writes as `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match &self.model {
            Model::Gguf(model) => model.token_id(text),
            Model::Hf(model) => model.token_id(text),
        }
    }

    /// Whether `id` is structure (such as the end of a turn) rather than text.
    pub fn is_control(&self, id: u32) -> bool {
        match &self.model {
            Model::Gguf(model) => model.is_control(id),
            Model::Hf(model) => model.is_control(id),
        }
    }

    /// The id of the control or user-defined token `text`.
    fn special_id(&self, text: &str) -> Option<u32> {
        match &self.model {
            Model::Gguf(model) => model.special_id(text),
            Model::Hf(model) => model.token_id(text).filter(|&id| model.is_control(id)),
        }
    }

    /// The tokens that end an answer, in ascending order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.ids.ends
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        match &self.model {
            Model::Gguf(model) => model.vocab_size(),
            Model::Hf(model) => model.vocab_size(),
        }
    }

    /// The text of `ids`, without control tokens. Bytes that are no UTF-8 become U+FFFD, and the space that
    /// [`Tokenizer::encode`] puts before a text, in vocabularies that want one, is taken away again.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_as(ids, |_| None)
    }

    /// [`decode`](Self::decode) with control tokens as the vocabulary writes them: what [`Tokenizer::encode`] with
    /// [`ParseSpecial::Yes`] takes apart again.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decode_as(ids, |id| self.token_text(id).filter(|_| self.is_control(id)))
    }

    /// `written` gives the text of tokens that aren't to be decoded.
    fn decode_as<'a>(&'a self, ids: &[u32], written: impl Fn(u32) -> Option<Cow<'a, str>>) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match written(id) {
                Some(text) => bytes.extend_from_slice(text.as_bytes()),
                None => bytes.extend_from_slice(&self.token_bytes(id)),
            }
        }
        let prefixed = match &self.model {
            Model::Gguf(model) => model.adds_space_prefix(),
            Model::Hf(model) => model.adds_space_prefix(),
        };
        let text = if prefixed { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(text).into_owned()
    }
}

impl Vocabulary for Tokenizer {
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        self.token_bytes(id)
    }

    fn end_of_generation(&self) -> &[u32] {
        self.end_of_generation()
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_can_be_shared() {
        fn shared<T: Send + Sync>() {}
        shared::<Tokenizer>();
    }
}
