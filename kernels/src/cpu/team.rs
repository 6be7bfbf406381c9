//! The worker team: a fixed set of threads that run one function together, with barriers inside it.
//!
//! The caller is worker 0, so a team of one has no thread of its own. Between jobs and at barriers a worker spins for a
//! short while, then yields, then parks: while steps follow each other nothing enters the kernel, and an idle server
//! uses no CPU.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Rounds of `spin_loop` before a waiter lets others run: about 20 µs, longer than any op of a decode step.
const SPINS: u32 = 10_000;
/// Rounds of `yield_now` after that, before a worker between jobs parks.
const YIELDS: u32 = 200;

/// A job: called once on every worker.
type Job = dyn Fn(&Worker<'_>) + Sync;

/// One worker's view of a running job.
#[derive(Debug)]
pub struct Worker<'a> {
    shared: &'a Shared,
    /// `0..num_workers`; 0 is the thread that called [`Team::run`].
    pub index: usize,
}

impl Worker<'_> {
    /// Workers in the team.
    pub fn num_workers(&self) -> usize {
        self.shared.num_workers
    }

    /// Waits for all workers. What any of them wrote before is visible to all after. Returns false when a worker
    /// panicked: then nobody may go on.
    #[must_use]
    pub fn barrier(&self) -> bool {
        let shared = self.shared;
        if shared.num_workers == 1 {
            return true;
        }
        let round = shared.round.load(Ordering::Acquire);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.num_workers {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.round.store(round.wrapping_add(1), Ordering::Release);
        } else {
            let mut spins = 0;
            while shared.round.load(Ordering::Acquire) == round {
                if shared.poisoned.load(Ordering::Relaxed) {
                    return false;
                }
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
        true
    }

    /// This worker's share of `0..len`, cut at multiples of `tile`.
    pub fn share(&self, len: usize, tile: usize) -> std::ops::Range<usize> {
        let tiles = len.div_ceil(tile);
        let cut = |worker: usize| (tiles * worker / self.shared.num_workers * tile).min(len);
        cut(self.index)..cut(self.index + 1)
    }
}

#[derive(Debug)]
struct Shared {
    num_workers: usize,
    /// Counts jobs; a change starts one.
    epoch: AtomicU32,
    /// The job of this epoch.
    job: JobCell,
    /// Workers (without 0) that are done with the job.
    finished: AtomicUsize,
    arrived: AtomicUsize,
    round: AtomicU32,
    /// A worker panicked: its job can't be completed.
    poisoned: AtomicBool,
    stop: AtomicBool,
    /// Per worker thread: it is parked or about to be.
    parked: Vec<AtomicBool>,
}

struct JobCell(UnsafeCell<Option<*const Job>>);

impl std::fmt::Debug for JobCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobCell")
    }
}

// SAFETY: the cell is written only by `Team::run` (which has the team exclusively) before it publishes a new epoch with
// Release and after all workers reported the last job finished; workers read it only after seeing the epoch with Acquire.
unsafe impl Sync for JobCell {}
// SAFETY: the pointer is to a `Sync` closure; it is only dereferenced between the publication and the end of a job.
unsafe impl Send for JobCell {}

/// A set of threads that run one job at a time.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<(Thread, JoinHandle<()>)>,
}

/// A worker of the team panicked; the job is incomplete and the team can't be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread panicked")]
pub struct WorkerPanicked;

impl Team {
    /// A team of `num_workers` (at least 1). Worker threads are pinned to the cores that this process may use, in turn,
    /// when there are enough of them; the caller, worker 0, stays where it is.
    pub fn new(num_workers: usize) -> std::io::Result<Self> {
        let num_workers = num_workers.max(1);
        let shared = Arc::new(Shared {
            num_workers,
            epoch: AtomicU32::new(0),
            job: JobCell(UnsafeCell::new(None)),
            finished: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            round: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: (1..num_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let cores = super::topology::worker_cores();
        let mut threads = Vec::new();
        for index in 1..num_workers {
            let shared = Arc::clone(&shared);
            let core = (cores.len() >= num_workers).then(|| cores[index]);
            let handle = std::thread::Builder::new().name(format!("shimmy-cpu-{index}")).spawn(move || {
                if let Some(core) = core {
                    super::topology::pin_current_thread(core);
                }
                worker_loop(&shared, index);
            })?;
            threads.push((handle.thread().clone(), handle));
        }
        Ok(Self { shared, threads })
    }

    /// Workers, the caller included.
    pub fn num_workers(&self) -> usize {
        self.shared.num_workers
    }

    /// Runs `job` once on every worker and returns when all are done.
    ///
    /// # Errors
    /// [`WorkerPanicked`], now and at every later call, when the job panicked on any worker.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), WorkerPanicked> {
        let shared = &*self.shared;
        if shared.poisoned.load(Ordering::Acquire) {
            return Err(WorkerPanicked);
        }
        if shared.num_workers > 1 {
            // SAFETY: only the lifetime changes, from the caller's to 'static. The pointer is dereferenced by workers
            // between the epoch below and their report in `finished`, for which this function waits before it returns,
            // panicking job or not.
            let job = unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Job>(job) };
            // SAFETY: `&mut self` and the wait below mean that no job is running: nobody else touches the cell.
            unsafe { *shared.job.0.get() = Some(job) };
            shared.finished.store(0, Ordering::Relaxed);
            // SeqCst pairs with `worker_loop`: either it sees the epoch before it parks, or we see its flag.
            shared.epoch.fetch_add(1, Ordering::SeqCst);
            for (parked, (thread, _)) in shared.parked.iter().zip(&self.threads) {
                if parked.load(Ordering::SeqCst) {
                    thread.unpark();
                }
            }
        }
        run_job(shared, 0, job);
        let mut spins = 0;
        while shared.finished.load(Ordering::Acquire) + 1 < shared.num_workers {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        if shared.poisoned.load(Ordering::Acquire) { Err(WorkerPanicked) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in self.threads.drain(..) {
            thread.unpark();
            // A worker that panicked has reported it through `poisoned`.
            drop(handle.join());
        }
    }
}

fn run_job(shared: &Shared, index: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) {
    let worker = Worker { shared, index };
    // The closure only writes through what the caller shares with all workers; after a panic the caller gets an error
    // and the team refuses further jobs, so no half-written state is used.
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&worker))).is_err() {
        shared.poisoned.store(true, Ordering::Release);
    }
}

fn worker_loop(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut rounds = 0u32;
        while shared.epoch.load(Ordering::Acquire) == seen {
            rounds += 1;
            if rounds < SPINS {
                std::hint::spin_loop();
            } else if rounds < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                let parked = &shared.parked[index - 1];
                parked.store(true, Ordering::SeqCst);
                if shared.epoch.load(Ordering::SeqCst) == seen {
                    std::thread::park();
                }
                parked.store(false, Ordering::SeqCst);
            }
        }
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the epoch was published after the cell was written, and the job stays alive until `finished` below.
        if let Some(job) = unsafe { *shared.job.0.get() } {
            // SAFETY: as above; the closure is `Sync`.
            run_job(shared, index, unsafe { &*job });
        }
        shared.finished.fetch_add(1, Ordering::Release);
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
