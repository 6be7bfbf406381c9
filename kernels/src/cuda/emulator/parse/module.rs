//! A module's declarations: variables with their contents, and kernels.

use std::collections::HashMap;

use super::super::error::EmulatorError;
use super::super::ir::{Kernel, Variable};
use super::body;
use super::lexer::{Located, Token, tokens};
use super::operand::{Cursor, Operand, show};

/// A variable in shared or local memory, or a kernel's parameter: a place in its space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) bytes: u64,
    pub(super) align: u64,
    /// `name[]` of `.extern .shared`: as large as the launch says.
    pub(super) dynamic: bool,
}

/// A function that kernels call: its code goes wherever it is called.
pub(super) struct Function<'t, 'a> {
    /// The results' names, then the parameters'.
    pub(super) results: Vec<&'a str>,
    pub(super) params: Vec<&'a str>,
    pub(super) body: &'t [Located<'a>],
}

/// What a kernel sees of its module.
#[derive(Default)]
pub(super) struct Scope<'t, 'a> {
    pub(super) functions: HashMap<&'a str, Function<'t, 'a>>,
    /// Index of each global or constant variable.
    pub(super) variables: HashMap<&'a str, u32>,
    /// Shared variables declared outside of kernels.
    pub(super) shared: Vec<(&'a str, Place)>,
}

/// Shared memory, parameters and thread-local memory are all far below this.
const MAX_PLACE: u64 = 1 << 24;

/// A parsed module, before it is placed in memory.
pub(in super::super) struct Parsed {
    pub(in super::super) kernels: Vec<Kernel>,
    pub(in super::super) variables: Vec<Variable>,
}

/// A kernel's text, to be decoded once all variables are known.
struct Entry<'t, 'a> {
    name: &'a str,
    line: u32,
    params: Vec<(&'a str, Place)>,
    max_threads: Option<u32>,
    body: &'t [Located<'a>],
}

/// Parses a module.
///
/// # Errors
/// If the text isn't PTX. An instruction that isn't known makes only its kernel unusable.
pub(in super::super) fn parse(text: &str) -> Result<Parsed, EmulatorError> {
    let tokens = tokens(text)?;
    let mut cursor = Cursor::new(&tokens);
    let mut module = Declarations::default();
    if let Err(what) = module.declarations(&mut cursor) {
        return Err(EmulatorError::Parse { line: cursor.line(), what });
    }
    let Declarations { scope, variables, entries, .. } = module;
    let kernels = entries.into_iter().map(|entry| {
        let program = body::decode(entry.body, &scope, &entry.params, entry.max_threads)
            .map_err(|(line, what)| (if line == 0 { entry.line } else { line }, what));
        Kernel { name: entry.name.to_owned(), program }
    });
    Ok(Parsed { kernels: kernels.collect(), variables })
}

#[derive(Default)]
struct Declarations<'t, 'a> {
    scope: Scope<'t, 'a>,
    variables: Vec<Variable>,
    entries: Vec<Entry<'t, 'a>>,
}

impl<'t, 'a> Declarations<'t, 'a> {
    fn declarations(&mut self, cursor: &mut Cursor<'t, 'a>) -> Result<(), String> {
        while let Some(token) = cursor.peek() {
            let Token::Word(word) = token else {
                return Err(format!("a directive expected, found {}", show(Some(token))));
            };
            match word {
                ".version" | ".target" | ".address_size" | ".file" | ".loc" => cursor.skip_line(),
                ".pragma" | ".alias" => cursor.skip_past(';'),
                ".section" => {
                    cursor.next();
                    cursor.word()?;
                    cursor.block()?;
                }
                ".visible" | ".extern" | ".weak" | ".common" => {
                    cursor.next();
                }
                ".entry" => self.entry(cursor)?,
                ".func" => self.function(cursor)?,
                ".global" | ".const" => self.variable(cursor)?,
                ".shared" => {
                    cursor.next();
                    let (name, place) = place(cursor)?;
                    self.scope.shared.push((name, place));
                    cursor.expect(';')?;
                }
                _ => return Err(format!("the directive {word} isn't known")),
            }
        }
        Ok(())
    }

    fn entry(&mut self, cursor: &mut Cursor<'t, 'a>) -> Result<(), String> {
        let line = cursor.line();
        cursor.next();
        let name = cursor.word()?;
        let params = params(cursor)?;
        let mut max_threads = None;
        loop {
            match cursor.peek() {
                Some(Token::Mark('{')) => break,
                Some(Token::Word(directive)) => {
                    cursor.next();
                    let mut threads = 1u32;
                    while let Some(Token::Number(_) | Token::Mark(',')) = cursor.peek() {
                        if !cursor.accept(',') {
                            threads = threads.saturating_mul(u32::try_from(cursor.number()?).unwrap_or(u32::MAX));
                        }
                    }
                    match directive {
                        ".maxntid" | ".reqntid" => max_threads = Some(threads),
                        ".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".noreturn" => {}
                        ".pragma" => cursor.skip_past(';'),
                        _ => return Err(format!("the directive {directive} isn't known")),
                    }
                }
                other => return Err(format!("a kernel's body expected, found {}", show(other))),
            }
        }
        let body = cursor.block()?;
        self.entries.push(Entry { name, line, params, max_threads, body });
        Ok(())
    }

    fn function(&mut self, cursor: &mut Cursor<'t, 'a>) -> Result<(), String> {
        cursor.next();
        let names = |places: Vec<(&'a str, Place)>| places.into_iter().map(|(name, _)| name).collect();
        let results = names(params(cursor)?);
        let name = cursor.word()?;
        let params = names(params(cursor)?);
        while !matches!(cursor.peek(), None | Some(Token::Mark('{' | ';'))) {
            cursor.next();
        }
        // A declaration comes before its definition, or names a function of the driver's.
        if !cursor.accept(';') {
            let body = cursor.block()?;
            self.scope.functions.insert(name, Function { results, params, body });
        }
        Ok(())
    }

    fn variable(&mut self, cursor: &mut Cursor<'t, 'a>) -> Result<(), String> {
        cursor.next();
        let (align, width, name, count) = declaration(cursor)?;
        let (width, mut values) = (width as usize, Vec::new());
        if cursor.accept('=') {
            initialiser(cursor, &mut values)?;
        }
        cursor.expect(';')?;
        let count = count.unwrap_or(values.len() as u64);
        let bytes = count.checked_mul(width as u64).filter(|&bytes| bytes <= 1 << 30);
        let bytes = bytes.ok_or("a variable that large isn't sensible")? as usize;
        let mut variable =
            Variable { name: name.to_owned(), align, bytes: vec![0; bytes], pointers: Vec::new(), address: None };
        for (index, value) in values.into_iter().enumerate() {
            let at = index * width;
            let bits = match value {
                Operand::Integer(value) | Operand::Double(value) => value,
                Operand::Single(bits) => u64::from(bits),
                Operand::Name(symbol, offset) if width == 8 => {
                    let target = self.scope.variables.get(symbol).ok_or(format!("{symbol} isn't declared"))?;
                    variable.pointers.push((at, *target, offset));
                    0
                }
                other => return Err(format!("{other:?} can't be part of a variable's contents")),
            };
            let target = variable.bytes.get_mut(at..at + width).ok_or("more contents than room")?;
            target.copy_from_slice(&bits.to_le_bytes()[..width]);
        }
        let index = u32::try_from(self.variables.len()).map_err(|_| "too many variables")?;
        self.scope.variables.insert(name, index);
        self.variables.push(variable);
        Ok(())
    }
}

/// `(.param .b32 a, ...)`, or nothing.
fn params<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Vec<(&'a str, Place)>, String> {
    let mut params = Vec::new();
    if !cursor.accept('(') || cursor.accept(')') {
        return Ok(params);
    }
    loop {
        match cursor.word()? {
            ".param" => params.push(place(cursor)?),
            other => return Err(format!("'.param' expected, found '{other}'")),
        }
        if cursor.accept(')') {
            return Ok(params);
        }
        cursor.expect(',')?;
    }
}

/// Values of an initialiser in order; nested braces only group.
fn initialiser<'a>(cursor: &mut Cursor<'_, 'a>, values: &mut Vec<Operand<'a>>) -> Result<(), String> {
    if !cursor.accept('{') {
        // `generic(name)` is the name's generic address, which for global memory is the address.
        if cursor.peek() == Some(Token::Word("generic")) {
            cursor.next();
            cursor.expect('(')?;
            let Operand::Name(name, _) = cursor.operand()? else { return Err("a name expected".to_owned()) };
            cursor.expect(')')?;
            let offset = if cursor.accept('+') { cursor.number()? } else { 0 };
            values.push(Operand::Name(name, offset as i64));
            return Ok(());
        }
        values.push(cursor.operand()?);
        return Ok(());
    }
    while !cursor.accept('}') {
        initialiser(cursor, values)?;
        if !cursor.accept(',') && cursor.peek() != Some(Token::Mark('}')) {
            return Err(format!("',' or '}}' expected, found {}", show(cursor.peek())));
        }
    }
    Ok(())
}

/// `.align 8 .b8 name[16]`: alignment, bytes of an element, name, and elements; none for `name[]`.
fn declaration<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<(u64, u64, &'a str, Option<u64>), String> {
    let mut align = None;
    let mut width = None;
    let mut lanes = 1;
    let name = loop {
        match cursor.word()? {
            ".align" => align = Some(cursor.number()?),
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            // Attributes of a pointer parameter say what it points to.
            ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
            ".attribute" => cursor.skip_past(')'),
            word if word.starts_with('.') => {
                width = Some(type_bytes(word).ok_or_else(|| format!("the type {word} isn't known"))?);
            }
            name => break name,
        }
    };
    let width = width.ok_or("a variable without a type")? * lanes;
    let mut count = Some(1u64);
    while cursor.accept('[') {
        if cursor.accept(']') {
            count = None;
            continue;
        }
        let number = cursor.number()?;
        count = count.map(|count| count.saturating_mul(number));
        cursor.expect(']')?;
    }
    let align = align.unwrap_or(width);
    if !align.is_power_of_two() || align > 1024 {
        return Err(format!("an alignment of {align} isn't possible"));
    }
    // Contents of vectors are listed by element.
    let count = count.map(|count| count.saturating_mul(lanes));
    Ok((align, width / lanes, name, count))
}

/// A declaration in shared, local or parameter space.
pub(super) fn place<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<(&'a str, Place), String> {
    let (align, width, name, count) = declaration(cursor)?;
    let bytes = count.unwrap_or(0).saturating_mul(width);
    if bytes > MAX_PLACE {
        return Err(format!("{name} has {bytes} bytes"));
    }
    Ok((name, Place { bytes, align, dynamic: count.is_none() }))
}

/// Bytes of a type as directives spell it.
pub(super) fn type_bytes(word: &str) -> Option<u64> {
    Some(match word {
        ".pred" | ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}
