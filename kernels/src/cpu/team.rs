//! The worker team: a fixed set of threads that run one function together, with barriers and shared work inside it.
//!
//! The caller is worker 0, so a team of one has no thread of its own. Whoever waits spins for a bounded time, then sleeps:
//! while steps follow each other nothing enters the kernel, an idle server uses no CPU, and on a machine with more threads
//! than cores a waiter soon gives its core to the thread that it waits for.
//!
//! A core that other processes use makes everybody wait for the worker that lost it, at every barrier. When jobs lose much
//! time that way, the team leaves a worker out, and another, until those that are left fit on the free cores; now and then
//! it tries with one more. What a job computes must not depend on the number of its workers.
//!
//! Work is divided twice. Rows have fixed shares ([`Worker::share`]), so that instructions on the same rows need no barrier.
//! Large work is cut into more pieces than workers ([`Worker::pieces`]): each starts with its own share and then takes what
//! the others haven't begun, so that a worker that has lost its core delays the rest by one piece.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a waiter spins at a barrier: longer than workers of a decode step usually are apart, and short beside the slice
/// that the system gives to another process.
const SPIN_AT_BARRIER: Duration = Duration::from_micros(50);
/// How long a worker spins between jobs: longer than sampling and scheduling take between two steps.
const SPIN_BETWEEN_JOBS: Duration = Duration::from_millis(2);
/// Time that workers of a job waited asleep, as a part of what they could have worked, from which on the job counts as
/// held up: one over this.
const HELD_UP_PART: u32 = 4;
/// Less than this is no loss, however short the job was: a worker may have had to wake up.
const HELD_UP_LEAST: Duration = Duration::from_millis(1);
/// Jobs held up, less those that were not, before a worker is left out: a single interruption is no reason.
const STRIKES: u32 = 3;
/// For how long a worker is left out at first, and at most, when trying with it fails again and again.
const REST: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// `spin_loop`s between two looks at the clock. A pause takes 10 to 50 ns, the clock about as long.
const SPINS_A_LOOK: u32 = 32;

/// Bits of [`Shared::claims`] that count pieces; those above say which call of [`Worker::pieces`] they belong to.
const PIECE_BITS: u32 = 20;
/// Pieces that a call of [`Worker::pieces`] takes at most.
pub const MAX_PIECES: usize = 1 << PIECE_BITS;
/// Calls of [`Worker::pieces`] that a job makes at most.
pub const MAX_PIECE_CALLS: usize = 1 << 16;

/// Low bits of an epoch: how many workers run the job.
const WORKER_BITS: u32 = 12;
/// Workers of a team at most.
pub const MAX_WORKERS: usize = (1 << WORKER_BITS) - 1;

/// A job: called once on every worker that runs it.
type Job = dyn Fn(&Worker<'_>) + Sync;

/// One worker's view of a running job.
#[derive(Debug)]
pub struct Worker<'a> {
    shared: &'a Shared,
    /// `0..num_workers()`; 0 is the thread that called [`Team::run`].
    pub index: usize,
    num_workers: usize,
    /// Number of the next call of [`Self::pieces`]: the same on all workers, as they make the same calls.
    call: Cell<u64>,
}

impl Worker<'_> {
    /// Workers that run this job: not more than the team has.
    pub fn num_workers(&self) -> usize {
        self.num_workers
    }

    /// Waits for all workers. What any of them wrote before is visible to all after. Returns false when a worker
    /// panicked: then nobody may go on.
    #[must_use]
    pub fn barrier(&self) -> bool {
        let shared = self.shared;
        if self.num_workers == 1 {
            return true;
        }
        let round = shared.round.load(Ordering::Acquire);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.num_workers {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.round.store(round.wrapping_add(1), Ordering::SeqCst);
            shared.at_barrier.wake();
            return true;
        }
        let passed = || shared.round.load(Ordering::SeqCst) != round;
        let slept = shared.at_barrier.wait(spins_at_barrier, || passed() || shared.poisoned.load(Ordering::SeqCst));
        shared.count_sleep(slept);
        passed()
    }

    /// This worker's share of `0..len`, cut at multiples of `tile`.
    pub fn share(&self, len: usize, tile: usize) -> Range<usize> {
        self.share_of(self.index, len, tile)
    }

    fn share_of(&self, worker: usize, len: usize, tile: usize) -> Range<usize> {
        let tiles = len.div_ceil(tile);
        let cut = |worker: usize| (tiles * worker / self.num_workers * tile).min(len);
        cut(worker)..cut(worker + 1)
    }

    /// Does `work` for each of `0..num_pieces` on one of the workers: first for this worker's own share, then for what is
    /// left of the others'. All workers must make the same calls in the same order. On return every piece has been begun;
    /// after the next barrier every piece is done.
    ///
    /// # Panics
    /// With [`MAX_PIECES`] or more.
    pub fn pieces(&self, num_pieces: usize, mut work: impl FnMut(usize)) {
        assert!(num_pieces < MAX_PIECES, "{num_pieces} pieces of work");
        let call = self.call.get();
        self.call.set(call.wrapping_add(1));
        for owner in (self.index..self.num_workers).chain(0..self.index) {
            let share = self.share_of(owner, num_pieces, 1);
            while let Some(piece) = self.shared.claim(owner, call, share.len()) {
                work(share.start + piece);
            }
        }
    }
}

/// An atomic on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Debug)]
struct Shared {
    /// Counts jobs in all but the low [`WORKER_BITS`], which say how many workers run it; a change starts one.
    epoch: Line<AtomicU64>,
    /// The job of this epoch.
    job: JobCell,
    /// Workers (without 0) that are done with the job.
    finished: Line<AtomicUsize>,
    arrived: Line<AtomicUsize>,
    round: Line<AtomicU32>,
    /// For each worker: how many pieces of its share were begun, below the number of the call.
    claims: Vec<Line<AtomicU64>>,
    /// A worker panicked: its job can't be completed.
    poisoned: AtomicBool,
    stop: AtomicBool,
    /// Workers without a job sleep at once.
    rest: AtomicBool,
    /// Nanoseconds that workers of this job waited asleep.
    slept: AtomicU64,
    /// One for each worker but 0: those that are left out sleep on.
    between_jobs: Vec<Gate>,
    at_barrier: Gate,
    at_end: Gate,
}

impl<T> std::ops::Deref for Line<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl Shared {
    fn count_sleep(&self, slept: Duration) {
        if !slept.is_zero() {
            self.slept.fetch_add(slept.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// The next piece of `owner`'s share of `len` in this call, if one is left.
    ///
    /// One counter a worker serves all calls. A worker goes on to a later call only when nothing of this one is left
    /// anywhere, so a counter of a later call says that this one is exhausted, and one of an earlier call that nobody has
    /// begun this share. Nothing but the number is handed over, so the order of memory doesn't matter.
    fn claim(&self, owner: usize, call: u64, len: usize) -> Option<usize> {
        let cell = &self.claims[owner];
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            // Numbers of calls wrap after 2^44: the sign of the difference in that ring tells older from newer.
            let age = (call << PIECE_BITS).wrapping_sub(seen >> PIECE_BITS << PIECE_BITS).cast_signed();
            let begun = match age {
                0 => seen as usize & (MAX_PIECES - 1),
                ..0 => return None,
                _ => 0,
            };
            if begun >= len {
                return None;
            }
            let next = call << PIECE_BITS | (begun as u64 + 1);
            match cell.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(begun),
                Err(now) => seen = now,
            }
        }
    }
}

/// Where threads wait for something that another thread does.
#[derive(Debug, Default)]
struct Gate {
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    condvar: Condvar,
}

impl Gate {
    /// Returns when `ready` does, and how long that took beyond the spinning, which goes on for as long as `spins` says. `ready`
    /// reads with `SeqCst` what others write with `SeqCst` before [`Self::wake`].
    fn wait(&self, spins: impl Fn(Duration) -> bool, ready: impl Fn() -> bool) -> Duration {
        let mut since = None;
        loop {
            for _ in 0..SPINS_A_LOOK {
                if ready() {
                    return Duration::ZERO;
                }
                std::hint::spin_loop();
            }
            // The clock starts late: most waits are over by now.
            let now = Instant::now();
            if !spins(now - *since.get_or_insert(now)) {
                break;
            }
        }
        let asleep = Instant::now();
        // Either the waker sees this count, or `ready` sees what it wrote: both are `SeqCst`.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !ready() {
            guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        asleep.elapsed()
    }

    /// Wakes all that sleep here. To be called after the write that makes them ready.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper holds the lock from its last look until it waits: it can't miss this.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.condvar.notify_all();
        }
    }
}

struct JobCell(UnsafeCell<Option<*const Job>>);

impl std::fmt::Debug for JobCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobCell")
    }
}

// SAFETY: the cell is written only by `Team::run` (which has the team exclusively) before it publishes a new epoch
// and after all workers reported the last job finished; workers read it only after seeing the epoch.
unsafe impl Sync for JobCell {}
// SAFETY: the pointer is to a `Sync` closure; it is only dereferenced between the publication and the end of a job.
unsafe impl Send for JobCell {}

/// A set of threads that run one job at a time.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    crew: Crew,
}

/// How many workers the next job gets.
#[derive(Debug)]
struct Crew {
    num_workers: usize,
    /// Jobs held up, less those that were not.
    strikes: u32,
    /// When a worker was last added.
    grown: Option<Instant>,
    /// Since when and for how long one is left out.
    resting: Option<(Instant, Duration)>,
}

impl Crew {
    /// Before a job: adds a worker, of a team of `all`, whose rest is over.
    fn grow(&mut self, all: usize, now: Instant) {
        if self.num_workers < all && self.resting.is_none_or(|(since, rest)| now >= since + rest) {
            self.num_workers += 1;
            self.strikes = 0;
            self.grown = Some(now);
            // The next one has to wait until this one has proved itself.
            self.resting = self.resting.map(|(_, rest)| (now, rest));
        }
    }

    /// After a job of `took`, during which its workers slept for `slept` in all: leaves one out if that happens too often.
    fn judge(&mut self, took: Duration, slept: Duration, now: Instant) {
        let others = self.num_workers as u32 - 1;
        if slept <= (took * others / HELD_UP_PART).max(HELD_UP_LEAST) {
            self.strikes = self.strikes.saturating_sub(1);
            return;
        }
        self.strikes += 1;
        if self.strikes >= STRIKES && others > 0 {
            let soon = self.grown.is_some_and(|grown| now < grown + REST[1]);
            let rest = match self.resting {
                Some((_, rest)) if soon => (2 * rest).min(REST[1]),
                _ => REST[0],
            };
            self.resting = Some((now, rest));
            self.num_workers -= 1;
            self.strikes = 0;
        }
    }
}

/// A worker of the team panicked; the job is incomplete and the team can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread panicked")]
pub struct WorkerPanicked;

impl Team {
    /// A team of `num_workers` (1 to [`MAX_WORKERS`]; fewer or more become that). Worker threads keep to one logical CPU of each physical core that this process
    /// may use, when there are enough of them; the caller, worker 0, stays where it is.
    ///
    /// Among those cores the system may move a worker: one that is bound to a single core can't leave it when another
    /// process is given that core, and everybody waits for it.
    pub fn new(num_workers: usize) -> std::io::Result<Self> {
        let num_workers = num_workers.clamp(1, MAX_WORKERS);
        let shared = Arc::new(Shared {
            epoch: Line::default(),
            job: JobCell(UnsafeCell::new(None)),
            finished: Line::default(),
            arrived: Line::default(),
            round: Line::default(),
            claims: (0..num_workers).map(|_| Line::default()).collect(),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            slept: AtomicU64::new(0),
            between_jobs: (1..num_workers).map(|_| Gate::default()).collect(),
            at_barrier: Gate::default(),
            at_end: Gate::default(),
        });
        let cores: Arc<[usize]> = super::topology::worker_cores().into();
        let mut threads = Vec::new();
        for index in 1..num_workers {
            let shared = Arc::clone(&shared);
            let cores = (cores.len() >= num_workers).then(|| Arc::clone(&cores));
            threads.push(std::thread::Builder::new().name(format!("shimmy-cpu-{index}")).spawn(move || {
                if let Some(cores) = cores {
                    super::topology::keep_current_thread_on(&cores);
                }
                worker_loop(&shared, index);
            })?);
        }
        let crew = Crew { num_workers, strikes: 0, grown: None, resting: None };
        Ok(Self { shared, threads, crew })
    }

    /// Workers, the caller included.
    pub fn num_workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `job` once on every worker that it gets ([`Worker::num_workers`]) and returns when all are done.
    ///
    /// # Errors
    /// [`WorkerPanicked`], now and at every later call, when the job panicked on any worker.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), WorkerPanicked> {
        let shared = &*self.shared;
        if shared.poisoned.load(Ordering::Acquire) {
            return Err(WorkerPanicked);
        }
        let start = Instant::now();
        self.crew.grow(self.threads.len() + 1, start);
        let num_workers = self.crew.num_workers;
        let count = (shared.epoch.load(Ordering::Relaxed) >> WORKER_BITS).wrapping_add(1);
        let epoch = count << WORKER_BITS | num_workers as u64;
        if num_workers > 1 {
            // SAFETY: only the lifetime changes, from the caller's to 'static. The pointer is dereferenced by workers
            // between the epoch below and their report in `finished`, for which this function waits before it returns,
            // panicking job or not.
            let job = unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Job>(job) };
            // SAFETY: `&mut self` and the wait below mean that no job is running, and workers that the last one left out
            // read the cell only in a job that they are part of: nobody else touches it.
            unsafe { *shared.job.0.get() = Some(job) };
            shared.finished.store(0, Ordering::Relaxed);
        }
        shared.rest.store(false, Ordering::Relaxed);
        shared.epoch.store(epoch, Ordering::SeqCst);
        shared.between_jobs[..num_workers - 1].iter().for_each(Gate::wake);
        run_job(shared, 0, epoch, job);
        let done = || shared.finished.load(Ordering::SeqCst) + 1 >= num_workers;
        shared.count_sleep(shared.at_end.wait(spins_at_barrier, done));
        let slept = Duration::from_nanos(shared.slept.swap(0, Ordering::Relaxed));
        let now = Instant::now();
        self.crew.judge(now - start, slept, now);
        if shared.poisoned.load(Ordering::Acquire) { Err(WorkerPanicked) } else { Ok(()) }
    }

    /// Lets the workers sleep until the next job instead of spinning for a while: another team is about to use their cores.
    pub fn rest(&self) {
        self.shared.rest.store(true, Ordering::Relaxed);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.between_jobs.iter().for_each(Gate::wake);
        for thread in self.threads.drain(..) {
            // A worker that panicked has reported it through `poisoned`.
            drop(thread.join());
        }
    }
}

fn spins_at_barrier(spun: Duration) -> bool {
    spun <= SPIN_AT_BARRIER
}

/// Workers of the job that this epoch started.
fn workers_of(epoch: u64) -> usize {
    epoch as usize & MAX_WORKERS
}

fn run_job(shared: &Shared, index: usize, epoch: u64, job: &(dyn Fn(&Worker<'_>) + Sync)) {
    let call = Cell::new((epoch >> WORKER_BITS).wrapping_mul(MAX_PIECE_CALLS as u64));
    let worker = Worker { shared, index, num_workers: workers_of(epoch), call };
    // The closure only writes through what the caller shares with all workers; after a panic the caller gets an error
    // and the team refuses further jobs, so no half-written state is used.
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&worker))).is_err() {
        shared.poisoned.store(true, Ordering::SeqCst);
        shared.at_barrier.wake();
    }
}

fn worker_loop(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        // A job that leaves this worker out is over, or not, when the next one comes: it doesn't matter here.
        let spins = |spun| spun <= SPIN_BETWEEN_JOBS && !shared.rest.load(Ordering::Relaxed);
        shared.between_jobs[index - 1].wait(spins, || {
            let epoch = shared.epoch.load(Ordering::SeqCst);
            (epoch != seen && index < workers_of(epoch)) || shared.stop.load(Ordering::SeqCst)
        });
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // A job that this worker is part of doesn't end without it, so the epoch is still the one that was waited for.
        seen = shared.epoch.load(Ordering::Acquire);
        // SAFETY: the epoch was published after the cell was written, and the job stays alive until `finished` below.
        if let Some(job) = unsafe { *shared.job.0.get() } {
            // SAFETY: as above; the closure is `Sync`.
            run_job(shared, index, seen, unsafe { &*job });
        }
        shared.finished.fetch_add(1, Ordering::SeqCst);
        shared.at_end.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_job_and_barriers_order_them() {
        for num_workers in [1, 2, 3, 7] {
            let mut team = Team::new(num_workers).unwrap();
            for _ in 0..200 {
                let cells: Vec<AtomicUsize> = (0..num_workers).map(|_| AtomicUsize::new(0)).collect();
                let bad = AtomicUsize::new(0);
                team.run(&|worker: &Worker<'_>| {
                    for phase in 1..=5 {
                        cells[worker.index].store(phase, Ordering::Relaxed);
                        assert!(worker.barrier());
                        let cells = &cells[..worker.num_workers()];
                        if cells.iter().any(|cell| cell.load(Ordering::Relaxed) != phase) {
                            bad.fetch_add(1, Ordering::Relaxed);
                        }
                        assert!(worker.barrier());
                    }
                })
                .unwrap();
                assert_eq!(bad.load(Ordering::Relaxed), 0);
            }
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for (num_workers, len, tile) in [(1, 5, 2), (3, 100, 16), (4, 7, 16), (5, 0, 3)] {
            let mut team = Team::new(num_workers).unwrap();
            let hits: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|worker: &Worker<'_>| {
                for i in worker.share(len, tile) {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
            assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn pieces_are_each_done_once_wherever_workers_are() {
        for num_workers in [1, 2, 3, 7] {
            let mut team = Team::new(num_workers).unwrap();
            for round in 0..50 {
                let lens = [0, 1, 5, 64, 3, 1000];
                let hits: Vec<Vec<AtomicUsize>> =
                    lens.iter().map(|&len| (0..len).map(|_| AtomicUsize::new(0)).collect()).collect();
                team.run(&|worker: &Worker<'_>| {
                    // No barrier between the calls, and a laggard: workers are in different calls at the same time.
                    for hits in &hits {
                        worker.pieces(hits.len(), |piece| {
                            if (piece + worker.index + round).is_multiple_of(17) {
                                std::thread::yield_now();
                            }
                            hits[piece].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                })
                .unwrap();
                assert!(hits.iter().flatten().all(|hit| hit.load(Ordering::Relaxed) == 1), "{num_workers} workers");
            }
        }
    }

    #[test]
    fn idle_workers_take_what_a_stuck_one_has_not_begun() {
        let mut team = Team::new(2).unwrap();
        let done = AtomicUsize::new(0);
        team.run(&|worker: &Worker<'_>| {
            worker.pieces(20, |_| {
                // Whoever begins first waits until all other pieces are done: by the other worker, or never.
                if done.fetch_add(1, Ordering::SeqCst) == 0 {
                    while done.load(Ordering::SeqCst) < 20 {
                        std::thread::yield_now();
                    }
                }
            });
        })
        .unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 20);
    }

    #[test]
    fn a_panic_is_an_error_and_nobody_hangs() {
        for culprit in 0..3 {
            let mut team = Team::new(3).unwrap();
            let job = |worker: &Worker<'_>| {
                assert!(worker.index != culprit, "on purpose");
                while worker.barrier() {}
            };
            assert_eq!(team.run(&job), Err(WorkerPanicked));
            assert_eq!(team.run(&|_: &Worker<'_>| {}), Err(WorkerPanicked));
        }
    }

    #[test]
    fn workers_that_hold_up_the_others_are_left_out_for_a_while() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut crew = Crew { num_workers: 4, strikes: 0, grown: None, resting: None };
        // One interruption, or waits that are small beside the job or on their own, change nothing.
        for (took, slept) in [(10, 15), (10, 1), (10, 7), (0, 1), (10, 15), (10, 2)] {
            crew.judge(ms(took), ms(slept), start);
        }
        assert_eq!(crew.num_workers, 4);
        // Job after job: one worker less, and another.
        for expected in [4, 4, 3, 3, 3, 2] {
            crew.judge(ms(10), ms(20), start);
            assert_eq!(crew.num_workers, expected);
        }
        crew.grow(4, start + ms(49));
        assert_eq!(crew.num_workers, 2);
        // Their rest over they come back one by one.
        crew.grow(4, start + ms(50));
        crew.grow(4, start + ms(60));
        assert_eq!(crew.num_workers, 3);
        crew.grow(4, start + ms(100));
        assert_eq!(crew.num_workers, 4);
        // Failing soon after, the rest is longer each time, to a limit.
        let mut now = start + ms(110);
        for rest in [100, 200, 400, 800, 1600, 2000, 2000] {
            for _ in 0..STRIKES {
                crew.judge(ms(10), ms(30), now);
            }
            assert_eq!((crew.num_workers, crew.resting), (3, Some((now, ms(rest)))));
            now += ms(rest);
            crew.grow(4, now);
            assert_eq!(crew.num_workers, 4);
        }
        // Long after, it starts anew; and worker 0 is never left out.
        now += ms(2001);
        for _ in 0..20 {
            crew.judge(ms(10), ms(30), now);
        }
        assert_eq!((crew.num_workers, crew.resting), (1, Some((now, REST[0]))));
    }

    #[test]
    fn a_resting_team_works_when_it_must() {
        let mut team = Team::new(3).unwrap();
        for _ in 0..50 {
            let (count, num_workers) = (AtomicUsize::new(0), AtomicUsize::new(0));
            team.rest();
            // On a busy machine not all take part.
            team.run(&|worker| {
                count.fetch_add(1, Ordering::Relaxed);
                num_workers.store(worker.num_workers(), Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(count.into_inner(), num_workers.into_inner());
        }
    }

    #[test]
    fn a_parked_team_wakes_up() {
        let mut team = Team::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let runs = AtomicUsize::new(0);
            team.run(&|_: &Worker<'_>| {
                runs.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(runs.load(Ordering::Relaxed), 2);
        }
    }
}
