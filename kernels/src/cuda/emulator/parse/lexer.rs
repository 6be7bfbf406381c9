//! Tokens of PTX text.

use super::super::error::EmulatorError;

/// A piece of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name, a directive (`.reg`), an instruction with its qualifiers, or a register.
    Word(&'a str),
    /// Starts with a digit.
    Number(&'a str),
    /// Quoted text without the quotes.
    Text(&'a str),
    /// Anything else, one character at a time.
    Mark(char),
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located<'a> {
    pub(super) token: Token<'a>,
    pub(super) line: u32,
}

/// Cuts text into tokens; comments vanish.
pub(super) fn tokens(text: &str) -> Result<Vec<Located<'_>>, EmulatorError> {
    let mut out = Vec::with_capacity(text.len() / 4);
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut line = 1;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        let token = match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            // NVRTC ends its text with a zero byte, which belongs to nobody.
            b' ' | b'\t' | b'\r' | 0 => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at = find(bytes, at, b"\n").unwrap_or(bytes.len());
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = find(bytes, at + 2, b"*/").ok_or_else(|| error(line, "a comment without an end"))?;
                line += count_lines(&bytes[at..end]);
                at = end + 2;
                continue;
            }
            b'"' => {
                let end = find(bytes, at + 1, b"\"").ok_or_else(|| error(line, "a string without an end"))?;
                at = end + 1;
                let text = text.get(start + 1..end).ok_or_else(|| error(line, "a string that isn't text"))?;
                out.push(Located { token: Token::Text(text), line });
                line += count_lines(&bytes[start..end]);
                continue;
            }
            _ if is_word(byte) || byte == b'.' => {
                // A colon inside a word is always doubled (`.L2::128B`); a single one ends a label.
                while let Some(&next) = bytes.get(at) {
                    let doubled = next == b':' && bytes.get(at + 1) == Some(&b':');
                    match next {
                        // `.reg.b32` is two directives; only an instruction's name has dots inside.
                        b'.' if byte == b'.' && at > start => break,
                        _ if doubled => at += 2,
                        _ if is_word(next) || next == b'.' => at += 1,
                        _ => break,
                    }
                }
                let word = text.get(start..at).ok_or_else(|| error(line, "a name that isn't text"))?;
                if byte.is_ascii_digit() { Token::Number(word) } else { Token::Word(word) }
            }
            _ if byte.is_ascii_punctuation() => {
                at += 1;
                Token::Mark(char::from(byte))
            }
            _ => return Err(error(line, "a character that PTX doesn't have")),
        };
        out.push(Located { token, line });
    }
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| at + from)
}

fn count_lines(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u32
}

fn error(line: u32, what: &str) -> EmulatorError {
    EmulatorError::Parse { line, what: what.to_owned() }
}

/// An integer as PTX writes it: decimal, `0x`, `0b` or octal, with an optional `U`.
pub(super) fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    u64::from_str_radix(digits, radix).ok()
}
