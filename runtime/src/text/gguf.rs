//! Tokenizers in the metadata of GGUF files: reads the `tokenizer.ggml.*` keys and wraps the vocabulary that they
//! describe in the handling of special tokens.

use std::borrow::Cow;

use super::bpe::Bpe;
use super::merge::Scratch;
use super::pretokenizer::PreTokenizer;
use super::special::{Part, SpecialTokens};
use super::spm::{SPACE, Spm};
use super::tokenizer::SpecialIds;
use super::vocab::TokenKind;
use super::{AddSpecial, ParseSpecial};
use crate::error::{Error, Result};
use crate::loader::GgufMetadata;

/// A vocabulary from a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufTokenizer {
    model: Model,
    special: SpecialTokens,
    /// `[num_tokens]`.
    kinds: Vec<TokenKind>,
    add_bos: bool,
    add_eos: bool,
    /// SentencePiece's dummy prefix: a space before a text and after each special token.
    add_space_prefix: bool,
}

#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

/// The keys of `tokenizer.ggml.*` that are read.
#[derive(Debug, Default)]
struct Keys<'a> {
    model: &'a str,
    pre: Option<&'a str>,
    texts: Vec<&'a [u8]>,
    kinds: Option<Vec<i64>>,
    scores: Option<Vec<f32>>,
    merges: Option<Vec<&'a [u8]>>,
    bos: Option<usize>,
    eos: Option<usize>,
    unknown: Option<usize>,
    /// End of turn and end of message.
    ends: [Option<usize>; 2],
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    add_space_prefix: Option<bool>,
    /// `general.name`.
    name: Option<&'a str>,
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl GgufTokenizer {
    /// Reads the keys and builds the vocabulary.
    ///
    /// # Errors
    /// As [`super::Tokenizer::from_gguf`].
    pub(crate) fn from_metadata(metadata: &GgufMetadata) -> Result<(Self, SpecialIds)> {
        let missing = |name| Error::MissingMetadata { key: key(name) };
        let model = metadata.str("tokenizer.ggml.model")?.ok_or_else(|| missing("model"))?;
        // The kind first: a vocabulary that isn't supported may lack any other key.
        if !matches!(model, "gpt2" | "llama") {
            return Err(unsupported(model));
        }
        let texts = metadata.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
        let merges = if model == "gpt2" { metadata.strings("tokenizer.ggml.merges")? } else { None };
        let keys = Keys {
            model,
            pre: metadata.str("tokenizer.ggml.pre")?,
            texts: texts.iter().collect(),
            kinds: metadata.i64s("tokenizer.ggml.token_type")?,
            scores: if model == "llama" { metadata.f32s("tokenizer.ggml.scores")? } else { None },
            merges: merges.as_ref().map(|merges| merges.iter().collect()),
            bos: metadata.usize("tokenizer.ggml.bos_token_id")?,
            eos: metadata.usize("tokenizer.ggml.eos_token_id")?,
            unknown: metadata.usize("tokenizer.ggml.unknown_token_id")?,
            ends: [metadata.usize("tokenizer.ggml.eot_token_id")?, metadata.usize("tokenizer.ggml.eom_token_id")?],
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            name: metadata.str("general.name")?,
        };
        Self::build(keys)
    }

    fn build(keys: Keys<'_>) -> Result<(Self, SpecialIds)> {
        let num_tokens = keys.texts.len();
        if num_tokens == 0 {
            return Err(bad("tokens", "at least one token", "an empty list"));
        }
        if u32::try_from(num_tokens).is_err() {
            return Err(bad("tokens", "fewer than 2^32 tokens", num_tokens));
        }
        let kinds: Vec<TokenKind> = match &keys.kinds {
            Some(kinds) if kinds.len() != num_tokens => {
                return Err(bad("token_type", format_args!("one type for each of {num_tokens} tokens"), kinds.len()));
            }
            Some(kinds) => kinds.iter().map(|&kind| TokenKind::from_gguf(kind)).collect(),
            None => vec![TokenKind::Normal; num_tokens],
        };
        let id = |name: &str, value: Option<usize>| match value {
            Some(id) if id >= num_tokens => {
                Err(bad(name, format_args!("an id below {num_tokens}, the number of tokens"), id))
            }
            id => Ok(id.map(|id| id as u32)),
        };
        let mut ids =
            SpecialIds { bos: id("bos_token_id", keys.bos)?, eos: id("eos_token_id", keys.eos)?, ends: Vec::new() };
        let [eot, eom] = keys.ends;
        ids.ends.extend(id("eot_token_id", eot)?);
        ids.ends.extend(id("eom_token_id", eom)?);
        let mut unknown = id("unknown_token_id", keys.unknown)?;
        let texts = keys.texts.iter().copied();
        let (model, add_bos, add_space_prefix) = match keys.model {
            "gpt2" => {
                let pre = PreTokenizer::named(keys.pre)?;
                let add_bos = pre.add_bos;
                let merges = keys.merges.ok_or_else(|| Error::MissingMetadata { key: key("merges") })?;
                let bpe = Bpe::new(pre, texts, kinds.clone(), merges.into_iter(), unknown)?;
                (Model::Bpe(bpe), add_bos, false)
            }
            "llama" => {
                // SentencePiece's own defaults, which old files leave out.
                let default = |id: u32, kind| kinds.get(id as usize).filter(|is| **is == kind).map(|_| id);
                unknown = unknown.or_else(|| default(0, TokenKind::Unknown));
                ids.bos = ids.bos.or_else(|| default(1, TokenKind::Control));
                ids.eos = ids.eos.or_else(|| default(2, TokenKind::Control));
                let scores = keys.scores.ok_or_else(|| Error::MissingMetadata { key: key("scores") })?;
                if scores.len() != num_tokens {
                    return Err(bad("scores", format_args!("one score for each of {num_tokens} tokens"), scores.len()));
                }
                (Model::Spm(Spm::new(texts, &kinds, &scores, unknown)?), true, keys.add_space_prefix.unwrap_or(true))
            }
            other => return Err(unsupported(other)),
        };
        if keys.add_bos == Some(true) && ids.bos.is_none() {
            return Err(Error::MissingMetadata { key: key("bos_token_id") });
        }
        if keys.add_eos == Some(true) && ids.eos.is_none() {
            return Err(Error::MissingMetadata { key: key("eos_token_id") });
        }
        let is_special =
            |kind: &TokenKind| matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
        let special: Vec<_> = (0..).zip(&kinds).zip(&keys.texts).filter(|((_, kind), _)| is_special(kind)).collect();
        let special = SpecialTokens::new(special.into_iter().map(|((id, kind), text)| (id, *kind, *text)))?;
        // GGUF doesn't record which tokens swallow white space; of the published models that do, Phi-3 is told by name.
        let is_phi3 =
            keys.name.map(str::to_lowercase).is_some_and(|name| name.contains("phi-3") || name.contains("phi3"));
        let special = if is_phi3 { special.stripping_right(&["<unk>", "<s>", "<|endoftext|>"]) } else { special };
        let tokenizer = Self {
            model,
            special,
            kinds,
            add_bos: keys.add_bos.unwrap_or(add_bos),
            add_eos: keys.add_eos.unwrap_or(false),
            add_space_prefix,
        };
        Ok((tokenizer, ids))
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary has no tokens for a part of the text.
    pub(crate) fn encode(
        &self,
        text: &str,
        add_special: AddSpecial,
        parse_special: ParseSpecial,
        special: &SpecialIds,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        let add = |wanted: bool, id: Option<u32>| id.filter(|_| wanted && add_special == AddSpecial::Yes);
        ids.extend(add(self.add_bos, special.bos));
        let mut scratch = Scratch::default();
        let mut escaped = String::new();
        let mut prefix = self.add_space_prefix;
        self.special.split(text, parse_special, |part| match (part, &self.model) {
            (Part::Token(id), _) => {
                ids.push(id);
                prefix = self.add_space_prefix;
                Ok(())
            }
            (Part::Text(text), Model::Bpe(bpe)) => bpe.encode(text, &mut scratch, &mut ids),
            (Part::Text(text), Model::Spm(spm)) => {
                escaped.clear();
                if std::mem::take(&mut prefix) {
                    escaped.push_str(SPACE);
                }
                for (at, word) in text.split(' ').enumerate() {
                    if at > 0 {
                        escaped.push_str(SPACE);
                    }
                    escaped.push_str(word);
                }
                spm.encode(&escaped, &mut scratch, &mut ids)
            }
        })?;
        ids.extend(add(self.add_eos, special.eos));
        Ok(ids)
    }

    /// The bytes that token `id` stands for in a text.
    pub(crate) fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        match (self.kinds.get(id as usize), &self.model) {
            (None | Some(TokenKind::Control | TokenKind::Unknown), _) => Cow::Borrowed(&[]),
            (_, Model::Bpe(bpe)) => Cow::Borrowed(bpe.bytes(id)),
            (_, Model::Spm(spm)) => match spm.byte(id) {
                Some(byte) => Cow::Owned(vec![byte]),
                None => unescape(spm.text(id)),
            },
        }
    }

    /// The token as the file writes it.
    pub(crate) fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        self.kinds.get(id as usize)?;
        Some(match &self.model {
            Model::Bpe(bpe) => Cow::Owned(bpe.text(id)),
            Model::Spm(spm) => String::from_utf8_lossy(spm.text(id)),
        })
    }

    /// The token that the file writes as `text`.
    pub(crate) fn token_id(&self, text: &str) -> Option<u32> {
        self.special_id(text).or_else(|| match &self.model {
            Model::Bpe(bpe) => bpe.id(text),
            Model::Spm(spm) => spm.id(text),
        })
    }

    /// The control, unknown or user-defined token `text`.
    pub(crate) fn special_id(&self, text: &str) -> Option<u32> {
        self.special.id(text.as_bytes())
    }

    /// Whether `id` is a control token.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&TokenKind::Control)
    }

    /// Number of tokens.
    pub(crate) fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// Whether a text is encoded with a space before it.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }
}

/// ▁ to space.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    let space = SPACE.as_bytes();
    if !text.windows(space.len()).any(|window| window == space) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(space) {
            out.push(b' ');
            rest = after;
        } else {
            out.push(byte);
            rest = &rest[1..];
        }
    }
    Cow::Owned(out)
}

fn unsupported(model: &str) -> Error {
    Error::Unsupported(format!(
        "tokenizer model `{}` (`tokenizer.ggml.model`); this build reads `gpt2` and `llama`, and any `tokenizer.json` \
         beside safetensors",
        model.escape_debug()
    ))
}

fn bad(name: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
    Error::BadMetadata { key: key(name), expected: expected.to_string(), got: got.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::super::bpe::byte_char;
    use super::*;

    fn bpe_keys(texts: &[String], num_control: usize) -> Keys<'_> {
        let mut kinds = vec![1; texts.len()];
        let start = texts.len() - num_control;
        kinds[start..].fill(3);
        Keys {
            model: "gpt2",
            texts: texts.iter().map(String::as_bytes).collect(),
            kinds: Some(kinds),
            merges: Some(vec!["t h".as_bytes(), "th e".as_bytes(), "Ġ the".as_bytes(), "Ã ©".as_bytes()]),
            bos: Some(start),
            eos: Some(start + 1),
            pre: Some("gpt-2"),
            ..Keys::default()
        }
    }

    fn bpe_texts() -> Vec<String> {
        let bytes = (0..=255).map(|byte| byte_char(byte).to_string());
        bytes.chain(["th", "the", "Ġthe", "Ã©", "<s>", "</s>"].map(String::from)).collect()
    }

    fn spm_texts() -> Vec<String> {
        let specials = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        specials.chain(bytes).chain(["▁", "t", "h", "e", "th", "the", "▁the", "▁▁", "é"].map(String::from)).collect()
    }

    fn spm_keys(texts: &[String]) -> Keys<'_> {
        let kind = |id: usize| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        Keys {
            model: "llama",
            texts: texts.iter().map(String::as_bytes).collect(),
            kinds: Some((0..texts.len()).map(kind).collect()),
            scores: Some((0..texts.len()).map(|id| -(id as f32)).collect()),
            ..Keys::default()
        }
    }

    fn error(keys: Keys<'_>) -> String {
        GgufTokenizer::build(keys).unwrap_err().to_string()
    }

    #[test]
    fn hostile_keys_are_errors_that_name_them() {
        let texts = bpe_texts();
        let good = || bpe_keys(&texts, 2);
        GgufTokenizer::build(good()).unwrap();
        assert!(error(Keys { merges: None, ..good() }).contains("tokenizer.ggml.merges"));
        assert!(error(Keys { kinds: Some(vec![1; 3]), ..good() }).contains("token_type"));
        assert!(error(Keys { bos: Some(1 << 40), ..good() }).contains("bos_token_id"));
        assert!(error(Keys { ends: [Some(texts.len()), None], ..good() }).contains("eot_token_id"));
        assert!(error(Keys { texts: Vec::new(), kinds: None, ..good() }).contains("tokens"));
        assert!(error(Keys { bos: None, add_bos: Some(true), ..good() }).contains("bos_token_id"));
        assert!(error(Keys { model: "rwkv", ..good() }).contains("`rwkv`"));
        assert!(error(Keys { pre: Some("nobody"), ..good() }).contains("`nobody`"));
        let texts = spm_texts();
        assert!(error(Keys { scores: None, ..spm_keys(&texts) }).contains("tokenizer.ggml.scores"));
        assert!(error(Keys { scores: Some(vec![0.0; 2]), ..spm_keys(&texts) }).contains("one score"));
    }

    #[test]
    fn special_tokens_surround_a_text_only_when_asked() {
        let texts = bpe_texts();
        let (tokenizer, ids) =
            GgufTokenizer::build(Keys { add_bos: Some(true), add_eos: Some(true), ..bpe_keys(&texts, 2) }).unwrap();
        let encode = |text, add, parse| tokenizer.encode(text, add, parse, &ids).unwrap();
        assert_eq!(encode("the</s>", AddSpecial::Yes, ParseSpecial::Yes), [260, 257, 261, 261]);
        assert_eq!(encode(" the", AddSpecial::No, ParseSpecial::No), [258]);
        assert_eq!(encode("</s>", AddSpecial::No, ParseSpecial::No).len(), 4);
        assert!(tokenizer.token_bytes(261).is_empty() && tokenizer.is_control(261));
        assert_eq!(tokenizer.token_text(261).as_deref(), Some("</s>"));
        assert_eq!(tokenizer.token_text(258).as_deref(), Some("Ġthe"));
        assert_eq!((tokenizer.token_id("Ġthe"), tokenizer.token_id("<s>")), (Some(258), Some(260)));
        assert_eq!(tokenizer.token_text(262), None);
    }

    #[test]
    fn spm_puts_a_space_before_text_and_behind_special_tokens() {
        let texts = spm_texts();
        let (tokenizer, ids) = GgufTokenizer::build(spm_keys(&texts)).unwrap();
        let the = tokenizer.token_id("▁the").unwrap();
        assert_eq!((ids.bos, ids.eos), (Some(1), Some(2)));
        let encode = |text, add| tokenizer.encode(text, add, ParseSpecial::Yes, &ids).unwrap();
        assert_eq!(encode("the", AddSpecial::Yes), [1, the]);
        assert_eq!(encode("the</s>the the", AddSpecial::No), [the, 2, the, the]);
        assert!(encode("", AddSpecial::No).is_empty());
        assert_eq!(&*tokenizer.token_bytes(the), b" the");
        assert_eq!(&*tokenizer.token_bytes(3 + 0xC3), [0xC3]);
        let (plain, ids) = GgufTokenizer::build(Keys { add_space_prefix: Some(false), ..spm_keys(&texts) }).unwrap();
        let bare = plain.token_id("the").unwrap();
        assert_eq!(plain.encode("the", AddSpecial::No, ParseSpecial::No, &ids).unwrap(), [bare]);
    }

    type Built = (GgufTokenizer, SpecialIds);

    fn every_pre() -> &'static [(&'static str, Built)] {
        static BUILT: OnceLock<Vec<(&str, Built)>> = OnceLock::new();
        BUILT.get_or_init(|| {
            let texts = bpe_texts();
            let build = |pre| GgufTokenizer::build(Keys { pre: Some(pre), ..bpe_keys(&texts, 2) }).unwrap();
            ["gpt-2", "llama-bpe", "smollm", "default", "deepseek-llm", "gpt-4o"].map(|pre| (pre, build(pre))).into()
        })
    }

    fn spm() -> &'static Built {
        static BUILT: OnceLock<Built> = OnceLock::new();
        BUILT.get_or_init(|| GgufTokenizer::build(spm_keys(&spm_texts())).unwrap())
    }

    proptest! {
        #[test]
        fn bytes_of_the_tokens_are_the_text(text in ".{0,40}") {
            for (pre, (tokenizer, ids)) in every_pre() {
                let tokens = tokenizer.encode(&text, AddSpecial::No, ParseSpecial::No, ids).unwrap();
                let bytes: Vec<u8> = tokens.iter().flat_map(|&id| tokenizer.token_bytes(id).into_owned()).collect();
                prop_assert_eq!(String::from_utf8_lossy(&bytes), &*text, "{}", pre);
            }
        }

        #[test]
        fn bytes_of_spm_tokens_are_the_text_behind_a_space(text in "[ -~é▁🙂]{1,40}") {
            let (tokenizer, ids) = spm();
            let tokens = tokenizer.encode(&text, AddSpecial::No, ParseSpecial::No, ids).unwrap();
            let bytes: Vec<u8> = tokens.iter().flat_map(|&id| tokenizer.token_bytes(id).into_owned()).collect();
            // ▁ in a text reads as a space, as in SentencePiece itself.
            prop_assert_eq!(String::from_utf8_lossy(&bytes), format!(" {}", text.replace('▁', " ")));
        }
    }
}
