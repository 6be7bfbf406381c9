//! Pre-tokenizers: cutting a text into the pieces inside which byte-pair merges happen, as `tokenizer.ggml.pre` names
//! them. The families of GPT-2 and Llama 3 are written by hand, an order of magnitude faster than a backtracking
//! regular expression; the others run the expressions that their models were published with, one pass after another,
//! each pass cutting the pieces of the one before.

use std::ops::ControlFlow;

use fancy_regex::{Regex, RegexBuilder};

use super::unicode::{Classes, LETTER, MARK, NUMBER, SPACE};
use crate::error::{Error, Result};

/// How a vocabulary cuts text before it merges.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    method: Method,
    /// A piece that is a token as a whole becomes that token, even where the merges would not build it.
    pub(crate) ignore_merges: bool,
    /// Whether a text starts with the BOS token where the file doesn't say.
    pub(crate) add_bos: bool,
}

#[derive(Debug)]
enum Method {
    Gpt2 { digits: Gpt2Digits },
    Llama3(Llama3),
    Regexes(Vec<Regex>),
}

/// What happens to numbers before the GPT-2 expression sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gpt2Digits {
    Together,
    /// Each digit is a piece, and cuts the text for everything around it.
    Single,
}

/// The variations of Llama 3's expression.
#[derive(Debug, Clone, Copy)]
struct Llama3 {
    /// `\p{N}{1,max_digits}`.
    max_digits: usize,
    /// The classes of a word's characters: letters, or letters and combining marks.
    word: u8,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// The letters of DeepSeek LLM: its own list, not `\p{L}`.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\
\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\
\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\
\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\
\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\
\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\
\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\
\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\
\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\
\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\
\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\
\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\
\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+";

/// Chinese, Korean and what lies between in DeepSeek's first vocabularies.
const DEEPSEEK_CJK: &str = "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

/// Chinese and Japanese in DeepSeek V3.
const DEEPSEEK3_CJK: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";

/// Words split where the case changes: GPT-4o without its contractions.
const CASED_WORDS: [&str; 2] = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
];

/// The end of most expressions since Llama 3.
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// The pre-tokenizer that GGUF files call `name`; without a name, the default one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that isn't known: a guess would cut text in other places than the model
    /// learned.
    pub(crate) fn named(name: Option<&str>) -> Result<Self> {
        let gpt2 = |digits| Ok(Method::Gpt2 { digits });
        let llama3 = |max_digits, word| Ok(Method::Llama3(Llama3 { max_digits, word }));
        let name = name.unwrap_or("default");
        let method = match name {
            "default" => regexes(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es" | "jina-v2-de" | "jina-v2-code"
            | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "roberta-bpe" | "mpt" | "olmo" | "jais"
            | "trillion" | "granite-docling" | "exaone4" => gpt2(Gpt2Digits::Together),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                gpt2(Gpt2Digits::Single)
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => llama3(3, LETTER),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan" | "solar-open" | "megrez"
            | "grok-2" => llama3(1, LETTER),
            "qwen35" => llama3(1, LETTER | MARK),
            "deepseek-llm" => regexes(&[
                "[\r\n]",
                DEEPSEEK_LETTERS,
                "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
                r"\s+$",
                DEEPSEEK_CJK,
                r"\p{N}+",
            ]),
            "deepseek-coder" => regexes(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"]),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => regexes(&[
                r"\p{N}{1,3}",
                DEEPSEEK3_CJK,
                &format!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{{|}}~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"##
                ),
            ]),
            "falcon" => regexes(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => regexes(&[&cased_with_contractions(r"\p{N}{1,3}")]),
            "tiny_aya" | "cohere2moe" => {
                regexes(&[r"\d{1,3}(?=(?:\d{3})*\b)", &cased_with_contractions(r"\p{N}{1,3}")])
            }
            "tekken" => regexes(&[&format!(
                r"{}|{}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
                CASED_WORDS[0], CASED_WORDS[1]
            )]),
            "poro-chat" | "bloom" | "gpt3-finnish" => regexes(&[BLOOM]),
            "viking" => regexes(&[BLOOM, r"\p{N}"]),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => regexes(&[
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ]),
            "seed-coder" => regexes(&[&format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
            )]),
            "minicpm5" => regexes(&[r"\p{N}{1,3}", &llama3_regex(r"\p{N}+")]),
            "exaone-moe" => regexes(&[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ]),
            _ => Err(Error::Unsupported(format!(
                "pre-tokenizer `{}` (`tokenizer.ggml.pre`); the model needs a version of this program that knows it",
                name.escape_debug()
            ))),
        }?;
        let llama_bpe = matches!(
            name,
            "llama3"
                | "llama-v3"
                | "llama-bpe"
                | "falcon3"
                | "falcon-h1"
                | "pixtral"
                | "midm-2.0"
                | "lfm2"
                | "jina-v5-nano"
                | "tekken"
        );
        Ok(Self { method, ignore_merges: llama_bpe || name == "minicpm5", add_bos: llama_bpe })
    }

    /// Gives each piece of `text` to `piece`, in order; together they are the text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where a regular expression gives up, and whatever `piece` returns.
    pub(crate) fn split(&self, text: &str, mut piece: impl FnMut(&str) -> Result<()>) -> Result<()> {
        match &self.method {
            Method::Gpt2 { digits } => split_gpt2(text, *digits, &mut piece),
            Method::Llama3(variant) => split_llama3(text, *variant, &mut piece),
            Method::Regexes(regexes) => split_regexes(text, regexes, &mut piece),
        }
    }
}

/// Words up to punctuation, as BLOOM cuts them.
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

fn llama3_regex(numbers: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
    )
}

fn cased_with_contractions(numbers: &str) -> String {
    const CONTRACTIONS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
    format!(
        r"{}{CONTRACTIONS}|{}{CONTRACTIONS}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
        CASED_WORDS[0], CASED_WORDS[1]
    )
}

fn regexes(sources: &[&str]) -> Result<Method> {
    let compile = |source: &&str| {
        // The expressions are ours and none of them backtracks more than a few times over a run of equal classes, so
        // that a limit would only refuse long texts.
        RegexBuilder::new(source)
            .backtrack_limit(usize::MAX)
            .build()
            .map_err(|error| Error::Tokenizer(format!("pre-tokenizer expression `{source}`: {error}")))
    };
    Ok(Method::Regexes(sources.iter().map(compile).collect::<Result<_>>()?))
}

/// One pass after another, depth first: matches and the gaps between them go on to the next pass.
fn split_regexes(text: &str, regexes: &[Regex], piece: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let Some((first, rest)) = regexes.split_first() else { return piece(text) };
    let mut done = 0;
    for found in first.find_iter(text) {
        let found = found.map_err(|error| Error::Tokenizer(format!("pre-tokenizer: {error}")))?;
        for part in [&text[done..found.start()], found.as_str()] {
            if !part.is_empty() {
                split_regexes(part, rest, piece)?;
            }
        }
        done = found.end();
    }
    if done < text.len() { split_regexes(&text[done..], rest, piece) } else { Ok(()) }
}

/// The end of the run of characters at `at` for which `belongs` holds.
#[inline]
fn run(classes: &Classes, text: &str, mut at: usize, belongs: impl Fn(u8) -> bool) -> usize {
    loop {
        let (class, len) = classes.at(text, at);
        if len == 0 || !belongs(class) {
            return at;
        }
        at += len;
    }
}

/// A run of white space from `at`: all of it at the end of the text, else all but its last character (which belongs
/// to the word that follows), else, a single character, that character. This is `\s+(?!\S)|\s+`.
#[inline]
fn spaces(classes: &Classes, text: &str, at: usize) -> usize {
    let (mut last, mut end) = (at, at);
    loop {
        let (class, len) = classes.at(text, end);
        if len == 0 {
            return end;
        }
        if class != SPACE {
            break;
        }
        last = end;
        end += len;
    }
    if last > at { last } else { end }
}

fn split_gpt2(text: &str, digits: Gpt2Digits, piece: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    let classes = Classes::get();
    if digits == Gpt2Digits::Together {
        return split_gpt2_part(classes, text, piece);
    }
    let mut start = 0;
    let mut at = 0;
    loop {
        let (class, len) = classes.at(text, at);
        if len == 0 || class == NUMBER {
            if start < at {
                split_gpt2_part(classes, &text[start..at], piece)?;
            }
            if len == 0 {
                return Ok(());
            }
            piece(&text[at..at + len])?;
            start = at + len;
        }
        at += len;
    }
}

fn split_gpt2_part(classes: &Classes, text: &str, piece: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    const WORD: u8 = LETTER | NUMBER | SPACE;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let end = 'piece: {
            if byte == b'\'' {
                let len = match (bytes.get(at + 1), bytes.get(at + 2)) {
                    (Some(b's' | b't' | b'm' | b'd'), _) => 2,
                    (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 3,
                    _ => 0,
                };
                if len > 0 {
                    break 'piece at + len;
                }
            }
            let word = at + usize::from(byte == b' ');
            let (class, len) = classes.at(text, word);
            match class & WORD {
                _ if len == 0 => spaces(classes, text, at),
                SPACE => spaces(classes, text, at),
                0 => run(classes, text, word + len, |class| class & WORD == 0),
                same => run(classes, text, word + len, |class| class == same),
            }
        };
        piece(&text[at..end])?;
        at = end;
    }
    Ok(())
}

fn split_llama3(text: &str, variant: Llama3, piece: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    let classes = Classes::get();
    let Llama3 { max_digits, word } = variant;
    let known = word | NUMBER | SPACE;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let end = 'piece: {
            if byte == b'\'' {
                let len = contraction(bytes, at + 1);
                if len > 0 {
                    break 'piece at + 1 + len;
                }
            }
            let (class, len) = classes.at(text, at);
            if class & word != 0 {
                break 'piece run(classes, text, at + len, |class| class & word != 0);
            }
            if class == NUMBER {
                let counted = (1..max_digits).try_fold(at + len, |end, _| match classes.at(text, end) {
                    (NUMBER, len) => ControlFlow::Continue(end + len),
                    _ => ControlFlow::Break(end),
                });
                break 'piece match counted {
                    ControlFlow::Continue(end) | ControlFlow::Break(end) => end,
                };
            }
            if byte != b'\r' && byte != b'\n' {
                let (next, next_len) = classes.at(text, at + len);
                if next & word != 0 {
                    break 'piece run(classes, text, at + len + next_len, |class| class & word != 0);
                }
            }
            let other = at + usize::from(byte == b' ');
            let (class, len) = classes.at(text, other);
            if len > 0 && class & known == 0 {
                let end = run(classes, text, other + len, |class| class & known == 0);
                let newlines = bytes[end..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                break 'piece end + newlines;
            }
            // White space: through the run's last line end if it has one.
            let run_end = run(classes, text, at, |class| class == SPACE);
            match bytes[at..run_end].iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
                Some(newline) => at + newline + 1,
                None => spaces(classes, text, at),
            }
        };
        piece(&text[at..end])?;
        at = end;
    }
    Ok(())
}

/// The length of `(?i:s|t|re|ve|m|ll|d)` at `at`, 0 if it isn't there. U+017F, the long s, folds to an s.
#[inline]
fn contraction(bytes: &[u8], at: usize) -> usize {
    let lower = |at: usize| bytes.get(at).map_or(0, |byte| byte | 0x20);
    match (lower(at), lower(at + 1)) {
        (b's' | b't' | b'm' | b'd', _) => 1,
        (b'r' | b'v', b'e') | (b'l', b'l') => 2,
        _ if bytes.get(at..at + 2) == Some("\u{17F}".as_bytes()) => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;

    fn pieces(pre: &PreTokenizer, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        pre.split(text, |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        })
        .unwrap();
        pieces
    }

    /// The hand-written splitter that `name` means and the expressions that it stands for.
    fn twins() -> &'static [(&'static str, PreTokenizer, PreTokenizer)] {
        static TWINS: OnceLock<Vec<(&str, PreTokenizer, PreTokenizer)>> = OnceLock::new();
        TWINS.get_or_init(make_twins)
    }

    fn make_twins() -> Vec<(&'static str, PreTokenizer, PreTokenizer)> {
        let marks =
            llama3_regex(r"\p{N}").replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}");
        let twin =
            |sources: &[&str]| PreTokenizer { method: regexes(sources).unwrap(), ignore_merges: false, add_bos: false };
        let twins = [
            ("gpt-2", twin(&[GPT2])),
            ("smollm", twin(&[r"\p{N}", GPT2])),
            ("llama-bpe", twin(&[&llama3_regex(r"\p{N}{1,3}")])),
            ("qwen2", twin(&[&llama3_regex(r"\p{N}")])),
            ("qwen35", twin(&[&marks])),
        ];
        twins.map(|(name, twin)| (name, PreTokenizer::named(Some(name)).unwrap(), twin)).into()
    }

    #[test]
    fn known_cuts() {
        let llama = PreTokenizer::named(Some("llama-bpe")).unwrap();
        assert_eq!(
            pieces(&llama, "I'LL  pay 12345 $\n\n  now"),
            ["I", "'LL", " ", " pay", " ", "123", "45", " $\n\n", " ", " now"]
        );
        let gpt2 = PreTokenizer::named(Some("gpt-2")).unwrap();
        assert_eq!(pieces(&gpt2, "we'll\n\n\tsee 2024!? "), ["we", "'ll", "\n\n", "\t", "see", " 2024", "!?", " "]);
        let starcoder = PreTokenizer::named(Some("starcoder")).unwrap();
        assert_eq!(pieces(&starcoder, "a  12"), ["a", "  ", "1", "2"]);
    }

    #[test]
    fn every_name_compiles_and_keeps_the_text() {
        let text = "Ünïcode tEXT's 12345, $5.00\r\n\t你好 こんにちは 🙂🙂!!  x\u{301}y  ";
        for name in [
            "default",
            "falcon",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "gpt-4o",
            "tekken",
            "tiny_aya",
            "bloom",
            "viking",
            "bailingmoe",
            "seed-coder",
            "minicpm5",
            "exaone-moe",
            "qwen35",
            "refact",
            "command-r",
        ] {
            let pre = PreTokenizer::named(Some(name)).unwrap();
            let pieces = pieces(&pre, text);
            assert_eq!(pieces.concat(), text, "{name}");
            assert!(pieces.len() > 5 && pieces.iter().all(|piece| !piece.is_empty()), "{name}: {pieces:?}");
        }
    }

    #[test]
    fn unknown_name_is_an_error_that_names_it() {
        let error = PreTokenizer::named(Some("no-such-pre")).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(what) if what.contains("no-such-pre")), "{error}");
    }

    #[test]
    fn a_long_run_is_not_quadratic_and_not_refused() {
        for name in ["gpt-2", "llama-bpe", "gpt-4o", "deepseek-v3"] {
            let pre = PreTokenizer::named(Some(name)).unwrap();
            for unit in [" ", "a", "!", "\n", "é"] {
                let text = unit.repeat(300_000) + "x";
                assert_eq!(pieces(&pre, &text).concat(), text, "{name} {unit:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn hand_written_equals_expression(
            text in prop::collection::vec(prop_oneof![
                4 => "[ \t\r\na-eA-E's0-9.,!]".prop_map(String::from),
                2 => prop::sample::select(vec!["'s", "'S", "'ll", "'Ve", "'re", "\u{17F}", "'\u{17F}", "\u{A0}", "\u{3000}", "\u{301}", "½", "五", "ǅ", "\r\n", "  ", "\u{2028}", "🙂"]).prop_map(String::from),
                1 => any::<char>().prop_map(String::from),
            ], 0..40).prop_map(|parts| parts.concat())
        ) {
            for (name, pre, twin) in twins() {
                prop_assert_eq!(pieces(pre, &text), pieces(twin, &text), "{}", name);
            }
        }
    }
}
