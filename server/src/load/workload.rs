//! What load looks like: lengths, arrivals, prompts. The same seed gives the same load.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, LogNormal};
use serde::Serialize;
use shimmy_runtime::text::{AddSpecial, ParseSpecial, Tokenizer};

/// Words that a prompt is made of, at most.
const MAX_WORDS: usize = 4096;
/// Rounds in which a prompt is brought to its length: each is wrong by a few tokens at most, and the next by fewer.
const MAX_ROUNDS: usize = 32;
/// Words for servers whose tokenizer isn't at hand: a token or two each with most vocabularies.
const PLAIN_WORDS: [&str; 32] = [
    " time", " water", " people", " house", " light", " music", " paper", " river", " winter", " garden", " number",
    " letter", " stone", " bread", " street", " morning", " window", " history", " doctor", " market", " forest",
    " silver", " machine", " summer", " kitchen", " science", " island", " village", " engine", " picture", " bridge",
    " teacher",
];

/// How long prompts or answers are, in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Always the same.
    Fixed(usize),
    /// Any between two, both included.
    Uniform(usize, usize),
    /// Half of them above the median, with the standard deviation of their logarithm.
    LogNormal(f64, f64),
}

/// A length that can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write N, LEAST-MOST or lognormal:MEDIAN:SIGMA, with lengths of at least one token")]
pub struct BadLength;

impl FromStr for Length {
    type Err = BadLength;

    fn from_str(text: &str) -> Result<Self, BadLength> {
        let tokens = |text: &str| text.parse::<usize>().ok().filter(|&tokens| tokens > 0).ok_or(BadLength);
        if let Some(rest) = text.strip_prefix("lognormal:") {
            let (median, sigma) = rest.split_once(':').ok_or(BadLength)?;
            let sigma = sigma.parse::<f64>().ok().filter(|sigma| (0.0..=4.0).contains(sigma)).ok_or(BadLength)?;
            return Ok(Self::LogNormal(tokens(median)? as f64, sigma));
        }
        match text.split_once('-') {
            Some((least, most)) => {
                let (least, most) = (tokens(least)?, tokens(most)?);
                if least <= most { Ok(Self::Uniform(least, most)) } else { Err(BadLength) }
            }
            None => tokens(text).map(Self::Fixed),
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform(least, most) => write!(f, "{least}-{most}"),
            Self::LogNormal(median, sigma) => write!(f, "lognormal:{median}:{sigma}"),
        }
    }
}

impl Serialize for Length {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Length {
    /// One length, at least 1.
    pub fn draw(&self, rng: &mut impl Rng) -> usize {
        match *self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(least, most) => rng.random_range(least..=most),
            // `from_str` lets no sigma through that this refuses.
            Self::LogNormal(median, sigma) => LogNormal::new(median.ln(), sigma)
                .map_or(median, |distribution| distribution.sample(rng))
                .round()
                .max(1.0) as usize,
        }
    }
}

/// Seconds between arrivals of a Poisson process.
pub fn gap_seconds(rate: f64, rng: &mut impl Rng) -> f64 {
    // A rate of 0 has no arrivals.
    Exp::new(rate).map_or(f64::INFINITY, |distribution| distribution.sample(rng))
}

/// The generator of one purpose and index: a request is the same whichever others there are.
pub fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// A maker of prompts that differ from each other from their first words on.
#[derive(Clone)]
pub struct Prompts {
    /// `None`: lengths are in words.
    tokenizer: Option<Arc<Tokenizer>>,
    words: Arc<[String]>,
}

impl fmt::Debug for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompts").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

/// A prompt of the wanted length can't be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no text of exactly {0} tokens was found for this tokenizer; choose another length")]
pub struct NoPrompt(usize);

impl Prompts {
    /// Prompts of exact lengths for this tokenizer, made of those words that are one token each.
    pub fn exact(tokenizer: Arc<Tokenizer>) -> Self {
        let is_word =
            |bytes: &[u8]| bytes.len() > 2 && bytes[0] == b' ' && bytes[1..].iter().all(u8::is_ascii_lowercase);
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let words: Vec<String> = ids
            .filter_map(|id| {
                let bytes = tokenizer.token_bytes(id);
                is_word(&bytes).then(|| String::from_utf8_lossy(&bytes).into_owned())
            })
            .filter(|word| tokenizer.encode(word, AddSpecial::No, ParseSpecial::No).is_ok_and(|ids| ids.len() == 1))
            .take(MAX_WORDS)
            .collect();
        if words.len() < 2 {
            // A vocabulary of bytes: letters are tokens.
            let letters = ('a'..='z').map(String::from).collect();
            return Self { tokenizer: Some(tokenizer), words: letters };
        }
        Self { tokenizer: Some(tokenizer), words: words.into() }
    }

    /// Prompts of so many words.
    pub fn words() -> Self {
        Self { tokenizer: None, words: PLAIN_WORDS.map(str::to_owned).into() }
    }

    /// A prompt of `tokens` tokens, special ones that the tokenizer adds included, that starts with the same
    /// `shared_prefix` tokens as all others.
    ///
    /// # Errors
    /// When the tokenizer has no text of that length.
    pub fn make(&self, tokens: usize, shared_prefix: usize, seed: u64, index: u64) -> Result<String, NoPrompt> {
        // Streams of requests start at 1; the prefix is everybody's.
        let (mut common, mut own) = (rng(seed, 0), rng(seed, index + 1));
        let mut words: Vec<&str> = Vec::new();
        let mut missing = tokens;
        for _ in 0..MAX_ROUNDS {
            for _ in 0..missing {
                let rng = if words.len() < shared_prefix { &mut common } else { &mut own };
                words.push(&self.words[rng.random_range(0..self.words.len())]);
            }
            let Some(tokenizer) = &self.tokenizer else { return Ok(words.concat()) };
            let text = words.concat();
            let ids = tokenizer.encode(&text, AddSpecial::Yes, ParseSpecial::Yes).map_err(|_| NoPrompt(tokens))?;
            missing = tokens.saturating_sub(ids.len());
            if ids.len() == tokens && !words.is_empty() {
                return Ok(text);
            }
            // Words that merge or split are drawn anew; at least one, or nothing would change.
            let spare = ids.len().saturating_sub(tokens);
            words.truncate(words.len().saturating_sub(spare));
        }
        Err(NoPrompt(tokens))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn lengths_are_read_and_written() {
        for text in ["64", "16-256", "lognormal:64:0.5"] {
            assert_eq!(text.parse::<Length>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "5-2", "0-3", "lognormal:64", "lognormal:0:1", "lognormal:64:9", "many"] {
            assert_eq!(text.parse::<Length>(), Err(BadLength), "{text}");
        }
    }

    #[test]
    fn lengths_follow_their_distribution() {
        let mut rng = rng(1, 0);
        let mut draw = |length: Length| -> Vec<usize> { (0..4000).map(|_| length.draw(&mut rng)).collect() };
        assert!(draw(Length::Fixed(7)).iter().all(|&tokens| tokens == 7));
        let uniform = draw(Length::Uniform(3, 6));
        assert_eq!(uniform.iter().copied().collect::<HashSet<_>>(), HashSet::from([3, 4, 5, 6]));
        let mut skewed = draw(Length::LogNormal(100.0, 1.0));
        skewed.sort_unstable();
        // Quartiles of a lognormal: the median times e^(±0.674 sigma).
        assert!((90..110).contains(&skewed[2000]) && (45..56).contains(&skewed[1000]), "{:?}", &skewed[1000..1005]);
        assert!((180..210).contains(&skewed[3000]), "{}", skewed[3000]);
    }

    #[test]
    fn arrivals_have_their_rate() {
        let mut rng = rng(1, 0);
        let mean = (0..10_000).map(|_| gap_seconds(4.0, &mut rng)).sum::<f64>() / 10_000.0;
        assert!((0.24..0.26).contains(&mean), "{mean}");
        assert!(gap_seconds(0.0, &mut rng).is_infinite());
    }

    #[test]
    fn prompts_differ_but_for_what_they_share() {
        let prompts = Prompts::words();
        let make = |prefix, index| prompts.make(40, prefix, 9, index).unwrap();
        assert_eq!(make(0, 5), make(0, 5));
        let all: HashSet<String> = (0..100).map(|index| make(0, index)).collect();
        assert_eq!(all.len(), 100);
        // 8 words are more than chance shares.
        let starts = |prefix| -> HashSet<String> {
            (0..100).map(|index| make(prefix, index).split(' ').take(9).collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!((starts(0).len(), starts(8).len()), (100, 1));
        assert_eq!(make(0, 1).split_whitespace().count(), 40);
    }
}
