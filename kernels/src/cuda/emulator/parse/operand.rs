//! Operands of instructions, as written.

use super::lexer::{Located, Token, integer};

/// An operand before it is known what the instruction wants.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand<'a> {
    /// A register, a special register, a variable or a label, plus an offset.
    Name(&'a str, i64),
    Integer(u64),
    /// Bits of a single.
    Single(u32),
    /// Bits of a double.
    Double(u64),
    /// `!%p`.
    Not(&'a str),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[a + offset]`.
    Memory(Box<Operand<'a>>, i64),
    /// `d|p`.
    Pair(&'a str, &'a str),
}

/// Reads tokens from the front.
pub(super) struct Cursor<'t, 'a> {
    tokens: &'t [Located<'a>],
    at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    pub(super) fn new(tokens: &'t [Located<'a>]) -> Self {
        Self { tokens, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|located| located.token)
    }

    /// The token after the next.
    pub(super) fn second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at + 1).map(|located| located.token)
    }

    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    /// Line of the next token, or of the last one.
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |located| located.line)
    }

    /// Takes the mark if it is next.
    pub(super) fn accept(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<(), String> {
        match self.accept(mark) {
            true => Ok(()),
            false => Err(format!("'{mark}' expected, found {}", show(self.peek()))),
        }
    }

    pub(super) fn word(&mut self) -> Result<&'a str, String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            other => Err(format!("a name expected, found {}", show(other))),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64, String> {
        let text = match self.next() {
            Some(Token::Number(text)) => text,
            other => return Err(format!("a number expected, found {}", show(other))),
        };
        integer(text).ok_or_else(|| format!("{text} is not an integer"))
    }

    /// Drops all tokens of the line that the next one is on.
    pub(super) fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|located| located.line == line) {
            self.at += 1;
        }
    }

    /// Drops everything up to and including the mark.
    pub(super) fn skip_past(&mut self, mark: char) {
        while self.peek().is_some() && !self.accept(mark) {
            self.at += 1;
        }
    }

    /// The tokens of the block that starts with `{` here, without its braces.
    pub(super) fn block(&mut self) -> Result<&'t [Located<'a>], String> {
        self.expect('{')?;
        let start = self.at;
        let mut depth = 1;
        while let Some(token) = self.next() {
            match token {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(&self.tokens[start..self.at - 1]);
            }
        }
        Err("a brace without its partner".to_owned())
    }

    /// Operands up to the semicolon.
    pub(super) fn operands(&mut self) -> Result<Vec<Operand<'a>>, String> {
        let mut out = Vec::new();
        if self.accept(';') {
            return Ok(out);
        }
        loop {
            out.push(self.operand()?);
            if self.accept(';') {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }

    pub(super) fn operand(&mut self) -> Result<Operand<'a>, String> {
        if self.accept('{') {
            let mut parts = Vec::new();
            loop {
                parts.push(self.scalar()?);
                if self.accept('}') {
                    return Ok(Operand::Vector(parts));
                }
                self.expect(',')?;
            }
        }
        if self.accept('[') {
            let base = self.scalar()?;
            self.expect(']')?;
            return Ok(match base {
                Operand::Name(name, offset) => Operand::Memory(Box::new(Operand::Name(name, 0)), offset),
                other => Operand::Memory(Box::new(other), 0),
            });
        }
        if self.accept('!') {
            return Ok(Operand::Not(self.word()?));
        }
        self.scalar()
    }

    /// A name with an offset or a pair of names, or a number.
    fn scalar(&mut self) -> Result<Operand<'a>, String> {
        if let Some(Token::Word(name)) = self.peek() {
            self.at += 1;
            if self.accept('|') {
                return Ok(Operand::Pair(name, self.word()?));
            }
            let offset = match self.peek() {
                Some(Token::Mark('+')) => {
                    self.at += 1;
                    let negative = self.accept('-');
                    signed(self.number()?, negative)
                }
                Some(Token::Mark('-')) => {
                    self.at += 1;
                    signed(self.number()?, true)
                }
                _ => 0,
            };
            return Ok(Operand::Name(name, offset));
        }
        let negative = self.accept('-');
        let text = match self.next() {
            Some(Token::Number(text)) => text,
            other => return Err(format!("an operand expected, found {}", show(other))),
        };
        let float = |prefix: [&str; 2]| prefix.iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(digits) = float(["0f", "0F"]).filter(|digits| digits.len() == 8) {
            let bits = u32::from_str_radix(digits, 16).map_err(|_| format!("{text} is not a single"))?;
            return Ok(Operand::Single(bits ^ u32::from(negative) << 31));
        }
        if let Some(digits) = float(["0d", "0D"]).filter(|digits| digits.len() == 16) {
            let bits = u64::from_str_radix(digits, 16).map_err(|_| format!("{text} is not a double"))?;
            return Ok(Operand::Double(bits ^ u64::from(negative) << 63));
        }
        let value = integer(text).ok_or_else(|| format!("{text} is not a number"))?;
        Ok(Operand::Integer(signed(value, negative) as u64))
    }
}

fn signed(value: u64, negative: bool) -> i64 {
    if negative { (value as i64).wrapping_neg() } else { value as i64 }
}

/// A token for a message.
pub(super) fn show(token: Option<Token<'_>>) -> String {
    match token {
        Some(Token::Word(text) | Token::Number(text) | Token::Text(text)) => format!("'{text}'"),
        Some(Token::Mark(mark)) => format!("'{mark}'"),
        None => "the end".to_owned(),
    }
}
