//! An instruction's words and operands to its operation: arithmetic, comparisons, moves and control flow.

use super::super::ir::{CarryKind, Compare, Logic, Map, Op, Register, Space, Type};
use super::super::ops;
use super::super::ops::convert::Conversion;
use super::super::ops::rounding::Mode;
use super::body::Body;
use super::operand::Operand;
use super::{collective, memory};

/// What all decoders return.
pub(super) type Decoded = Result<Op, String>;

type Decoder = for<'s, 'a> fn(&mut Body<'s, 'a>, &Opcode<'_>, &[Operand<'a>]) -> Decoded;

/// An instruction's name.
pub(super) struct Opcode<'o> {
    /// All of it.
    pub(super) text: &'o str,
    /// Between the dots.
    pub(super) parts: Vec<&'o str>,
}

impl<'o> Opcode<'o> {
    pub(super) fn has(&self, part: &str) -> bool {
        self.parts.contains(&part)
    }

    pub(super) fn last(&self) -> &'o str {
        self.parts.last().copied().unwrap_or_default()
    }

    /// The only word of `words` that the name has, with what it stands for.
    pub(super) fn choose<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        words.iter().find(|(word, _)| self.has(word)).map(|(_, value)| *value)
    }
}

/// Instructions that aren't plain functions of their operands, by the first part of their names.
const DECODERS: &[(&str, Decoder)] = &[
    ("mov", mov),
    ("setp", setp),
    ("set", set),
    ("testp", testp),
    ("selp", selp),
    ("cvt", cvt),
    ("cvta", memory::cvta),
    ("isspacep", memory::isspacep),
    ("ld", memory::load),
    ("ldu", memory::load),
    ("st", memory::store),
    ("atom", memory::atomic),
    ("red", memory::atomic),
    ("cp", memory::copy_async),
    ("ldmatrix", memory::load_matrix),
    ("stmatrix", memory::store_matrix),
    ("movmatrix", collective::transpose),
    ("bra", branch),
    ("brx", branch_table),
    ("ret", |_, _, _| Ok(Op::Exit)),
    ("exit", |_, _, _| Ok(Op::Exit)),
    ("trap", |_, _, _| Ok(Op::Trap)),
    ("brkpt", nothing),
    ("membar", nothing),
    ("fence", nothing),
    ("prefetch", nothing),
    ("prefetchu", nothing),
    ("discard", nothing),
    ("applypriority", nothing),
    ("nanosleep", nothing),
    ("pmevent", nothing),
    ("setmaxnreg", nothing),
    ("griddepcontrol", nothing),
    ("bar", collective::barrier),
    ("barrier", collective::barrier),
    ("shfl", collective::shuffle),
    ("vote", collective::vote),
    ("match", collective::matching),
    ("activemask", collective::active_mask),
    ("redux", collective::reduce),
    ("elect", collective::elect),
    ("mma", collective::mma),
    ("addc", carry),
    ("subc", carry),
    ("madc", carry),
];

/// Decodes one instruction.
pub(super) fn decode<'a>(body: &mut Body<'_, 'a>, text: &str, operands: &[Operand<'a>]) -> Decoded {
    let opcode = Opcode { text, parts: text.split('.').collect() };
    let first = opcode.parts.first().copied().unwrap_or_default();
    if let Some((_, decoder)) = DECODERS.iter().find(|(name, _)| *name == first) {
        return decoder(body, &opcode, operands);
    }
    if opcode.parts.get(1) == Some(&"cc") || opcode.parts.get(2) == Some(&"cc") {
        return carry(body, &opcode, operands);
    }
    if opcode.last() == "pred" {
        return logic(body, &opcode, operands);
    }
    match ops::find(text) {
        Some(map) => map_operation(body, map, operands),
        None => Err("this instruction isn't known".to_owned()),
    }
}

/// Splits operands into as many as wanted.
pub(super) fn exactly<'o, 'a, const N: usize>(operands: &'o [Operand<'a>]) -> Result<&'o [Operand<'a>; N], String> {
    operands.try_into().map_err(|_| format!("{N} operands expected, found {}", operands.len()))
}

fn map_operation<'a>(body: &mut Body<'_, 'a>, map: Map, operands: &[Operand<'a>]) -> Decoded {
    // The classes of result and arguments, as the name of the variant spells them.
    let classes = match map {
        Map::WW(_) => "WW",
        Map::WWW(_) => "WWW",
        Map::WWWW(_) => "WWWW",
        Map::WWWWW(_) => "WWWWW",
        Map::WD(_) => "WD",
        Map::DW(_) => "DW",
        Map::DWW(_) => "DWW",
        Map::DWWD(_) => "DWWD",
        Map::DD(_) => "DD",
        Map::DDD(_) => "DDD",
        Map::DDDD(_) => "DDDD",
        Map::DDW(_) => "DDW",
        Map::DDWW(_) => "DDWW",
        Map::DDDWW(_) => "DDDWW",
    };
    if operands.len() != classes.len() {
        return Err(format!("{} operands expected, found {}", classes.len(), operands.len()));
    }
    let mut d = 0;
    let mut a = [0; 4];
    for (position, (class, operand)) in classes.bytes().zip(operands).enumerate() {
        match (position, class) {
            (0, b'W') => d = body.word_destination(operand)?,
            (0, _) => d = body.double_destination(operand)?,
            (_, b'W') => a[position - 1] = body.word(operand)?,
            (_, _) => a[position - 1] = body.double(operand)?,
        }
    }
    Ok(Op::Map { map, d, a })
}

fn nothing(_: &mut Body<'_, '_>, _: &Opcode<'_>, _: &[Operand<'_>]) -> Decoded {
    Ok(Op::Nop)
}

/// A type as instructions spell it.
pub(super) fn type_of(word: &str) -> Option<Type> {
    Some(match word {
        "f16" => Type::F16,
        "f16x2" => Type::F16x2,
        "bf16" => Type::Bf16,
        "bf16x2" => Type::Bf16x2,
        "f32" => Type::F32,
        "f64" => Type::F64,
        "tf32" => Type::Tf32,
        "e4m3" => Type::E4m3,
        "e5m2" => Type::E5m2,
        _ => {
            let bits = match word.get(1..)? {
                "8" => 8,
                "16" => 16,
                "32" => 32,
                "64" => 64,
                _ => return None,
            };
            match word.as_bytes().first()? {
                b'b' => Type::Bits(bits),
                b'u' => Type::Unsigned(bits),
                b's' => Type::Signed(bits),
                _ => return None,
            }
        }
    })
}

/// The type that ends the name.
pub(super) fn type_at_end(opcode: &Opcode<'_>) -> Result<Type, String> {
    type_of(opcode.last()).ok_or_else(|| format!("the type {} isn't known", opcode.last()))
}

/// A source operand in the class of its type.
pub(super) fn source<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>, bytes: u8) -> Result<Register, String> {
    Ok(if bytes == 8 { Register::D(body.double(operand)?) } else { Register::W(body.word(operand)?, 32) })
}

fn mov<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    if opcode.last() == "pred" {
        return logic(body, opcode, operands);
    }
    let [d, a] = exactly(operands)?;
    let bits = 8 * type_at_end(opcode)?.bytes();
    match (d, a) {
        (Operand::Vector(parts), _) => {
            let unit = bits / u8::try_from(parts.len()).map_err(|_| "too many parts")?.max(1);
            let to = names(body, parts)?;
            let from = vec![source(body, a, bits / 8)?];
            pack(to, from, unit)
        }
        (_, Operand::Vector(parts)) => {
            let unit = bits / u8::try_from(parts.len()).map_err(|_| "too many parts")?.max(1);
            let from = parts.iter().map(|part| source(body, part, unit / 8)).collect::<Result<_, _>>()?;
            let to = names(body, std::slice::from_ref(d))?;
            pack(to, from, unit)
        }
        (_, Operand::Name("%clock" | "%clock64" | "%globaltimer" | "%clock_hi", 0)) => {
            let d = names(body, std::slice::from_ref(d))?;
            Ok(Op::Clock { d: d.first().copied().unwrap_or(Register::Sink) })
        }
        _ if bits == 64 => Ok(Op::MoveD { d: body.double_destination(d)?, a: body.double(a)? }),
        _ => Ok(Op::MoveW { d: body.word_destination(d)?, a: body.word(a)? }),
    }
}

fn pack(to: Vec<Register>, from: Vec<Register>, unit: u8) -> Decoded {
    if unit < 8 || to.len() > 8 || from.len() > 8 {
        return Err("a vector of that shape can't be moved".to_owned());
    }
    Ok(Op::Pack { to, from, unit })
}

/// Destinations of a vector.
pub(super) fn names(body: &Body<'_, '_>, parts: &[Operand<'_>]) -> Result<Vec<Register>, String> {
    let name = |part: &Operand<'_>| match part {
        Operand::Name(name, 0) => body.destination(name),
        other => Err(format!("{other:?} isn't a register")),
    };
    parts.iter().map(name).collect()
}

/// Logic on predicates: `and.pred` and its like, and `mov.pred`.
fn logic<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let (Some(Operand::Name(d, 0)), Some(a)) = (operands.first(), operands.get(1)) else {
        return Err("a predicate expected".to_owned());
    };
    let d = body.predicate_register(d)?;
    let mut a = body.predicate(a)?;
    let name = opcode.parts.first().copied().unwrap_or_default();
    let logic = match (name, operands.len()) {
        ("mov", 2) => None,
        ("not", 2) => {
            a.negated = !a.negated;
            None
        }
        ("and" | "or" | "xor", 3) => opcode.choose(LOGIC),
        _ => return Err("this instruction on predicates isn't known".to_owned()),
    };
    let b = match operands.get(2) {
        Some(b) => body.predicate(b)?,
        None => a,
    };
    Ok(Op::Logic { logic, d, a, b })
}

const LOGIC: &[(&str, Logic)] = &[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)];

/// The type of a packed type's halves.
fn unpacked(ty: &str) -> &str {
    ty.strip_suffix("x2").unwrap_or(ty)
}

/// The comparison of a `setp` or `set`: its relation is the second part of the name.
fn comparison(opcode: &Opcode<'_>, ty: &str) -> Result<Compare, String> {
    let ty = unpacked(ty);
    let relation = opcode.parts.get(1).copied().unwrap_or_default();
    // Halves have no subnormal numbers worth flushing: their comparison is done in single precision.
    let relation = if opcode.has("ftz") && ty == "f32" { format!("{relation}.ftz") } else { relation.to_owned() };
    ops::compare::find(&relation, ty).ok_or_else(|| "this comparison isn't known".to_owned())
}

/// Both compared operands.
fn compared<'a>(
    body: &mut Body<'_, 'a>,
    compare: Compare,
    ty: &str,
    operands: [&Operand<'a>; 2],
) -> Result<[u32; 2], String> {
    let mut out = [0; 2];
    for (out, operand) in out.iter_mut().zip(operands) {
        let narrow = ty.ends_with("16");
        *out = match (compare, operand) {
            (Compare::W(_), Operand::Integer(value)) if narrow => body.word_constant(*value as u32 & 0xffff),
            (Compare::W(_), _) => body.word(operand)?,
            (Compare::D(_), _) => body.double(operand)?,
        };
    }
    Ok(out)
}

fn setp<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let (d, inverse) = match operands.first() {
        Some(Operand::Name(d, 0)) => (body.destination(d)?, Register::Sink),
        Some(Operand::Pair(d, inverse)) => (body.destination(d)?, body.destination(inverse)?),
        _ => return Err("a predicate expected".to_owned()),
    };
    let is_predicate = |register| matches!(register, Register::P(_) | Register::Sink);
    if !is_predicate(d) || !is_predicate(inverse) {
        return Err("a predicate expected".to_owned());
    }
    let (Some(a), Some(b)) = (operands.get(1), operands.get(2)) else { return Err("operands missing".to_owned()) };
    let compare = comparison(opcode, opcode.last())?;
    let [a, b] = compared(body, compare, opcode.last(), [a, b])?;
    let combine = combination(body, opcode, operands)?;
    Ok(match opcode.last().ends_with("x2") {
        true => Op::SetpPacked { compare, d, upper: inverse, a, b, combine },
        false => Op::Setp { compare, d, inverse, a, b, combine },
    })
}

fn combination<'a>(
    body: &mut Body<'_, 'a>,
    opcode: &Opcode<'_>,
    operands: &[Operand<'a>],
) -> Result<Option<(Logic, super::super::ir::Predicate)>, String> {
    match (opcode.choose(LOGIC), operands.get(3)) {
        (Some(logic), Some(c)) => Ok(Some((logic, body.predicate(c)?))),
        (None, None) => Ok(None),
        _ => Err("a combination needs a word and an operand".to_owned()),
    }
}

/// `set.lt.u32.f32`: the truth as a word.
fn set<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let (Some(d), Some(a), Some(b)) = (operands.first(), operands.get(1), operands.get(2)) else {
        return Err("operands missing".to_owned());
    };
    let truth = match opcode.parts.iter().rev().nth(1) {
        Some(&("u32" | "s32")) => u32::MAX,
        Some(&"u16" | &"s16") => 0xffff,
        Some(&"f32") => 1f32.to_bits(),
        Some(&"f16" | &"f16x2") => 0x3c00,
        Some(&"bf16" | &"bf16x2") => 0x3f80,
        _ => return Err("this type isn't known".to_owned()),
    };
    let compare = comparison(opcode, opcode.last())?;
    let [a, b] = compared(body, compare, opcode.last(), [a, b])?;
    let combine = combination(body, opcode, operands)?;
    let packed = opcode.last().ends_with("x2");
    let truth = if packed { truth & 0xffff } else { truth };
    Ok(Op::Set { compare, d: body.word_destination(d)?, a, b, combine, truth, packed })
}

fn testp<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [Operand::Name(d, 0), a] = exactly(operands)? else { return Err("a predicate expected".to_owned()) };
    let compare = comparison(opcode, opcode.last())?;
    let [a, b] = compared(body, compare, opcode.last(), [a, a])?;
    let d = Register::P(body.predicate_register(d)?);
    Ok(Op::Setp { compare, d, inverse: Register::Sink, a, b, combine: None })
}

fn selp<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, a, b, Operand::Name(p, 0)] = exactly(operands)? else { return Err("a predicate expected".to_owned()) };
    let p = body.predicate_register(p)?;
    Ok(match type_at_end(opcode)?.bytes() {
        8 => Op::SelectD { d: body.double_destination(d)?, a: body.double(a)?, b: body.double(b)?, p },
        _ => Op::SelectW { d: body.word_destination(d)?, a: body.word(a)?, b: body.word(b)?, p },
    })
}

const WHOLE: &[(&str, Mode)] = &[("rni", Mode::Nearest), ("rzi", Mode::Zero), ("rmi", Mode::Down), ("rpi", Mode::Up)];
const ROUNDING: &[(&str, Mode)] =
    &[("rn", Mode::Nearest), ("rna", Mode::Nearest), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

fn cvt<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    // What a row of the table does with subnormal numbers is right where a half is involved, which can't tell.
    let flushes = opcode.has("ftz") && !opcode.has("f16") && !opcode.has("f16x2");
    if let Some(map) = ops::find(opcode.text).filter(|_| !flushes) {
        return map_operation(body, map, operands);
    }
    let [d, a] = exactly(operands)?;
    let from = type_at_end(opcode)?;
    let to = opcode.parts.iter().rev().nth(1).and_then(|word| type_of(word)).ok_or("this conversion isn't known")?;
    let known = ["cvt", "ftz", "sat", "relu", "rn", "rna", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"];
    let qualifiers = &opcode.parts[..opcode.parts.len() - 2];
    if let Some(part) = qualifiers.iter().find(|part| !known.contains(part)) {
        return Err(format!(".{part} isn't known"));
    }
    if [to, from].iter().any(|ty| matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::E4m3 | Type::E5m2)) {
        return Err("this conversion isn't known".to_owned());
    }
    let whole = opcode.choose(WHOLE);
    let conversion = Conversion {
        to,
        from,
        whole: whole.is_some(),
        mode: whole.or(opcode.choose(ROUNDING)).unwrap_or(Mode::Nearest),
        flush: opcode.has("ftz"),
        saturate: opcode.has("sat"),
        relu: opcode.has("relu"),
    };
    let d = names(body, std::slice::from_ref(d))?.first().copied().unwrap_or(Register::Sink);
    let needed = if to.bytes() == 8 { matches!(d, Register::D(_)) } else { !matches!(d, Register::P(_)) };
    if !needed {
        return Err("the destination has the wrong class".to_owned());
    }
    // A source register may be wider than the type: its low bits are what is converted.
    let wide = matches!(a, Operand::Name(name, 0) if matches!(body.register(name), Some(Register::D(_))));
    let a = source(body, a, if wide { 8 } else { from.bytes() })?;
    Ok(Op::Convert { conversion, d, a })
}

fn branch<'a>(body: &mut Body<'_, 'a>, _: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [Operand::Name(label, 0)] = exactly(operands)? else { return Err("a label expected".to_owned()) };
    body.jumps_to([*label]);
    Ok(Op::Branch { target: 0 })
}

fn branch_table<'a>(body: &mut Body<'_, 'a>, _: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [index, Operand::Name(table, 0)] = exactly(operands)? else { return Err("a table expected".to_owned()) };
    let labels = body.table(table).ok_or_else(|| format!("there is no table {table}"))?.clone();
    let index = body.word(index)?;
    body.jumps_to(labels);
    Ok(Op::BranchTable { index, targets: Vec::new() })
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi` and their like.
fn carry<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let first = opcode.parts.first().copied().unwrap_or_default();
    let kind = match (first, opcode.parts.get(1)) {
        ("add" | "addc", _) => CarryKind::Add,
        ("sub" | "subc", _) => CarryKind::Sub,
        ("mad" | "madc", Some(&"lo")) => CarryKind::MadLow,
        ("mad" | "madc", Some(&"hi")) => CarryKind::MadHigh,
        _ => return Err("this instruction isn't known".to_owned()),
    };
    let ty = type_at_end(opcode)?;
    let wide = ty.bytes() == 8;
    let signed = matches!(ty, Type::Signed(_)) && kind == CarryKind::MadHigh;
    if signed || (wide && matches!(kind, CarryKind::MadLow | CarryKind::MadHigh)) {
        return Err("this multiplication with carry isn't known".to_owned());
    }
    let count = if matches!(kind, CarryKind::Add | CarryKind::Sub) { 3 } else { 4 };
    let [d, sources @ ..] = operands else { return Err("operands missing".to_owned()) };
    if operands.len() != count {
        return Err(format!("{count} operands expected, found {}", operands.len()));
    }
    let mut a = [0; 3];
    for (a, operand) in a.iter_mut().zip(sources) {
        *a = if wide { body.double(operand)? } else { body.word(operand)? };
    }
    let d = if wide { body.double_destination(d)? } else { body.word_destination(d)? };
    Ok(Op::Carry { kind, reads: first.ends_with('c'), writes: opcode.has("cc"), wide, d, a })
}

/// The state space that the name has, if any.
pub(super) fn space(opcode: &Opcode<'_>) -> Option<Space> {
    opcode.choose(&[
        ("global", Space::Global),
        ("const", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("param", Space::Param),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
    ])
}
