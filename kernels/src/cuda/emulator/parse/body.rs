//! A kernel's body: scopes, registers, labels, and the places of its variables.

use std::collections::HashMap;

use super::super::ir::{Constant, Index, Instr, Op, Predicate, Program, Register, SPECIALS};
use super::instr;
use super::lexer::{Located, Token};
use super::module::{Place, Scope, place};
use super::operand::{Cursor, Operand, show};

/// Registers of a kernel in each file; far more than any compiler emits.
const MAX_REGISTERS: u32 = 1 << 20;

/// Calls inside calls: a recursion has no end when code is copied.
const MAX_CALLS: usize = 16;
/// Instructions after which no more calls are put in place.
const MAX_CODE: usize = 1 << 20;

/// Where a name of the body leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Symbol {
    /// Offset in the parameters.
    Param(u64),
    /// Address in shared memory.
    Shared(u64),
    /// Offset in the thread's local memory.
    Local(u64),
    /// Module variable.
    Global(u32),
}

/// Declarations between two braces.
#[derive(Default)]
struct Block<'a> {
    id: u32,
    registers: HashMap<&'a str, Register>,
    /// `%r<20>`: the prefix, how many, and the first register.
    ranges: Vec<(&'a str, u32, Register)>,
    symbols: HashMap<&'a str, Symbol>,
}

/// A jump whose target is found when all labels are known.
struct Fixup<'a> {
    instr: usize,
    labels: Vec<&'a str>,
    scopes: Vec<u32>,
}

/// A body being decoded.
pub(super) struct Body<'s, 'a> {
    scope: &'s Scope<'s, 'a>,
    /// Jumps to the end of each function being put in place, innermost last.
    returns: Vec<Vec<usize>>,
    blocks: Vec<Block<'a>>,
    next_block: u32,
    params: HashMap<&'a str, Symbol>,
    shared: HashMap<&'a str, Symbol>,
    labels: HashMap<(u32, &'a str), u32>,
    tables: HashMap<&'a str, Vec<&'a str>>,
    fixups: Vec<Fixup<'a>>,
    pending: Vec<&'a str>,
    code: Vec<Instr>,
    words: u32,
    doubles: u32,
    predicates: u32,
    word_constants: HashMap<Constant, Index>,
    double_constants: HashMap<Constant, Index>,
    shared_bytes: u64,
    shared_align: u64,
    dynamic: Vec<&'a str>,
    local_bytes: u64,
}

/// Decodes a body; an error names its line.
pub(super) fn decode<'a>(
    tokens: &[Located<'a>],
    scope: &Scope<'_, 'a>,
    params: &[(&'a str, Place)],
    max_threads: Option<u32>,
) -> Result<Program, (u32, String)> {
    let mut body = Body {
        scope,
        returns: Vec::new(),
        blocks: vec![Block::default()],
        next_block: 1,
        params: HashMap::new(),
        shared: HashMap::new(),
        labels: HashMap::new(),
        tables: HashMap::new(),
        fixups: Vec::new(),
        pending: Vec::new(),
        code: Vec::new(),
        words: SPECIALS.len() as u32,
        doubles: 0,
        predicates: 0,
        word_constants: HashMap::new(),
        double_constants: HashMap::new(),
        shared_bytes: 0,
        shared_align: 16,
        dynamic: Vec::new(),
        local_bytes: 0,
    };
    let mut param_bytes = 0u64;
    for (name, place) in params {
        param_bytes = param_bytes.next_multiple_of(place.align);
        body.params.insert(name, Symbol::Param(param_bytes));
        param_bytes += place.bytes;
    }
    body.reserve_shared(tokens);
    let mut cursor = Cursor::new(tokens);
    while cursor.peek().is_some() {
        let line = cursor.line();
        body.statement(&mut cursor).map_err(|what| (line, what))?;
    }
    body.code.push(Instr { op: Op::Exit, guard: None, line: cursor.line() });
    body.resolve()?;
    let dynamic_start = body.dynamic_start();
    Ok(Program {
        words: body.words,
        doubles: body.doubles,
        predicates: body.predicates,
        word_constants: body.word_constants.into_iter().map(|(value, index)| (index, value)).collect(),
        double_constants: body.double_constants.into_iter().map(|(value, index)| (index, value)).collect(),
        code: body.code,
        param_bytes: param_bytes as u32,
        shared_bytes: body.shared_bytes as u32,
        dynamic_start: dynamic_start as u32,
        local_bytes: body.local_bytes.next_multiple_of(16) as u32,
        max_threads,
    })
}

impl<'a> Body<'_, 'a> {
    /// Places the shared variables, of the module and of this body, before any instruction needs their addresses: the
    /// dynamic ones lie behind all others. A variable of the module takes room only where the body names it.
    fn reserve_shared(&mut self, tokens: &[Located<'a>]) {
        for (name, place) in &self.scope.shared {
            if tokens.iter().any(|located| located.token == Token::Word(name)) {
                self.place_shared(name, *place);
            }
        }
        for (at, located) in tokens.iter().enumerate() {
            if located.token == Token::Word(".shared") {
                // A declaration that doesn't parse is reported when its statement is reached.
                if let Ok((name, place)) = place(&mut Cursor::new(&tokens[at + 1..])) {
                    self.place_shared(name, place);
                }
            }
        }
        let start = self.dynamic_start();
        for name in &self.dynamic {
            self.shared.insert(name, Symbol::Shared(start));
        }
    }

    fn place_shared(&mut self, name: &'a str, place: Place) {
        if place.dynamic {
            self.shared_align = self.shared_align.max(place.align);
            self.dynamic.push(name);
            return;
        }
        let start = self.shared_bytes.next_multiple_of(place.align);
        self.shared.insert(name, Symbol::Shared(start));
        self.shared_bytes = start + place.bytes;
    }

    fn dynamic_start(&self) -> u64 {
        self.shared_bytes.next_multiple_of(self.shared_align)
    }

    fn statement(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result<(), String> {
        if cursor.accept('{') {
            self.blocks.push(Block { id: self.next_block, ..Block::default() });
            self.next_block += 1;
            return Ok(());
        }
        if cursor.accept('}') {
            self.blocks.pop();
            return if self.blocks.is_empty() { Err("a brace too many".to_owned()) } else { Ok(()) };
        }
        if cursor.accept(';') {
            return Ok(());
        }
        if let (Some(Token::Word(label)), Some(Token::Mark(':'))) = (cursor.peek(), cursor.second()) {
            cursor.next();
            cursor.next();
            if cursor.peek() == Some(Token::Word(".branchtargets")) {
                cursor.next();
                let targets = cursor.operands()?.into_iter().map(|operand| match operand {
                    Operand::Name(name, 0) => Ok(name),
                    _ => Err("a label expected".to_owned()),
                });
                self.tables.insert(label, targets.collect::<Result<_, _>>()?);
                return Ok(());
            }
            let block = self.blocks.last().map_or(0, |block| block.id);
            self.labels.insert((block, label), self.code.len() as u32);
            return Ok(());
        }
        match cursor.peek() {
            Some(Token::Word(word)) if word.starts_with('.') => self.directive(word, cursor),
            Some(Token::Word(_) | Token::Mark('@')) => self.instruction(cursor),
            other => Err(format!("an instruction expected, found {}", show(other))),
        }
    }

    fn directive(&mut self, word: &str, cursor: &mut Cursor<'_, 'a>) -> Result<(), String> {
        match word {
            ".loc" | ".file" => {
                cursor.skip_line();
                return Ok(());
            }
            ".pragma" => {
                cursor.skip_past(';');
                return Ok(());
            }
            ".shared" => {
                // Placed beforehand.
                cursor.next();
                place(cursor)?;
            }
            // A call's parameters are memory of the thread's.
            ".local" | ".param" => {
                cursor.next();
                let (name, place) = place(cursor)?;
                let start = self.local_bytes.next_multiple_of(place.align);
                self.local_bytes = start + place.bytes;
                if let Some(block) = self.blocks.last_mut() {
                    block.symbols.insert(name, Symbol::Local(start));
                }
            }
            ".reg" => {
                cursor.next();
                let ty = cursor.word()?;
                self.registers(ty, cursor)?;
            }
            _ => return Err(format!("the directive {word} isn't known here")),
        }
        cursor.expect(';')
    }

    fn registers(&mut self, ty: &str, cursor: &mut Cursor<'_, 'a>) -> Result<(), String> {
        loop {
            let name = cursor.word()?;
            let range = match cursor.accept('<') {
                true => {
                    let count = u32::try_from(cursor.number()?).unwrap_or(u32::MAX);
                    cursor.expect('>')?;
                    Some(count)
                }
                false => None,
            };
            let count = range.unwrap_or(1);
            let file = match ty {
                ".pred" => &mut self.predicates,
                ".b64" | ".u64" | ".s64" | ".f64" => &mut self.doubles,
                ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" | ".b32" | ".u32" | ".s32"
                | ".f32" | ".f16x2" | ".bf16x2" => &mut self.words,
                _ => return Err(format!("registers of type {ty} aren't known")),
            };
            let first = *file;
            *file = first.checked_add(count).filter(|&all| all <= MAX_REGISTERS).ok_or("too many registers")?;
            let register = match ty {
                ".pred" => Register::P(first),
                ".b64" | ".u64" | ".s64" | ".f64" => Register::D(first),
                ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => Register::W(first, 16),
                _ => Register::W(first, 32),
            };
            if let Some(block) = self.blocks.last_mut() {
                match range {
                    Some(count) => block.ranges.push((name, count, register)),
                    None => {
                        block.registers.insert(name, register);
                    }
                }
            }
            if !cursor.accept(',') {
                return Ok(());
            }
        }
    }

    fn instruction(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result<(), String> {
        let line = cursor.line();
        let mut guard = None;
        if cursor.accept('@') {
            let negated = cursor.accept('!');
            let index = self.predicate_register(cursor.word()?)?;
            guard = Some(Predicate { index, negated });
        }
        let opcode = cursor.word()?;
        if opcode == "call" || opcode == "call.uni" {
            return self.call(cursor, guard, line);
        }
        let operands = cursor.operands().map_err(|what| format!("{opcode}: {what}"))?;
        let mut op = instr::decode(self, opcode, &operands).map_err(|what| format!("{opcode}: {what}"))?;
        if let (true, Some(returns)) = (opcode.starts_with("ret"), self.returns.last_mut()) {
            returns.push(self.code.len());
            op = Op::Branch { target: 0 };
        }
        let labels = std::mem::take(&mut self.pending);
        if !labels.is_empty() {
            let scopes = self.blocks.iter().rev().map(|block| block.id).collect();
            self.fixups.push(Fixup { instr: self.code.len(), labels, scopes });
        }
        self.code.push(Instr { op, guard, line });
        Ok(())
    }

    /// Puts a function's code here, with its parameters' names for the call's.
    fn call(&mut self, cursor: &mut Cursor<'_, 'a>, guard: Option<Predicate>, line: u32) -> Result<(), String> {
        let results = self.arguments(cursor)?;
        if !results.is_empty() {
            cursor.expect(',')?;
        }
        let name = cursor.word()?;
        let arguments = if cursor.accept(',') { self.arguments(cursor)? } else { Vec::new() };
        cursor.expect(';')?;
        let function = self.scope.functions.get(name).ok_or_else(|| format!("the function {name} has no code"))?;
        if function.results.len() != results.len() || function.params.len() != arguments.len() {
            return Err(format!("{name} has other parameters"));
        }
        if self.returns.len() >= MAX_CALLS || self.code.len() > MAX_CODE {
            return Err(format!("{name} calls itself, or too much"));
        }
        let mut exits = Vec::new();
        if let Some(Predicate { index, negated }) = guard {
            exits.push(self.code.len());
            let guard = Some(Predicate { index, negated: !negated });
            self.code.push(Instr { op: Op::Branch { target: 0 }, guard, line });
        }
        self.returns.push(exits);
        let formal = function.results.iter().chain(&function.params).copied();
        let symbols = formal.zip(results.into_iter().chain(arguments)).collect();
        self.blocks.push(Block { id: self.next_block, symbols, ..Block::default() });
        self.next_block += 1;
        let depth = self.blocks.len();
        let mut inner = Cursor::new(function.body);
        while inner.peek().is_some() {
            let line = inner.line();
            self.statement(&mut inner).map_err(|what| format!("in {name}, line {line}: {what}"))?;
            if self.blocks.len() < depth {
                return Err(format!("in {name}: a brace too many"));
            }
        }
        self.blocks.truncate(depth - 1);
        let end = self.code.len() as u32;
        for exit in self.returns.pop().unwrap_or_default() {
            if let Some(Instr { op: Op::Branch { target }, .. }) = self.code.get_mut(exit) {
                *target = end;
            }
        }
        Ok(())
    }

    /// `(a, b)`: the places of a call's parameters.
    fn arguments(&self, cursor: &mut Cursor<'_, 'a>) -> Result<Vec<Symbol>, String> {
        let mut out = Vec::new();
        if !cursor.accept('(') || cursor.accept(')') {
            return Ok(out);
        }
        loop {
            let name = cursor.word()?;
            out.push(self.symbol(name).ok_or_else(|| format!("{name} isn't a parameter"))?);
            if cursor.accept(')') {
                return Ok(out);
            }
            cursor.expect(',')?;
        }
    }

    /// Gives every jump its target.
    fn resolve(&mut self) -> Result<(), (u32, String)> {
        for fixup in std::mem::take(&mut self.fixups) {
            let Some(instr) = self.code.get_mut(fixup.instr) else { continue };
            let mut found = Vec::with_capacity(fixup.labels.len());
            for label in fixup.labels {
                let mut scopes = fixup.scopes.iter();
                match scopes.find_map(|&block| self.labels.get(&(block, label))) {
                    Some(&target) => found.push(target),
                    None => return Err((instr.line, format!("there is no label {label}"))),
                }
            }
            match &mut instr.op {
                Op::Branch { target } => *target = found.first().copied().unwrap_or(0),
                Op::BranchTable { targets, .. } => *targets = found,
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes the labels that the instruction being decoded jumps to.
    pub(super) fn jumps_to(&mut self, labels: impl IntoIterator<Item = &'a str>) {
        self.pending.extend(labels);
    }

    /// The labels of a `.branchtargets`.
    pub(super) fn table(&self, name: &str) -> Option<&Vec<&'a str>> {
        self.tables.get(name)
    }

    /// A register by name, from the innermost scope outwards.
    pub(super) fn register(&self, name: &str) -> Option<Register> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for block in self.blocks.iter().rev() {
            if let Some(register) = block.registers.get(name) {
                return Some(*register);
            }
            // `%rd1` may be number 1 of `%rd` only; but a prefix may itself end in a digit.
            for (prefix, count, first) in &block.ranges {
                let Some(number) = name.strip_prefix(prefix).filter(|rest| !rest.is_empty() && rest.len() <= digits)
                else {
                    continue;
                };
                if let Some(number) = number.parse::<u32>().ok().filter(|number| number < count) {
                    return Some(match *first {
                        Register::P(first) => Register::P(first + number),
                        Register::W(first, bits) => Register::W(first + number, bits),
                        Register::D(first) => Register::D(first + number),
                        Register::Sink => Register::Sink,
                    });
                }
            }
        }
        None
    }

    /// A variable by name.
    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        let inner = self.blocks.iter().rev().find_map(|block| block.symbols.get(name));
        inner
            .or_else(|| self.shared.get(name))
            .or_else(|| self.params.get(name))
            .copied()
            .or_else(|| self.scope.variables.get(name).map(|&index| Symbol::Global(index)))
    }

    /// The word register that always holds `value`.
    pub(super) fn word_constant(&mut self, value: u32) -> Index {
        let next = &mut self.words;
        *self.word_constants.entry(Constant::Value(value.into())).or_insert_with(|| take(next))
    }

    /// The double register that always holds `value`.
    pub(super) fn double_constant(&mut self, value: Constant) -> Index {
        let next = &mut self.doubles;
        *self.double_constants.entry(value).or_insert_with(|| take(next))
    }

    pub(super) fn predicate_register(&self, name: &str) -> Result<Index, String> {
        match self.register(name) {
            Some(Register::P(index)) => Ok(index),
            _ => Err(format!("{name} isn't a predicate")),
        }
    }

    /// A source operand as a word.
    pub(super) fn word(&mut self, operand: &Operand<'a>) -> Result<Index, String> {
        let value = match operand {
            Operand::Integer(value) => *value as u32,
            Operand::Single(bits) => *bits,
            Operand::Double(bits) => (f64::from_bits(*bits) as f32).to_bits(),
            Operand::Name(name, offset) => {
                if let Some(Register::W(index, _)) = self.register(name).filter(|_| *offset == 0) {
                    return Ok(index);
                }
                if let Some(index) = SPECIALS.iter().position(|special| special == name) {
                    return Ok(index as Index);
                }
                match self.symbol(name) {
                    Some(Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at)) => (at as i64 + offset) as u32,
                    _ => return Err(format!("{name} isn't a register of up to 32 bits")),
                }
            }
            other => return Err(format!("{other:?} isn't a register of up to 32 bits")),
        };
        Ok(self.word_constant(value))
    }

    /// A source operand as a double.
    pub(super) fn double(&mut self, operand: &Operand<'a>) -> Result<Index, String> {
        let value = match operand {
            Operand::Integer(value) => Constant::Value(*value),
            Operand::Double(bits) => Constant::Value(*bits),
            Operand::Single(bits) => Constant::Value(f64::from(f32::from_bits(*bits)).to_bits()),
            Operand::Name(name, offset) => {
                if let Some(Register::D(index)) = self.register(name).filter(|_| *offset == 0) {
                    return Ok(index);
                }
                match self.symbol(name) {
                    Some(Symbol::Global(variable)) => Constant::Global { variable, offset: *offset },
                    Some(Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at)) => {
                        Constant::Value((at as i64 + offset) as u64)
                    }
                    None => return Err(format!("{name} isn't a register of 64 bits")),
                }
            }
            other => return Err(format!("{other:?} isn't a register of 64 bits")),
        };
        Ok(self.double_constant(value))
    }

    /// A source predicate, possibly negated; a constant is a comparison that always holds or never.
    pub(super) fn predicate(&mut self, operand: &Operand<'a>) -> Result<Predicate, String> {
        match operand {
            Operand::Name(name, 0) => Ok(Predicate { index: self.predicate_register(name)?, negated: false }),
            Operand::Not(name) => Ok(Predicate { index: self.predicate_register(name)?, negated: true }),
            // Nobody writes the register, which starts out false in all lanes.
            Operand::Integer(value) => Ok(Predicate { index: self.false_predicate(), negated: *value != 0 }),
            other => Err(format!("{other:?} isn't a predicate")),
        }
    }

    fn false_predicate(&mut self) -> Index {
        take(&mut self.predicates)
    }

    /// A destination, or `_`.
    pub(super) fn destination(&self, name: &str) -> Result<Register, String> {
        match self.register(name) {
            Some(register) => Ok(register),
            None if name == "_" => Ok(Register::Sink),
            None => Err(format!("{name} isn't a register")),
        }
    }

    pub(super) fn word_destination(&self, operand: &Operand<'a>) -> Result<Index, String> {
        match operand {
            Operand::Name(name, 0) => match self.register(name) {
                Some(Register::W(index, _)) => Ok(index),
                _ => Err(format!("{name} isn't a register of up to 32 bits")),
            },
            other => Err(format!("{other:?} isn't a register")),
        }
    }

    pub(super) fn double_destination(&self, operand: &Operand<'a>) -> Result<Index, String> {
        match operand {
            Operand::Name(name, 0) => match self.register(name) {
                Some(Register::D(index)) => Ok(index),
                _ => Err(format!("{name} isn't a register of 64 bits")),
            },
            other => Err(format!("{other:?} isn't a register")),
        }
    }
}

fn take(next: &mut u32) -> Index {
    let index = *next;
    *next += 1;
    index
}
