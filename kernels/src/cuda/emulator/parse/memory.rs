//! Loads, stores, atomics, copies and addresses.

use super::super::ir::{Access, Address, AtomicKind, Base, Constant, Op, Register, Space, Type};
use super::body::{Body, Symbol};
use super::instr::{Decoded, Opcode, exactly, names, source, space, type_at_end};
use super::operand::Operand;

/// Decodes `[base + offset]` of an instruction on `space`.
fn address<'a>(body: &mut Body<'_, 'a>, operand: &Operand<'a>, space: Space) -> Result<Address, String> {
    let Operand::Memory(base, offset) = operand else { return Err("an address expected".to_owned()) };
    let mut offset = *offset;
    let mut space = space;
    let base = match base.as_ref() {
        Operand::Integer(value) => {
            offset = offset.wrapping_add(*value as i64);
            Base::None
        }
        Operand::Name(name, 0) => match (body.register(name), body.symbol(name)) {
            (Some(Register::W(index, _)), _) => Base::W(index),
            (Some(Register::D(index)), _) => Base::D(index),
            (_, Some(symbol @ (Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at)))) => {
                offset = offset.wrapping_add(at as i64);
                // The parameters of a call, other than those of the kernel, are local memory.
                if space == Space::Param && matches!(symbol, Symbol::Local(_)) {
                    space = Space::Local;
                }
                Base::None
            }
            (_, Some(Symbol::Global(variable))) => {
                Base::D(body.double_constant(Constant::Global { variable, offset: 0 }))
            }
            _ => return Err(format!("{name} is neither a register nor a variable")),
        },
        other => return Err(format!("{other:?} isn't an address")),
    };
    Ok(Address { space, base, offset })
}

/// Qualifiers of loads and stores that change nothing here: caches, scopes, and orders weaker than what lockstep gives.
const IGNORED: &[&str] = &[
    "weak",
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_first",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "global",
    "const",
    "shared",
    "shared::cta",
    "local",
    "param",
    "param::entry",
    "param::func",
];
const STRONG: &[&str] = &["volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"];

fn access<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, place: &Operand<'a>) -> Result<Access, String> {
    let ty = type_at_end(opcode)?;
    let count = opcode.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let mut qualifiers = opcode.parts[1..opcode.parts.len() - 1].iter();
    let known = |part: &&&str| IGNORED.contains(part) || STRONG.contains(part) || matches!(**part, "v2" | "v4" | "v8");
    if let Some(part) = qualifiers.find(|part| !known(part)) {
        return Err(format!(".{part} isn't known"));
    }
    if ty.bytes() * count > 32 {
        return Err("a vector that wide isn't known".to_owned());
    }
    let space = space(opcode).unwrap_or(Space::Generic);
    Ok(Access {
        address: address(body, place, space)?,
        width: ty.bytes(),
        signed: matches!(ty, Type::Signed(_)),
        count,
        strong: STRONG.iter().any(|part| opcode.has(part)),
        registers: [Register::Sink; 8],
    })
}

/// The elements of a vector operand, or the operand alone.
fn elements<'o, 'a>(operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
    match operand {
        Operand::Vector(parts) => parts,
        single => std::slice::from_ref(single),
    }
}

pub(super) fn load<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, place] = exactly(operands)?;
    let mut access = access(body, opcode, place)?;
    let registers = names(body, elements(d))?;
    if registers.len() != usize::from(access.count) {
        return Err("as many registers expected as the vector has elements".to_owned());
    }
    for (slot, register) in access.registers.iter_mut().zip(registers) {
        let fits = match register {
            Register::P(_) => false,
            Register::W(_, bits) => access.width * 8 <= bits,
            Register::D(_) | Register::Sink => true,
        };
        if !fits {
            return Err("the destination is too narrow".to_owned());
        }
        *slot = register;
    }
    Ok(Op::Load(Box::new(access)))
}

pub(super) fn store<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [place, value] = exactly(operands)?;
    let mut access = access(body, opcode, place)?;
    let values = elements(value);
    if values.len() != usize::from(access.count) {
        return Err("as many registers expected as the vector has elements".to_owned());
    }
    for (slot, value) in access.registers.iter_mut().zip(values) {
        // A register wider than the type gives its low bits.
        let wide = matches!(value, Operand::Name(name, 0) if matches!(body.register(name), Some(Register::D(_))));
        *slot = source(body, value, if wide { 8 } else { access.width })?;
    }
    Ok(Op::Store(Box::new(access)))
}

const ATOMICS: &[(&str, AtomicKind)] = &[
    ("add", AtomicKind::Add),
    ("min", AtomicKind::Min),
    ("max", AtomicKind::Max),
    ("and", AtomicKind::And),
    ("or", AtomicKind::Or),
    ("xor", AtomicKind::Xor),
    ("exch", AtomicKind::Exchange),
    ("cas", AtomicKind::Cas),
    ("inc", AtomicKind::Inc),
    ("dec", AtomicKind::Dec),
];

pub(super) fn atomic<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let kind = opcode.choose(ATOMICS).ok_or("this operation isn't known")?;
    let ty = type_at_end(opcode)?;
    let float = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::F32 | Type::F64);
    let known = match kind {
        AtomicKind::Add => !matches!(ty, Type::Tf32 | Type::E4m3 | Type::E5m2),
        AtomicKind::Min | AtomicKind::Max => matches!(ty, Type::Unsigned(32 | 64) | Type::Signed(32 | 64)),
        AtomicKind::Inc | AtomicKind::Dec => ty == Type::Unsigned(32),
        _ => !float,
    };
    let vector = opcode.parts.iter().any(|part| matches!(*part, "v2" | "v4" | "v8"));
    if !known || vector || ty.bytes() == 1 {
        return Err("this operation on this type isn't known".to_owned());
    }
    let space = space(opcode).unwrap_or(Space::Generic);
    let returns = opcode.parts.first() == Some(&"atom");
    let (d, rest) = match (returns, operands) {
        (true, [d, rest @ ..]) => (names(body, std::slice::from_ref(d))?.first().copied(), rest),
        (_, rest) => (None, rest),
    };
    let [place, values @ ..] = rest else { return Err("operands missing".to_owned()) };
    if values.len() != if kind == AtomicKind::Cas { 2 } else { 1 } {
        return Err("this number of operands isn't known".to_owned());
    }
    let d = d.unwrap_or(Register::Sink);
    if matches!(d, Register::P(_)) || matches!(d, Register::D(_)) != (ty.bytes() == 8) && d != Register::Sink {
        return Err("the destination has the wrong class".to_owned());
    }
    let address = address(body, place, space)?;
    let mut value = |at: usize| match values.get(at) {
        Some(value) => source(body, value, ty.bytes()),
        None => Ok(Register::Sink),
    };
    let (b, c) = (value(0)?, value(1)?);
    Ok(Op::Atomic { kind, ty, address, d, b, c })
}

/// `cvta.space` and `cvta.to.space`.
pub(super) fn cvta<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, a] = exactly(operands)?;
    let space = space(opcode).ok_or("a state space is missing")?;
    let wide = opcode.last() == "u64";
    let d = match wide {
        true => Register::D(body.double_destination(d)?),
        false => return Err("addresses of 32 bits aren't known".to_owned()),
    };
    Ok(Op::Window { space, to_generic: !opcode.has("to"), d, a: source(body, a, 8)? })
}

pub(super) fn isspacep<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [Operand::Name(d, 0), a] = exactly(operands)? else { return Err("a predicate expected".to_owned()) };
    let space = space(opcode).ok_or("a state space is missing")?;
    Ok(Op::IsSpace { space, d: body.predicate_register(d)?, a: body.double(a)? })
}

/// `cp.async` and what waits for it.
pub(super) fn copy_async<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    match opcode.parts.as_slice() {
        ["cp", "async", "commit_group"] => return Ok(Op::CopyCommit),
        ["cp", "async", "wait_all"] => return Ok(Op::CopyWait { pending: None }),
        ["cp", "async", "wait_group"] => {
            let [Operand::Integer(pending)] = exactly(operands)? else { return Err("a number expected".to_owned()) };
            return Ok(Op::CopyWait { pending: Some(u32::try_from(*pending).unwrap_or(u32::MAX)) });
        }
        ["cp", "async", "ca" | "cg", "shared" | "shared::cta", "global", ..] => {}
        _ => return Err("this copy isn't known".to_owned()),
    }
    if opcode.has("L2::cache_hint") {
        return Err("cache policies aren't known".to_owned());
    }
    let (Some(to), Some(from), Some(Operand::Integer(bytes))) = (operands.first(), operands.get(1), operands.get(2))
    else {
        return Err("two addresses and a size expected".to_owned());
    };
    let bytes = match (bytes, opcode.has("ca")) {
        (4 | 8, true) | (16, _) => *bytes as u8,
        _ => return Err(format!("{bytes} bytes can't be copied this way")),
    };
    let to = address(body, to, Space::Shared)?;
    let from = address(body, from, Space::Global)?;
    let (mut source_bytes, mut ignore) = (None, None);
    match operands.get(3) {
        None => {}
        Some(Operand::Name(name, 0)) if matches!(body.register(name), Some(Register::P(_))) => {
            ignore = Some(body.predicate(&operands[3])?);
        }
        Some(size) => source_bytes = Some(body.word(size)?),
    }
    Ok(Op::CopyAsync { to, from, bytes, source_bytes, ignore })
}

fn matrices<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operand: &Operand<'a>) -> Result<Vec<u32>, String> {
    let count = opcode.choose(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or("a number of matrices expected")?;
    if !opcode.has("m8n8") || opcode.last() != "b16" {
        return Err("matrices of this shape aren't known".to_owned());
    }
    if !matches!(space(opcode), Some(Space::Shared) | None) {
        return Err("matrices are in shared memory".to_owned());
    }
    let registers = elements(operand);
    if registers.len() != count {
        return Err("as many registers expected as there are matrices".to_owned());
    }
    registers.iter().map(|register| body.word_destination(register)).collect()
}

pub(super) fn load_matrix<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, place] = exactly(operands)?;
    let d = matrices(body, opcode, d)?;
    let space = space(opcode).unwrap_or(Space::Generic);
    Ok(Op::MatrixLoad { address: address(body, place, space)?, transpose: opcode.has("trans"), d })
}

pub(super) fn store_matrix<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [place, a] = exactly(operands)?;
    let a = matrices(body, opcode, a)?;
    let space = space(opcode).unwrap_or(Space::Generic);
    Ok(Op::MatrixStore { address: address(body, place, space)?, transpose: opcode.has("trans"), a })
}
