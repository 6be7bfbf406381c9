//! A warp: registers, lanes in lockstep, and how they part and meet.
//!
//! Lanes that stand at the same instruction form a group. The group that runs is always the one furthest behind (the
//! smallest position in the text), so that groups meet again where a branch's arms join, and a loop's early leavers wait
//! behind it for the others.

use super::super::error::Trap;
use super::super::ir::{CarryKind, Compare, Double, Index, LANES, Logic, Map, Op, Predicate, Register, Word};
use super::copy::Copies;
use super::lanes::{blend_double, blend_word, first, lanes};
use super::launch::{Env, thread_index};

/// What a group waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A barrier of the block.
    Barrier { id: u32, threads: Option<u32>, aligned: bool },
    /// The other lanes of a mask, at the same instruction.
    Lanes(u32),
}

/// Lanes at the same instruction that aren't running.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) pc: usize,
    pub(super) mask: u32,
    pub(super) wait: Option<Wait>,
}

/// A warp.
pub(super) struct Warp {
    pub(super) index: usize,
    pub(super) words: Vec<Word>,
    pub(super) doubles: Vec<Double>,
    predicates: Vec<u32>,
    carry: u32,
    /// Lanes that exist: a block's last warp may have fewer.
    lanes: u32,
    exited: u32,
    /// The running group.
    pub(super) pc: usize,
    pub(super) active: u32,
    /// Position at which another group that could run stands; the smallest one.
    limit: usize,
    pub(super) groups: Vec<Group>,
    /// Arrivals at barriers since the block looked: barrier, threads, and what the warp knew.
    pub(super) arrivals: Vec<(usize, u32, Vec<u32>)>,
    /// Thread-local memory, lane after lane.
    pub(super) local: Vec<u8>,
    pub(super) copies: Copies,
}

impl Warp {
    /// A warp with its special registers and constants, before its first block.
    pub(super) fn new(env: &Env<'_>, index: u32, threads: u32, doubles: &[(Index, u64)]) -> Self {
        let program = env.program;
        let existing = (threads - index * LANES as u32).min(LANES as u32);
        let mut warp = Self {
            index: index as usize,
            words: vec![[0; LANES]; program.words as usize],
            doubles: vec![[0; LANES]; program.doubles as usize],
            predicates: vec![0; program.predicates as usize],
            carry: 0,
            lanes: u32::MAX >> (LANES as u32 - existing),
            exited: 0,
            pc: 0,
            active: 0,
            limit: usize::MAX,
            groups: Vec::new(),
            arrivals: Vec::new(),
            local: vec![0; program.local_bytes as usize * LANES],
            copies: Copies::default(),
        };
        for lane in 0..LANES as u32 {
            let bit = 1u32 << lane;
            let [tid_x, tid_y, tid_z] = thread_index(env.launch.block, index * LANES as u32 + lane);
            let [ntid_x, ntid_y, ntid_z] = env.launch.block;
            let [nctaid_x, nctaid_y, nctaid_z] = env.launch.grid;
            // In the order of `SPECIALS`; the block's index comes later.
            let specials = [
                tid_x,
                tid_y,
                tid_z,
                ntid_x,
                ntid_y,
                ntid_z,
                0,
                0,
                0,
                nctaid_x,
                nctaid_y,
                nctaid_z,
                lane,
                index,
                threads.div_ceil(LANES as u32),
                bit,
                bit - 1,
                bit | (bit - 1),
                !(bit | (bit - 1)),
                !(bit - 1),
                0,
                1,
                env.launch.dynamic_shared,
                LANES as u32,
            ];
            for (register, special) in warp.words.iter_mut().zip(specials) {
                register[lane as usize] = special;
            }
        }
        for &(index, constant) in &program.word_constants {
            if let super::super::ir::Constant::Value(value) = constant {
                warp.words[index as usize] = [value as u32; LANES];
            }
        }
        for &(index, value) in doubles {
            warp.doubles[index as usize] = [value; LANES];
        }
        warp
    }

    /// Puts all lanes at the start of the program, in another block.
    pub(super) fn start(&mut self, block: [u32; 3]) {
        for (register, id) in self.words[6..9].iter_mut().zip(block) {
            *register = [id; LANES];
        }
        self.exited = 0;
        self.pc = 0;
        self.active = self.lanes;
        self.limit = usize::MAX;
        self.groups.clear();
        self.copies.clear();
    }

    /// Lanes that exist and haven't exited.
    pub(super) fn alive(&self) -> u32 {
        self.lanes & !self.exited
    }

    pub(super) fn finished(&self) -> bool {
        self.alive() == 0
    }

    /// Lanes of the groups whose wait is as asked.
    pub(super) fn waiting(&self, at: impl Fn(Option<Wait>) -> bool) -> u32 {
        self.groups.iter().filter(|group| at(group.wait)).fold(0, |mask, group| mask | group.mask)
    }

    /// Line of the instruction that the running group stands at.
    pub(super) fn line(&self, env: &Env<'_>) -> u32 {
        env.program.code.get(self.pc).map_or(0, |instr| instr.line)
    }

    /// Runs until nothing can go on or the turn is over; says whether it could go on.
    pub(super) fn run(&mut self, env: &mut Env<'_>, turn: u64) -> Result<bool, Trap> {
        let program = env.program;
        for _ in 0..turn {
            if self.active == 0 || self.pc >= self.limit {
                self.regroup();
                if self.active == 0 {
                    return Ok(false);
                }
            }
            let instr = &program.code[self.pc];
            let mask = match instr.guard {
                Some(guard) => self.active & self.predicate(guard),
                None => self.active,
            };
            env.clock += 1;
            if mask == 0 {
                self.pc += 1;
                continue;
            }
            self.step(env, &instr.op, mask)?;
        }
        Ok(true)
    }

    /// Puts the running group back and takes the one furthest behind, with all that stand at the same place.
    fn regroup(&mut self) {
        if self.active != 0 {
            self.groups.push(Group { pc: self.pc, mask: self.active, wait: None });
            self.active = 0;
        }
        self.limit = usize::MAX;
        let runnable = self.groups.iter().filter(|group| group.wait.is_none());
        let Some(pc) = runnable.map(|group| group.pc).min() else { return };
        self.pc = pc;
        let (active, limit) = (&mut self.active, &mut self.limit);
        self.groups.retain(|group| {
            let joins = group.wait.is_none() && group.pc == pc;
            if joins {
                *active |= group.mask;
            } else if group.wait.is_none() {
                *limit = (*limit).min(group.pc);
            }
            !joins
        });
    }

    /// Stops lanes of the running group at this instruction. Lanes that already wait here for the same join them.
    pub(super) fn park(&mut self, mask: u32, wait: Wait) {
        let pc = self.pc;
        self.active &= !mask;
        if self.active != 0 {
            // The lanes whose guard was false go on.
            self.pc += 1;
        }
        match self.groups.iter_mut().find(|group| group.pc == pc && group.wait == Some(wait)) {
            Some(group) => group.mask |= mask,
            None => self.groups.push(Group { pc, mask, wait: Some(wait) }),
        }
    }

    /// Whether all lanes of `wanted` that still live are at this instruction: otherwise those of `mask` wait for them.
    /// Returns the lanes that run it together.
    pub(super) fn gather(&mut self, mask: u32, wanted: u32, what: &str) -> Result<Option<u32>, Trap> {
        if mask & !wanted != 0 {
            let lane = first(mask & !wanted) as u32;
            return Err(Trap::new(lane, format!("{what} by a lane that isn't in its mask {wanted:#010x}")));
        }
        let pc = self.pc;
        let wait = Wait::Lanes(wanted);
        let here = self.groups.iter().position(|group| group.pc == pc && group.wait == Some(wait));
        let parked = here.map_or(0, |at| self.groups[at].mask);
        let together = mask | parked;
        if wanted & self.alive() & !together != 0 {
            self.park(mask, wait);
            return Ok(None);
        }
        if let Some(at) = here {
            self.groups.swap_remove(at);
            self.active |= parked;
        }
        Ok(Some(together))
    }

    /// The lanes for which a predicate operand holds.
    #[inline]
    pub(super) fn predicate(&self, predicate: Predicate) -> u32 {
        let value = self.predicates[predicate.index as usize];
        if predicate.negated { !value } else { value }
    }

    pub(super) fn set_predicate(&mut self, d: Register, value: u32, mask: u32) {
        if let Register::P(index) = d {
            let register = &mut self.predicates[index as usize];
            *register = *register & !mask | value & mask;
        }
    }

    #[inline]
    pub(super) fn word(&self, index: Index) -> &Word {
        &self.words[index as usize]
    }

    #[inline]
    pub(super) fn double(&self, index: Index) -> &Double {
        &self.doubles[index as usize]
    }

    #[inline]
    pub(super) fn put_word(&mut self, index: Index, value: &Word, mask: u32) {
        blend_word(&mut self.words[index as usize], value, mask);
    }

    #[inline]
    pub(super) fn put_double(&mut self, index: Index, value: &Double, mask: u32) {
        blend_double(&mut self.doubles[index as usize], value, mask);
    }

    /// Stores in a word register of any declared width, if there is one.
    pub(super) fn set_word(&mut self, d: Register, value: &Word, mask: u32) {
        match d {
            Register::W(index, 16) => self.put_word(index, &value.map(|value| value & 0xffff), mask),
            Register::W(index, _) => self.put_word(index, value, mask),
            _ => {}
        }
    }

    /// A lane's value of a register of any class.
    #[inline]
    pub(super) fn get(&self, register: Register, lane: usize) -> u64 {
        match register {
            Register::P(index) => u64::from(self.predicates[index as usize] >> lane & 1),
            Register::W(index, _) => u64::from(self.words[index as usize][lane]),
            Register::D(index) => self.doubles[index as usize][lane],
            Register::Sink => 0,
        }
    }

    /// Sets a lane's value of a register of any class, cut to its width.
    #[inline]
    pub(super) fn set(&mut self, register: Register, lane: usize, value: u64) {
        match register {
            Register::W(index, 16) => self.words[index as usize][lane] = value as u32 & 0xffff,
            Register::W(index, _) => self.words[index as usize][lane] = value as u32,
            Register::D(index) => self.doubles[index as usize][lane] = value,
            Register::P(_) | Register::Sink => {}
        }
    }

    fn step(&mut self, env: &mut Env<'_>, op: &Op, mask: u32) -> Result<(), Trap> {
        match op {
            Op::Map { map, d, a } => self.map(*map, *d, a, mask),
            Op::MoveW { d, a } => {
                let value = *self.word(*a);
                self.put_word(*d, &value, mask);
            }
            Op::MoveD { d, a } => {
                let value = *self.double(*a);
                self.put_double(*d, &value, mask);
            }
            Op::Setp { compare, d, inverse, a, b, combine } => {
                let truth = self.compare(*compare, *a, *b);
                let (plain, opposite) = match combine {
                    Some((logic, c)) => {
                        let c = self.predicate(*c);
                        (apply(*logic, truth, c), apply(*logic, !truth, c))
                    }
                    None => (truth, !truth),
                };
                self.set_predicate(*d, plain, mask);
                self.set_predicate(*inverse, opposite, mask);
            }
            Op::SetpPacked { compare, d, upper, a, b, combine } => {
                for (d, half) in [(*d, 0), (*upper, 1)] {
                    let mut holds = self.compare_half(*compare, *a, *b, half);
                    if let Some((logic, c)) = combine {
                        holds = apply(*logic, holds, self.predicate(*c));
                    }
                    self.set_predicate(d, holds, mask);
                }
            }
            Op::Set { compare, d, a, b, combine, truth, packed } => {
                let halves = if *packed { 2 } else { 1 };
                let mut value = [0; LANES];
                for half in 0..halves {
                    let mut holds = match packed {
                        true => self.compare_half(*compare, *a, *b, half),
                        false => self.compare(*compare, *a, *b),
                    };
                    if let Some((logic, c)) = combine {
                        holds = apply(*logic, holds, self.predicate(*c));
                    }
                    for lane in lanes(holds) {
                        value[lane] |= truth << (16 * half);
                    }
                }
                self.put_word(*d, &value, mask);
            }
            Op::SelectW { d, a, b, p } => {
                let (p, mut value) = (self.predicates[*p as usize], *self.word(*b));
                blend_word(&mut value, self.word(*a), p);
                self.put_word(*d, &value, mask);
            }
            Op::SelectD { d, a, b, p } => {
                let (p, mut value) = (self.predicates[*p as usize], *self.double(*b));
                blend_double(&mut value, self.double(*a), p);
                self.put_double(*d, &value, mask);
            }
            Op::Logic { logic, d, a, b } => {
                let (a, b) = (self.predicate(*a), self.predicate(*b));
                let value = logic.map_or(a, |logic| apply(logic, a, b));
                self.set_predicate(Register::P(*d), value, mask);
            }
            Op::Load(access) => self.load(env, access, mask)?,
            Op::Store(access) => self.store(env, access, mask)?,
            Op::Branch { target } => {
                self.branch(*target as usize, mask);
                return Ok(());
            }
            Op::BranchTable { index, targets } => return self.branch_table(*index, targets, mask),
            Op::Exit => {
                self.exited |= mask;
                self.active &= !mask;
                // A copy that nobody waits for has no effect that anyone may count on.
                self.copies.forget(mask);
            }
            Op::Pack { to, from, unit } => self.pack(to, from, *unit, mask),
            Op::Convert { conversion, d, a } => {
                for lane in lanes(mask) {
                    let value = conversion.apply(self.get(*a, lane));
                    self.set(*d, lane, value);
                }
            }
            Op::Carry { kind, reads, writes, wide, d, a } => {
                self.add_with_carry(*kind, *reads, *writes, *wide, *d, a, mask)
            }
            Op::Clock { d } => {
                for lane in lanes(mask) {
                    self.set(*d, lane, env.clock);
                }
            }
            Op::Atomic { kind, ty, address, d, b, c } => self.atomic(env, *kind, *ty, address, [*d, *b, *c], mask)?,
            Op::Window { space, to_generic, d, a } => self.window(*space, *to_generic, *d, *a, mask),
            Op::IsSpace { space, d, a } => self.is_space(*space, *d, *a, mask),
            Op::Trap => return Err(Trap::new(first(mask) as u32, "the program traps")),
            Op::Nop => {}
            Op::Barrier(barrier) => return self.barrier(env, barrier, mask),
            Op::WarpSync { mask: wanted } => {
                let wanted = self.word(*wanted)[first(mask)];
                if self.gather(mask, wanted, "bar.warp.sync")?.is_none() {
                    return Ok(());
                }
                env.shared.warp_barrier(self.index);
            }
            Op::Shuffle { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Reduce { .. } | Op::Elect { .. } => {
                if !self.exchange(op, mask)? {
                    return Ok(());
                }
            }
            Op::ActiveMask { d } => self.put_word(*d, &[mask; LANES], mask),
            Op::CopyAsync { to, from, bytes, source_bytes, ignore } => {
                self.copy_async(env, [to, from], *bytes, *source_bytes, *ignore, mask)?;
            }
            Op::CopyCommit => self.copies.commit(mask),
            Op::CopyWait { pending } => self.copy_wait(env, *pending, mask)?,
            Op::MatrixLoad { address, transpose, d } => self.load_matrices(env, address, *transpose, d, mask)?,
            Op::MatrixStore { address, transpose, a } => self.store_matrices(env, address, *transpose, a, mask)?,
            Op::MatrixTranspose { d, a } => self.transpose(*d, *a, mask)?,
            Op::Mma(mma) => self.mma(mma, mask)?,
        }
        self.pc += 1;
        Ok(())
    }

    fn compare(&self, compare: Compare, a: Index, b: Index) -> u32 {
        match compare {
            Compare::W(f) => f(self.word(a), self.word(b)),
            Compare::D(f) => f(self.double(a), self.double(b)),
        }
    }

    /// Compares the lower (0) or upper (1) halves of words; the comparisons of halves look at the low bits only.
    fn compare_half(&self, compare: Compare, a: Index, b: Index, half: u32) -> u32 {
        let shifted = |index: Index| self.word(index).map(|value| value >> (16 * half));
        match compare {
            Compare::W(f) => f(&shifted(a), &shifted(b)),
            Compare::D(_) => 0,
        }
    }

    #[inline]
    fn map(&mut self, map: Map, d: Index, &[a, b, c, e]: &[Index; 4], mask: u32) {
        let w = |index: Index| &self.words[index as usize];
        let l = |index: Index| &self.doubles[index as usize];
        let word = match map {
            Map::WW(f) => f(w(a)),
            Map::WWW(f) => f(w(a), w(b)),
            Map::WWWW(f) => f(w(a), w(b), w(c)),
            Map::WWWWW(f) => f(w(a), w(b), w(c), w(e)),
            Map::WD(f) => f(l(a)),
            _ => {
                let double = match map {
                    Map::DW(f) => f(w(a)),
                    Map::DWW(f) => f(w(a), w(b)),
                    Map::DWWD(f) => f(w(a), w(b), l(c)),
                    Map::DD(f) => f(l(a)),
                    Map::DDD(f) => f(l(a), l(b)),
                    Map::DDDD(f) => f(l(a), l(b), l(c)),
                    Map::DDW(f) => f(l(a), w(b)),
                    Map::DDWW(f) => f(l(a), w(b), w(c)),
                    Map::DDDWW(f) => f(l(a), l(b), w(c), w(e)),
                    _ => return,
                };
                self.put_double(d, &double, mask);
                return;
            }
        };
        self.put_word(d, &word, mask);
    }

    fn branch(&mut self, target: usize, mask: u32) {
        let staying = self.active & !mask;
        if staying == 0 {
            self.pc = target;
            return;
        }
        self.groups.push(Group { pc: target, mask, wait: None });
        self.limit = self.limit.min(target);
        self.active = staying;
        self.pc += 1;
    }

    fn branch_table(&mut self, index: Index, targets: &[u32], mask: u32) -> Result<(), Trap> {
        for lane in lanes(mask) {
            let entry = self.word(index)[lane] as usize;
            let Some(&target) = targets.get(entry) else {
                return Err(Trap::new(lane as u32, format!("jump to entry {entry} of a table of {}", targets.len())));
            };
            self.groups.push(Group { pc: target as usize, mask: 1 << lane, wait: None });
        }
        self.active &= !mask;
        self.pc += 1;
        self.regroup();
        Ok(())
    }

    fn pack(&mut self, to: &[Register], from: &[Register], unit: u8, mask: u32) {
        let unit = u32::from(unit);
        let ones = u64::MAX >> (64 - unit);
        for lane in lanes(mask) {
            let value = match from {
                [single] => self.get(*single, lane),
                many => many.iter().enumerate().fold(0, |value, (position, register)| {
                    value | (self.get(*register, lane) & ones) << (unit * position as u32)
                }),
            };
            match to {
                [single] => self.set(*single, lane, value),
                many => {
                    for (position, register) in many.iter().enumerate() {
                        self.set(*register, lane, value >> (unit * position as u32) & ones);
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn add_with_carry(
        &mut self,
        kind: CarryKind,
        reads: bool,
        writes: bool,
        wide: bool,
        d: Index,
        a: &[Index; 3],
        mask: u32,
    ) {
        let bits = if wide { 64 } else { 32 };
        for lane in lanes(mask) {
            let get =
                |index: Index| u128::from(if wide { self.double(index)[lane] } else { self.word(index)[lane].into() });
            let carry = u128::from(reads && self.carry >> lane & 1 == 1);
            let ones = (1u128 << bits) - 1;
            // A subtraction's borrow is what is left above the width of the difference.
            let value = match kind {
                CarryKind::Add => get(a[0]) + get(a[1]) + carry,
                CarryKind::Sub => get(a[0]).wrapping_sub(get(a[1])).wrapping_sub(carry),
                CarryKind::MadLow => ((get(a[0]) * get(a[1])) & ones) + get(a[2]) + carry,
                CarryKind::MadHigh => ((get(a[0]) * get(a[1])) >> bits) + get(a[2]) + carry,
            };
            if writes {
                let out = value >> bits & 1 == 1;
                self.carry = self.carry & !(1 << lane) | u32::from(out) << lane;
            }
            match wide {
                true => self.doubles[d as usize][lane] = value as u64,
                false => self.words[d as usize][lane] = value as u32,
            }
        }
    }
}

fn apply(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
