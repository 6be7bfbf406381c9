//! A block: its warps take turns, each until it waits or ends, and barriers let them go on.

use super::super::error::Trap;
use super::super::ir::{BarrierReduce, LANES, Op, Register};
use super::lanes::first;
use super::launch::Env;
use super::warp::{Wait, Warp};

/// Named barriers of a block.
const BARRIERS: usize = 16;
/// Instructions that a warp runs before others get a turn, so that a warp that spins on a flag of another sees it.
const TURN: u64 = 1 << 16;

/// What has arrived at a barrier without waiting there.
#[derive(Clone, Default)]
struct Arrivals {
    threads: u32,
    known: Vec<Vec<u32>>,
}

/// A block in execution; used again for the next one.
pub(super) struct Block {
    warps: Vec<Warp>,
    arrivals: Vec<Arrivals>,
}

/// A fault, with the warp and the line.
pub(super) type Failure = (usize, u32, Trap);

impl Block {
    pub(super) fn new(env: &Env<'_>, threads: u32, doubles: &[(u32, u64)]) -> Self {
        let warps = (0..threads.div_ceil(LANES as u32)).map(|warp| Warp::new(env, warp, threads, doubles));
        Self { warps: warps.collect(), arrivals: vec![Arrivals::default(); BARRIERS] }
    }

    /// Runs the block to its end.
    pub(super) fn run(&mut self, env: &mut Env<'_>, id: [u32; 3]) -> Result<(), Failure> {
        env.shared.reset();
        self.arrivals.fill(Arrivals::default());
        for warp in &mut self.warps {
            warp.start(id);
        }
        loop {
            let mut runnable = false;
            for (index, warp) in self.warps.iter_mut().enumerate() {
                runnable |= warp.run(env, TURN).map_err(|trap| (index, warp.line(env), trap))?;
                if env.clock > env.checks.max_steps {
                    let trap = Trap::new(0, format!("no end after {} instructions of the launch", env.clock));
                    return Err((index, warp.line(env), trap));
                }
                for (barrier, threads, known) in warp.arrivals.drain(..) {
                    let arrivals = &mut self.arrivals[barrier];
                    arrivals.threads += threads;
                    arrivals.known.push(known);
                }
            }
            if self.warps.iter().all(Warp::finished) {
                return Ok(());
            }
            let mut released = false;
            for barrier in 0..BARRIERS {
                released |= self.release(env, barrier)?;
            }
            if !released && !runnable {
                return Err(self.hang(env));
            }
        }
    }

    /// Lets go the threads that wait at a barrier, if all that it waits for are there.
    fn release(&mut self, env: &mut Env<'_>, barrier: usize) -> Result<bool, Failure> {
        let at = |wait: Option<Wait>| matches!(wait, Some(Wait::Barrier { id, .. }) if id as usize == barrier);
        let waiting: Vec<u32> = self.warps.iter().map(|warp| warp.waiting(at)).collect();
        if waiting.iter().all(|&mask| mask == 0) {
            return Ok(false);
        }
        let mut wanted = None;
        for (index, warp) in self.warps.iter().enumerate() {
            for group in warp.groups.iter().filter(|group| at(group.wait)) {
                let Some(Wait::Barrier { threads, aligned, .. }) = group.wait else { continue };
                // A warp that has come apart can't arrive as one; whether it will come together shows when all of its
                // lanes have stopped.
                if aligned && group.mask != warp.alive() {
                    if warp.alive() & !warp.waiting(|wait| matches!(wait, Some(Wait::Barrier { .. }))) != 0 {
                        return Ok(false);
                    }
                    let what = format!(
                        "barrier {barrier} in diverged code: lanes {:#010x} of the warp's {:#010x} wait here",
                        group.mask,
                        warp.alive()
                    );
                    return Err((index, env.program.code[group.pc].line, Trap::new(first(group.mask) as u32, what)));
                }
                if *wanted.get_or_insert(threads) != threads {
                    let what = format!("barrier {barrier} is waited for with different numbers of threads");
                    return Err((index, env.program.code[group.pc].line, Trap::new(first(group.mask) as u32, what)));
                }
            }
        }
        let complete = match wanted.flatten() {
            None => self.warps.iter().zip(&waiting).all(|(warp, &mask)| mask == warp.alive()),
            Some(threads) => {
                // The count is of whole warps.
                let warps = waiting.iter().filter(|&&mask| mask != 0).count() as u32;
                warps * LANES as u32 + self.arrivals[barrier].threads >= threads
            }
        };
        if !complete {
            return Ok(false);
        }
        self.pass(env, barrier, at);
        Ok(true)
    }

    fn pass(&mut self, env: &mut Env<'_>, barrier: usize, at: impl Fn(Option<Wait>) -> bool) {
        let mut known = std::mem::take(&mut self.arrivals[barrier]).known;
        let mut counts = (0, 0);
        for (index, warp) in self.warps.iter().enumerate() {
            for group in warp.groups.iter().filter(|group| at(group.wait)) {
                known.push(env.shared.arrive(index));
                if let Op::Barrier(operation) = &env.program.code[group.pc].op
                    && let Some((_, _, condition)) = operation.reduce
                {
                    counts.0 += (warp.predicate(condition) & group.mask).count_ones();
                    counts.1 += group.mask.count_ones();
                }
            }
        }
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let mut joined = false;
            for at_group in 0..warp.groups.len() {
                let group = warp.groups[at_group];
                if !at(group.wait) {
                    continue;
                }
                joined = true;
                warp.groups[at_group].wait = None;
                warp.groups[at_group].pc += 1;
                if let Op::Barrier(operation) = &env.program.code[group.pc].op
                    && let Some((kind, d, _)) = operation.reduce
                {
                    let (holding, all) = counts;
                    let truth = match kind {
                        BarrierReduce::And => holding == all,
                        BarrierReduce::Or | BarrierReduce::Popc => holding > 0,
                    };
                    match d {
                        Register::P(_) => warp.set_predicate(d, if truth { u32::MAX } else { 0 }, group.mask),
                        _ => warp.set_word(d, &[holding; LANES], group.mask),
                    }
                }
            }
            if joined {
                for known in &known {
                    env.shared.learn(index, known);
                }
            }
        }
    }

    /// Nobody can go on: says who waits for what.
    fn hang(&self, env: &Env<'_>) -> Failure {
        let alive: u32 = self.warps.iter().map(|warp| warp.alive().count_ones()).sum();
        // Lanes that wait for each other are the cause where a barrier of the block is only the consequence.
        let groups =
            self.warps.iter().enumerate().flat_map(|(index, warp)| warp.groups.iter().map(move |group| (index, group)));
        let (inner, outer): (Vec<_>, Vec<_>) =
            groups.partition(|(_, group)| matches!(group.wait, Some(Wait::Lanes(_))));
        for (index, group) in inner.into_iter().chain(outer) {
            let what = match group.wait {
                Some(Wait::Barrier { id, threads, .. }) => {
                    let at = |wait: Option<Wait>| matches!(wait, Some(Wait::Barrier { id: other, .. }) if other == id);
                    let there: u32 = self.warps.iter().map(|warp| warp.waiting(at).count_ones()).sum();
                    let wanted = threads.unwrap_or(alive);
                    format!("barrier {id} hangs: {there} threads wait, {wanted} are wanted")
                }
                Some(Wait::Lanes(lanes)) => {
                    format!("waits for lanes {lanes:#010x} that don't come: only {:#010x} are here", group.mask)
                }
                None => continue,
            };
            return (index, env.program.code[group.pc].line, Trap::new(first(group.mask) as u32, what));
        }
        (0, 0, Trap::new(0, "nothing can run"))
    }
}
