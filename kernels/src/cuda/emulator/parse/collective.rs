//! Instructions of several threads: barriers, exchanges between lanes, and matrix multiplication.

use super::super::ir::{Barrier, BarrierReduce, Mma, Op, Reduce, Register, Shuffle, Type, Vote};
use super::body::Body;
use super::instr::{Decoded, Opcode, exactly, names, type_of};
use super::operand::Operand;

pub(super) fn barrier<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let parts: Vec<&str> = opcode.parts.iter().copied().filter(|part| *part != "cta").collect();
    if parts.starts_with(&["bar", "warp", "sync"]) {
        let [mask] = exactly(operands)?;
        return Ok(Op::WarpSync { mask: body.word(mask)? });
    }
    let aligned = parts.first() == Some(&"bar") || opcode.has("aligned");
    let mut operands = operands;
    let (mut waits, mut reduce) = (true, None);
    match parts.get(1) {
        Some(&"sync") => {}
        Some(&"arrive") => waits = false,
        Some(&"red") => {
            let [d, rest @ .., condition] = operands else { return Err("operands missing".to_owned()) };
            let kinds = [("and", BarrierReduce::And), ("or", BarrierReduce::Or), ("popc", BarrierReduce::Popc)];
            let kind = opcode.choose(&kinds).ok_or("this reduction isn't known")?;
            let d = names(body, std::slice::from_ref(d))?.first().copied().unwrap_or(Register::Sink);
            let fits = matches!((kind, d), (BarrierReduce::Popc, Register::W(..)) | (_, Register::P(_)));
            if !fits {
                return Err("the destination has the wrong class".to_owned());
            }
            reduce = Some((kind, d, body.predicate(condition)?));
            operands = rest;
        }
        _ => return Err("this barrier isn't known".to_owned()),
    }
    let (id, threads) = match operands {
        [id] => (body.word(id)?, None),
        [id, threads] => (body.word(id)?, Some(body.word(threads)?)),
        _ => return Err("this number of operands isn't known".to_owned()),
    };
    if !waits && threads.is_none() {
        return Err("an arrival needs a number of threads".to_owned());
    }
    Ok(Op::Barrier(Box::new(Barrier { id, threads, waits, aligned, reduce })))
}

/// `d` or `d|p`: a register and a predicate.
fn with_predicate(body: &Body<'_, '_>, operand: &Operand<'_>) -> Result<(Register, Register), String> {
    let (d, p) = match operand {
        Operand::Name(d, 0) => (body.destination(d)?, Register::Sink),
        Operand::Pair(d, p) => (body.destination(d)?, body.destination(p)?),
        other => return Err(format!("{other:?} isn't a register")),
    };
    let fits = matches!(d, Register::W(..) | Register::Sink) && matches!(p, Register::P(_) | Register::Sink);
    if fits { Ok((d, p)) } else { Err("the destination has the wrong class".to_owned()) }
}

pub(super) fn shuffle<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let modes = [("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Butterfly), ("idx", Shuffle::Index)];
    let mode = opcode.choose(&modes).filter(|_| opcode.has("sync")).ok_or("this exchange isn't known")?;
    let [d, a, b, c, mask] = exactly(operands)?;
    let (d, valid) = with_predicate(body, d)?;
    let (a, b, c, mask) = (body.word(a)?, body.word(b)?, body.word(c)?, body.word(mask)?);
    Ok(Op::Shuffle { mode, d, valid, a, b, c, mask })
}

pub(super) fn vote<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let modes = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uniform), ("ballot", Vote::Ballot)];
    let mode = opcode.choose(&modes).filter(|_| opcode.has("sync")).ok_or("this vote isn't known")?;
    let [Operand::Name(d, 0), a, mask] = exactly(operands)? else { return Err("a register expected".to_owned()) };
    let d = body.destination(d)?;
    if !matches!((mode, d), (Vote::Ballot, Register::W(..)) | (Vote::All | Vote::Any | Vote::Uniform, Register::P(_))) {
        return Err("the destination has the wrong class".to_owned());
    }
    Ok(Op::Vote { mode, d, a: body.predicate(a)?, mask: body.word(mask)? })
}

pub(super) fn matching<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, a, mask] = exactly(operands)?;
    let (Register::W(d, _), valid) = with_predicate(body, d)? else { return Err("a register expected".to_owned()) };
    let a = match opcode.last() {
        "b64" => Register::D(body.double(a)?),
        "b32" => Register::W(body.word(a)?, 32),
        _ => return Err("this type isn't known".to_owned()),
    };
    let all = opcode.choose(&[("all", true), ("any", false)]).ok_or("this comparison isn't known")?;
    Ok(Op::Match { all, d, valid, a, mask: body.word(mask)? })
}

pub(super) fn active_mask<'a>(body: &mut Body<'_, 'a>, _: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d] = exactly(operands)?;
    Ok(Op::ActiveMask { d: body.word_destination(d)? })
}

pub(super) fn reduce<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let kinds = [
        ("add", Reduce::Add),
        ("min", Reduce::Min),
        ("max", Reduce::Max),
        ("and", Reduce::And),
        ("or", Reduce::Or),
        ("xor", Reduce::Xor),
    ];
    let reduce = opcode.choose(&kinds).ok_or("this reduction isn't known")?;
    let signed = opcode.choose(&[("s32", true), ("u32", false), ("b32", false)]).ok_or("this type isn't known")?;
    let [d, a, mask] = exactly(operands)?;
    Ok(Op::Reduce { reduce, signed, d: body.word_destination(d)?, a: body.word(a)?, mask: body.word(mask)? })
}

pub(super) fn elect<'a>(body: &mut Body<'_, 'a>, _: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let [d, mask] = exactly(operands)?;
    let (d, elected) = with_predicate(body, d)?;
    Ok(Op::Elect { d, elected, mask: body.word(mask)? })
}

pub(super) fn transpose<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    if opcode.text != "movmatrix.sync.aligned.m8n8.trans.b16" {
        return Err("this movement isn't known".to_owned());
    }
    let [d, a] = exactly(operands)?;
    Ok(Op::MatrixTranspose { d: body.word_destination(d)?, a: body.word(a)? })
}

/// Bits of an element of A or B.
pub(super) fn element_bits(ty: Type) -> Option<u32> {
    Some(match ty {
        Type::F16 | Type::Bf16 => 16,
        Type::Tf32 => 32,
        Type::E4m3 | Type::E5m2 | Type::Signed(8) | Type::Unsigned(8) => 8,
        _ => return None,
    })
}

/// Shapes (rows of A, k) that exist for a width of element.
const SHAPES: &[(&str, u32, u32, u32)] = &[
    ("m16n8k8", 16, 8, 16),
    ("m16n8k16", 16, 16, 16),
    ("m16n8k4", 16, 4, 32),
    ("m16n8k8", 16, 8, 32),
    ("m16n8k16", 16, 16, 8),
    ("m16n8k32", 16, 32, 8),
    ("m8n8k16", 8, 16, 8),
];

pub(super) fn mma<'a>(body: &mut Body<'_, 'a>, opcode: &Opcode<'_>, operands: &[Operand<'a>]) -> Decoded {
    let (shape, rest) = match opcode.parts.as_slice() {
        ["mma", "sync", "aligned", shape, "row", "col", rest @ ..] => (*shape, rest),
        _ => return Err("this multiplication isn't known".to_owned()),
    };
    let (saturate, types) = match rest {
        ["satfinite", types @ ..] => (true, types),
        types => (false, types),
    };
    let types: Vec<Type> = types.iter().filter_map(|word| type_of(word)).collect();
    let &[accumulator, a_type, b_type, c_type] = types.as_slice() else {
        return Err("four types expected".to_owned());
    };
    let bits =
        element_bits(a_type).filter(|&bits| element_bits(b_type) == Some(bits)).ok_or("these types aren't known")?;
    let integer = |ty| matches!(ty, Type::Signed(8) | Type::Unsigned(8));
    let types_fit = match accumulator {
        Type::Signed(32) => integer(a_type) && integer(b_type),
        Type::F32 => !integer(a_type) && !integer(b_type) && (bits == 8 || a_type == b_type) && !saturate,
        Type::F16 => a_type == Type::F16 && b_type == Type::F16 && !saturate,
        _ => false,
    };
    if !types_fit || accumulator != c_type {
        return Err("these types aren't known".to_owned());
    }
    let found = SHAPES.iter().find(|(name, _, _, width)| *name == shape && *width == bits);
    let &(_, rows, k, _) = found.ok_or("this shape isn't known")?;
    // FP8 has the large shape only.
    if !integer(a_type) && bits == 8 && k != 32 {
        return Err("this shape isn't known".to_owned());
    }
    let [d, a, b, c] = exactly(operands)?;
    let per_register = 32 / bits;
    let a_registers = rows * k / per_register / 32;
    let b_registers = 8 * k / per_register / 32;
    let results = rows * 8 / 32 / if accumulator == Type::F16 { 2 } else { 1 };
    let mut registers = |operand: &Operand<'a>, count: u32, is_source: bool| {
        let Operand::Vector(parts) = operand else { return Err("a vector expected".to_owned()) };
        if parts.len() != count as usize {
            return Err(format!("{count} registers expected, found {}", parts.len()));
        }
        let one = |part| if is_source { body.word(part) } else { body.word_destination(part) };
        parts.iter().map(one).collect::<Result<Vec<_>, _>>()
    };
    let (d, a) = (registers(d, results, false)?, registers(a, a_registers, true)?);
    let (b, c) = (registers(b, b_registers, true)?, registers(c, results, true)?);
    let k = k as u8;
    Ok(Op::Mma(Box::new(Mma { k, a_type, b_type, accumulator, saturate, d, a, b, c })))
}
