//! Barriers of the block, and exchanges between the lanes of a warp.

use super::super::error::Trap;
use super::super::ir::{Barrier, LANES, Op, Reduce, Register, Shuffle, Vote};
use super::lanes::{first, lanes};
use super::launch::Env;
use super::warp::{Wait, Warp};

/// Named barriers of a block.
const BARRIERS: u32 = 16;

impl Warp {
    /// Stops at a barrier of the block, or announces an arrival.
    pub(super) fn barrier(&mut self, env: &mut Env<'_>, barrier: &Barrier, mask: u32) -> Result<(), Trap> {
        let lane = first(mask);
        let id = self.word(barrier.id)[lane];
        let threads = barrier.threads.map(|index| self.word(index)[lane]);
        let refuse = |what: String| Err(Trap::new(lane as u32, what));
        for other in lanes(mask) {
            let same = barrier.threads.map(|index| self.word(index)[other]) == threads;
            if self.word(barrier.id)[other] != id || !same {
                return refuse("the lanes of a warp wait at different barriers".to_owned());
            }
        }
        if id >= BARRIERS {
            return refuse(format!("barrier {id} doesn't exist"));
        }
        if threads.is_some_and(|threads| threads == 0 || threads % LANES as u32 != 0) {
            return refuse(format!("a barrier for {} threads: whole warps are counted", threads.unwrap_or(0)));
        }
        if barrier.waits {
            self.park(mask, Wait::Barrier { id, threads, aligned: barrier.aligned });
            return Ok(());
        }
        if mask != self.alive() {
            return refuse("bar.arrive by a part of a warp".to_owned());
        }
        let known = env.shared.arrive(self.index);
        self.arrivals.push((id as usize, LANES as u32, known));
        self.pc += 1;
        Ok(())
    }

    /// The lanes that an exchange's mask operand names, once they are together; None if some have to be waited for.
    fn together(&mut self, mask: u32, wanted: u32, what: &str) -> Result<Option<u32>, Trap> {
        let wanted = self.word(wanted);
        let lane = first(mask);
        let value = wanted[lane];
        if let Some(other) = lanes(mask).find(|&other| wanted[other] != value) {
            // Two masks at one instruction are two exchanges.
            let what =
                format!("{what}: lanes {lane} and {other} give the masks {value:#010x} and {:#010x}", wanted[other]);
            return Err(Trap::new(other as u32, what));
        }
        self.gather(mask, value, what)
    }

    /// Runs an exchange, unless lanes have to be waited for.
    pub(super) fn exchange(&mut self, op: &Op, mask: u32) -> Result<bool, Trap> {
        match op {
            Op::Shuffle { mode, d, valid, a, b, c, mask: wanted } => {
                let Some(mask) = self.together(mask, *wanted, "shfl.sync")? else { return Ok(false) };
                self.shuffle(*mode, [*d, *valid], [*a, *b, *c], mask)?;
            }
            Op::Vote { mode, d, a, mask: wanted } => {
                let Some(mask) = self.together(mask, *wanted, "vote.sync")? else { return Ok(false) };
                let holds = self.predicate(*a) & mask;
                match mode {
                    Vote::Ballot => self.set_word(*d, &[holds; LANES], mask),
                    Vote::All => self.set_predicate(*d, all(holds == mask), mask),
                    Vote::Any => self.set_predicate(*d, all(holds != 0), mask),
                    Vote::Uniform => self.set_predicate(*d, all(holds == 0 || holds == mask), mask),
                }
            }
            Op::Match { all: every, d, valid, a, mask: wanted } => {
                let Some(mask) = self.together(mask, *wanted, "match.sync")? else { return Ok(false) };
                let values: [u64; LANES] = std::array::from_fn(|lane| self.get(*a, lane));
                let equal = |lane: usize| {
                    lanes(mask).filter(|&other| values[other] == values[lane]).fold(0, |set, other| set | 1u32 << other)
                };
                if *every {
                    let same = equal(first(mask)) == mask;
                    self.put_word(*d, &[if same { mask } else { 0 }; LANES], mask);
                    self.set_predicate(*valid, all(same), mask);
                } else {
                    let sets = std::array::from_fn(|lane| if mask >> lane & 1 == 1 { equal(lane) } else { 0 });
                    self.put_word(*d, &sets, mask);
                }
            }
            Op::Reduce { reduce, signed, d, a, mask: wanted } => {
                let Some(mask) = self.together(mask, *wanted, "redux.sync")? else { return Ok(false) };
                let values = self.word(*a);
                let f = |x: u32, y: u32| match (reduce, signed) {
                    (Reduce::Add, _) => x.wrapping_add(y),
                    (Reduce::Min, false) => x.min(y),
                    (Reduce::Max, false) => x.max(y),
                    (Reduce::Min, true) => (x as i32).min(y as i32) as u32,
                    (Reduce::Max, true) => (x as i32).max(y as i32) as u32,
                    (Reduce::And, _) => x & y,
                    (Reduce::Or, _) => x | y,
                    (Reduce::Xor, _) => x ^ y,
                };
                let result = lanes(mask).map(|lane| values[lane]).reduce(f).unwrap_or(0);
                self.put_word(*d, &[result; LANES], mask);
            }
            Op::Elect { d, elected, mask: wanted } => {
                let Some(mask) = self.together(mask, *wanted, "elect.sync")? else { return Ok(false) };
                let leader = first(mask);
                self.set_word(*d, &[leader as u32; LANES], mask);
                self.set_predicate(*elected, 1 << leader, mask);
            }
            _ => {}
        }
        Ok(true)
    }

    /// `c` holds the bound of the lane in its low bits and, from bit 8 on, the bits of the lane that name its segment.
    fn shuffle(
        &mut self,
        mode: Shuffle,
        [d, valid]: [Register; 2],
        [a, b, c]: [u32; 3],
        mask: u32,
    ) -> Result<(), Trap> {
        let (a, b, c) = (*self.word(a), *self.word(b), *self.word(c));
        let mut out = a;
        let mut inside = 0u32;
        for lane in lanes(mask) {
            let (here, shift, bound, segment) = (lane as u32, b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31);
            let last = here & segment | bound & !segment;
            let start = here & segment;
            let (source, found) = match mode {
                Shuffle::Up => (here.wrapping_sub(shift), here as i32 - shift as i32 >= last as i32),
                Shuffle::Down => (here + shift, here + shift <= last),
                Shuffle::Butterfly => (here ^ shift, here ^ shift <= last),
                Shuffle::Index => (start | shift & !segment, start | shift & !segment <= last),
            };
            if !found {
                continue;
            }
            if mask >> source & 1 == 0 {
                let what = format!("shfl.sync reads lane {source}, which isn't there: only {mask:#010x} are");
                return Err(Trap::new(here, what));
            }
            inside |= 1 << lane;
            out[lane] = a[source as usize];
        }
        self.set_word(d, &out, mask);
        self.set_predicate(valid, inside, mask);
        Ok(())
    }
}

/// A truth for all lanes.
fn all(holds: bool) -> u32 {
    if holds { u32::MAX } else { 0 }
}
