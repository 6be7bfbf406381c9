//! `tokenizer.json` through Hugging Face's own crate, and the special tokens that its companions name.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::Tokenizer as Json;

use super::bpe::Alphabet;
use super::spm::parse_byte;
use super::tokenizer::SpecialIds;
use super::vocab::Arena;
use super::{AddSpecial, ParseSpecial};
use crate::error::{Error, Result};
use crate::loader::HfMetadata;

/// A `tokenizer.json`.
#[derive(Debug)]
pub(crate) struct HfTokenizer {
    tokenizer: Json,
    /// The same, blind to special tokens in a text. Made when first needed, because it is as large.
    blind: OnceLock<Json>,
    /// The bytes of each token, by id.
    bytes: Arena,
    /// Special tokens in ascending order.
    control: Vec<u32>,
    space_prefix: bool,
}

/// How a decoder writes tokens, as far as single tokens show it.
#[derive(Debug, Default)]
struct Spelling {
    /// GPT-2's alphabet of bytes.
    byte_level: bool,
    /// `<0xXX>` are bytes.
    byte_fallback: bool,
    /// Texts replaced in each token, in order.
    replacements: Vec<(String, String)>,
    /// WordPiece's mark of a word's later parts.
    continuation: Option<String>,
    /// The space before the first word goes.
    strips_first: bool,
}

impl Spelling {
    /// Reads a decoder's JSON form; parts that say nothing about single tokens are passed over.
    fn read(&mut self, decoder: &Value) {
        let text = |key: &str| decoder[key].as_str().unwrap_or_default().to_owned();
        match decoder["type"].as_str().unwrap_or_default() {
            "Sequence" => decoder["decoders"].as_array().into_iter().flatten().for_each(|part| self.read(part)),
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Replace" => {
                if let Some(pattern) = decoder["pattern"]["String"].as_str() {
                    self.replacements.push((pattern.to_owned(), text("content")));
                }
            }
            "Metaspace" => {
                self.replacements.push((text("replacement"), " ".into()));
                self.strips_first |= decoder["prepend_scheme"].as_str() != Some("never");
            }
            "WordPiece" => self.continuation = Some(text("prefix")),
            "BPEDecoder" => self.replacements.push((text("suffix"), " ".into())),
            "Strip" => self.strips_first |= text("content") == " " && decoder["start"].as_u64() == Some(1),
            _ => {}
        }
    }

    /// Appends the bytes of a token.
    fn write(&self, token: &str, alphabet: &Alphabet, out: &mut Vec<u8>) {
        if self.byte_level && alphabet.decode(token.as_bytes(), out) {
            return;
        }
        if let Some(byte) = parse_byte(token.as_bytes()).filter(|_| self.byte_fallback) {
            out.push(byte);
            return;
        }
        if let Some(prefix) = &self.continuation {
            match token.strip_prefix(prefix.as_str()) {
                Some(rest) => out.extend_from_slice(rest.as_bytes()),
                None => out.extend([b" ", token.as_bytes()].concat()),
            }
            return;
        }
        let replaced = self.replacements.iter().filter(|(from, _)| !from.is_empty());
        let text = replaced.fold(token.to_owned(), |text, (from, to)| text.replace(from, to));
        out.extend_from_slice(text.as_bytes());
    }
}

impl HfTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Tokenizer`].
    pub(crate) fn open(path: &Path, metadata: &HfMetadata) -> Result<(Self, SpecialIds)> {
        let json = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let broken = |error: &dyn std::fmt::Display| Error::Tokenizer(format!("{}: {error}", path.display()));
        let mut tokenizer = Json::from_bytes(json).map_err(|error| broken(&error))?;
        // Settings of a training run: they would cut or lengthen texts without a word.
        tokenizer.with_truncation(None).map_err(|error| broken(&error))?;
        tokenizer.with_padding(None);
        let mut spelling = Spelling::default();
        if let Some(decoder) = tokenizer.get_decoder() {
            spelling.read(&serde_json::to_value(decoder).map_err(|error| broken(&error))?);
        }
        let mut control = Vec::new();
        let mut added = HashMap::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.special {
                control.push(id);
            }
            added.insert(id, token);
        }
        control.sort_unstable();
        let mut tokens: Vec<(u32, String)> =
            tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
        tokens.sort_unstable();
        let alphabet = Alphabet::new();
        let mut bytes = Arena::with_capacity(tokens.len(), tokens.len() * 8);
        for (id, text) in &tokens {
            // Ids are small numbers in every sound file; a hole costs four bytes.
            if *id as usize > 4 * tokens.len() + (1 << 20) {
                return Err(broken(&format_args!("token {text:?} has id {id} among {} tokens", tokens.len())));
            }
            while bytes.len() < *id as usize {
                bytes.push_with(|_| ())?;
            }
            if bytes.len() > *id as usize {
                return Err(broken(&format_args!("two tokens have id {id}")));
            }
            bytes.push_with(|out| match added.get(id) {
                Some(token) if token.special => {}
                Some(token) => out.extend_from_slice(token.content.as_bytes()),
                None => spelling.write(text, &alphabet, out),
            })?;
        }
        let ids = special_ids(&tokenizer, metadata, bytes.len());
        let space_prefix = spelling.strips_first;
        Ok((Self { tokenizer, blind: OnceLock::new(), bytes, control, space_prefix }, ids))
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub(crate) fn encode(&self, text: &str, add: AddSpecial, parse: ParseSpecial) -> Result<Vec<u32>> {
        let tokenizer = match parse {
            ParseSpecial::Yes => &self.tokenizer,
            ParseSpecial::No => self.blind.get_or_init(|| {
                let mut blind = self.tokenizer.clone();
                blind.set_encode_special_tokens(true);
                blind
            }),
        };
        let encoding = tokenizer.encode_fast(text, add == AddSpecial::Yes);
        Ok(encoding.map_err(|error| Error::Tokenizer(error.to_string()))?.get_ids().to_vec())
    }

    /// The bytes that token `id` stands for.
    pub(crate) fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// The token as the file writes it.
    pub(crate) fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The token that the file writes as `text`.
    pub(crate) fn token_id(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// Whether `id` is a special token.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        self.control.binary_search(&id).is_ok()
    }

    /// One more than the largest id.
    pub(crate) fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a text is encoded with a space before it.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.space_prefix
    }
}

/// BOS and the ends of texts, from the files beside `tokenizer.json`. Ids beyond the vocabulary are left out: they can't
/// be generated.
fn special_ids(tokenizer: &Json, metadata: &HfMetadata, vocab_size: usize) -> SpecialIds {
    let configs = [metadata.generation.as_ref(), Some(&metadata.config)];
    let ids = |key: &str| -> Vec<u32> {
        let listed = configs.into_iter().flatten().flat_map(|config| match &config[key] {
            Value::Array(ids) => ids.iter().collect(),
            id => vec![id],
        });
        listed.filter_map(|id| u32::try_from(id.as_u64()?).ok()).filter(|&id| (id as usize) < vocab_size).collect()
    };
    let named = |key: &str| {
        let token = &metadata.tokenizer_config.as_ref()?[key];
        tokenizer.token_to_id(token.as_str().or_else(|| token["content"].as_str())?)
    };
    let (bos, eos) = (ids("bos_token_id"), ids("eos_token_id"));
    SpecialIds {
        bos: named("bos_token").or_else(|| bos.first().copied()),
        eos: named("eos_token").or_else(|| eos.first().copied()),
        ends: eos,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open(tokenizer: &Value, tokenizer_config: Value, generation: Value) -> Result<(HfTokenizer, SpecialIds)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        let metadata = HfMetadata {
            folder: folder.path().into(),
            config: json!({"eos_token_id": 1, "bos_token_id": 700}),
            generation: Some(generation),
            tokenizer_config: Some(tokenizer_config),
            ..HfMetadata::default()
        };
        HfTokenizer::open(&path, &metadata)
    }

    /// Llama 2's form: BPE over characters with byte fallback, ▁ for spaces.
    fn sentencepiece() -> Value {
        let mut vocab = serde_json::Map::new();
        for (id, token) in ["<unk>", "<s>", "</s>", "▁", "h", "i", "▁h", "▁hi"].into_iter().enumerate() {
            vocab.insert(token.into(), id.into());
        }
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), (8 + byte).into());
        }
        let added = |id: u32, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special})
        };
        json!({
            "version": "1.0", "padding": null, "pre_tokenizer": null, "post_processor": null,
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true),
                added(264, "<tool>", false)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": ["▁ h", "▁h i"]}
        })
    }

    #[test]
    fn byte_fallback_and_metaspace_are_undone() {
        let (tokenizer, _) = open(&sentencepiece(), json!({}), json!({})).unwrap();
        let ids = tokenizer.encode("hi hi é", AddSpecial::No, ParseSpecial::No).unwrap();
        assert_eq!(ids, [7, 7, 3, 8 + 0xC3, 8 + 0xA9], "and the file's truncation to 2 tokens is off");
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), " hi hi é");
        assert!(tokenizer.adds_space_prefix());
    }

    #[test]
    fn special_tokens_in_a_text_count_only_when_parsed() {
        let (tokenizer, _) = open(&sentencepiece(), json!({}), json!({})).unwrap();
        let parsed = tokenizer.encode("</s>", AddSpecial::No, ParseSpecial::Yes).unwrap();
        let plain = tokenizer.encode("</s>", AddSpecial::No, ParseSpecial::No).unwrap();
        assert_eq!(parsed, [2]);
        assert!(plain.len() > 1 && !plain.contains(&2), "{plain:?}");
        let tool = tokenizer.encode("<tool>", AddSpecial::No, ParseSpecial::No).unwrap();
        assert_eq!(tool, [264]);
        assert_eq!(tokenizer.token_bytes(264), b"<tool>");
        assert!(tokenizer.token_bytes(2).is_empty() && tokenizer.is_control(2) && !tokenizer.is_control(264));
    }

    #[test]
    fn ends_come_from_every_file() {
        let config = json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>"});
        let (_, ids) = open(&sentencepiece(), config, json!({"eos_token_id": [5, 4, 9999]})).unwrap();
        assert_eq!((ids.bos, ids.eos, ids.ends), (Some(1), Some(2), vec![5, 4, 1]));
        let (_, ids) = open(&sentencepiece(), json!({"bos_token": null}), json!({})).unwrap();
        assert_eq!((ids.bos, ids.eos), (None, Some(1)), "id 700 is beyond the vocabulary");
    }

    #[test]
    fn wordpiece_words_have_spaces() {
        let mut spelling = Spelling::default();
        spelling.read(&json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
        let mut out = Vec::new();
        for token in ["play", "##ing"] {
            spelling.write(token, &Alphabet::new(), &mut out);
        }
        assert_eq!(out, b" playing");
    }

    #[test]
    fn broken_files_are_errors_that_name_them() {
        let error = open(&json!({"version": "1.0"}), json!({}), json!({})).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        let mut huge = sentencepiece();
        huge["model"]["vocab"]["x"] = json!(4_000_000_000_u32);
        let error = open(&huge, json!({}), json!({})).unwrap_err().to_string();
        assert!(error.contains("4000000000"), "{error}");
    }
}
