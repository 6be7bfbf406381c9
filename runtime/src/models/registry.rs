//! Names to loaded models. A model is loaded when it is first asked for; whoever asks meanwhile waits for that load
//! and gets its result. It is unloaded when somebody says so, or by [`Models::sweep`] once nobody has used it for as long as
//! it is kept; whoever still has it then finishes with it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::models::discover::{Catalog, Discovered};
use crate::models::load::LoadedModel;

/// A list of models is trusted for this long.
const CATALOG_AGE: Duration = Duration::from_secs(30);
/// A name that isn't in the list makes a new scan, but not more often than this.
const RESCAN_AGE: Duration = Duration::from_secs(2);

/// What `load` failed with, for everybody who waited for it.
pub type SharedError = Arc<Error>;

/// What the registry must know of a model.
pub trait Servable {
    /// It can't answer any more and must be loaded again.
    fn has_failed(&self) -> bool;

    /// Waits until a failed model has let go of its memory, so that there aren't two of it.
    fn wait_released(&self);

    /// It is answering, or about to.
    fn is_busy(&self) -> bool;
}

/// How long a model stays loaded that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long after its last use.
    For(Duration),
    /// Until the process ends.
    Forever,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self::For(Duration::from_secs(300))
    }
}

/// A loaded model and how long it stays.
#[derive(Debug)]
pub struct Life<M> {
    /// It.
    pub model: Arc<M>,
    /// Time left if nobody uses it; `None`: no end.
    pub left: Option<Duration>,
}

type Loader<M> = Box<dyn Fn(&Discovered) -> crate::Result<M> + Send + Sync>;

/// All models of a process. `M` is [`LoadedModel`] but in tests.
pub struct Models<M: Servable = LoadedModel> {
    /// Explicitly named ones, found before those of the roots.
    pinned: Vec<Discovered>,
    roots: Vec<PathBuf>,
    loader: Loader<M>,
    /// Of models that were loaded because somebody asked for them. The pinned ones stay.
    keep_alive: KeepAlive,
    state: Mutex<State<M>>,
    /// Held while the disk is walked, so that many askers make one scan.
    scanning: Mutex<()>,
}

struct State<M> {
    /// With when its scan began.
    catalog: Option<(Instant, Arc<Catalog>)>,
    /// By path: a model with two names is loaded once.
    slots: HashMap<PathBuf, Slot<M>>,
}

enum Slot<M> {
    Loading(Arc<Attempt<M>>),
    Ready(Ready<M>),
}

struct Ready<M> {
    model: Arc<M>,
    keep_alive: KeepAlive,
    last_use: Instant,
}

impl<M: Servable> Ready<M> {
    /// Time left at `now`; `None`: no end.
    fn left(&self, now: Instant) -> Option<Duration> {
        match self.keep_alive {
            KeepAlive::Forever => None,
            KeepAlive::For(time) if self.model.is_busy() => Some(time),
            KeepAlive::For(time) => Some(time.saturating_sub(now.saturating_duration_since(self.last_use))),
        }
    }
}

/// One running load and who waits for it.
struct Attempt<M> {
    name: String,
    outcome: Mutex<Option<Result<Arc<M>, SharedError>>>,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these is held leaves whole values behind: they are only ever replaced.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Servable> Models<M> {
    /// `pinned` models come first and are known without a scan; `roots` are walked when a list or an unknown name asks for it.
    pub fn new(
        pinned: Vec<Discovered>,
        roots: Vec<PathBuf>,
        loader: impl Fn(&Discovered) -> crate::Result<M> + Send + Sync + 'static,
    ) -> Self {
        Self {
            pinned,
            roots,
            loader: Box::new(loader),
            keep_alive: KeepAlive::default(),
            state: Mutex::new(State { catalog: None, slots: HashMap::new() }),
            scanning: Mutex::new(()),
        }
    }

    /// The same with another time for models that aren't pinned.
    #[must_use]
    pub fn with_keep_alive(self, keep_alive: KeepAlive) -> Self {
        Self { keep_alive, ..self }
    }

    /// The first model that was named when the process started: it answers requests that name none.
    pub fn default_model(&self) -> Option<&Discovered> {
        self.pinned.first()
    }

    /// Every model there is, by name, and whether it is loaded. May walk the disk.
    pub fn list(&self) -> Vec<(Discovered, bool)> {
        let catalog = self.catalog(CATALOG_AGE);
        let state = lock(&self.state);
        let is_loaded = |model: &Discovered| matches!(state.slots.get(&model.path), Some(Slot::Ready(loaded)) if !loaded.model.has_failed());
        catalog.models().iter().map(|model| (model.clone(), is_loaded(model))).collect()
    }

    /// Every loaded model, in no order. Quick: no disk, no waiting.
    pub fn loaded(&self) -> Vec<Arc<M>> {
        let state = lock(&self.state);
        let ready = |slot: &Slot<M>| match slot {
            Slot::Ready(ready) => Some(Arc::clone(&ready.model)),
            Slot::Loading(_) => None,
        };
        state.slots.values().filter_map(ready).collect()
    }

    /// Names of the models that are being loaded now. Quick.
    pub fn loading(&self) -> Vec<String> {
        let name = |slot: &Slot<M>| match slot {
            Slot::Ready(_) => None,
            Slot::Loading(attempt) => Some(attempt.name.clone()),
        };
        let mut names: Vec<String> = lock(&self.state).slots.values().filter_map(name).collect();
        names.sort();
        names
    }

    /// [`list`](Self::list) by a scan that began after this call. Who calls while others wait for theirs shares one.
    pub fn rescan(&self) -> Vec<(Discovered, bool)> {
        let asked = Instant::now();
        let scanning = lock(&self.scanning);
        let is_older = lock(&self.state).catalog.as_ref().is_none_or(|(began, _)| *began < asked);
        if is_older {
            self.scan();
        }
        drop(scanning);
        self.list()
    }

    /// The loaded models with how long they stay.
    pub fn lives(&self) -> Vec<Life<M>> {
        let now = Instant::now();
        let life = |slot: &Slot<M>| match slot {
            Slot::Ready(ready) => Some(Life { model: Arc::clone(&ready.model), left: ready.left(now) }),
            Slot::Loading(_) => None,
        };
        lock(&self.state).slots.values().filter_map(life).collect()
    }

    /// Sets how long the model called `name` stays after its last use, which is now. Says whether it is loaded. Quick.
    pub fn keep(&self, name: &str, keep_alive: KeepAlive) -> bool {
        let Some(path) = self.known(name).map(|model| model.path) else { return false };
        match lock(&self.state).slots.get_mut(&path) {
            Some(Slot::Ready(ready)) => {
                (ready.keep_alive, ready.last_use) = (keep_alive, Instant::now());
                true
            }
            _ => false,
        }
    }

    /// Lets the model called `name` go; running answers are finished. Says whether it was loaded. May take as long as its last
    /// writes to the disk.
    pub fn unload(&self, name: &str) -> bool {
        let Some(path) = self.known(name).map(|model| model.path) else { return false };
        let mut state = lock(&self.state);
        if !matches!(state.slots.get(&path), Some(Slot::Ready(_))) {
            return false;
        }
        let gone = state.slots.remove(&path);
        drop(state);
        drop(gone);
        true
    }

    /// Lets models go that nobody has used for as long as they are kept, and says how many. May take as long as their last writes to the
    /// disk. Call it now and then.
    pub fn sweep(&self) -> usize {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut state = lock(&self.state);
        state.slots.retain(|_, slot| {
            let Slot::Ready(ready) = slot else { return true };
            if ready.model.is_busy() {
                ready.last_use = now;
                return true;
            }
            if ready.left(now) != Some(Duration::ZERO) {
                return true;
            }
            // Whoever has it may be about to hand in a request.
            if Arc::strong_count(&ready.model) > 1 {
                return true;
            }
            gone.push(Arc::clone(&ready.model));
            false
        });
        drop(state);
        gone.len()
    }

    /// What is called `name`, loaded or not. May walk the disk.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] with the nearest names.
    pub fn find(&self, name: &str) -> crate::Result<Discovered> {
        if let Some(model) = self.known(name) {
            return Ok(model);
        }
        let catalog = self.catalog(CATALOG_AGE);
        if let Some(model) = catalog.find(name) {
            return Ok(model.clone());
        }
        let catalog = self.catalog(RESCAN_AGE);
        catalog.find(name).cloned().ok_or_else(|| catalog.not_found(name))
    }

    /// The model called `name` if it is loaded. Quick: no disk, no waiting.
    pub fn ready(&self, name: &str) -> Option<Arc<M>> {
        let path = self.known(name)?.path;
        match lock(&self.state).slots.get(&path) {
            Some(Slot::Ready(ready)) if !ready.model.has_failed() => Some(Arc::clone(&ready.model)),
            _ => None,
        }
    }

    /// The model called `name`, loaded if it isn't yet, and loaded again if it has failed. Blocks while it loads.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`], or what the load failed with. The next call tries again.
    pub fn get(&self, name: &str) -> Result<Arc<M>, SharedError> {
        let model = self.find(name)?;
        let mut failed = None;
        let (attempt, is_mine) = {
            let mut state = lock(&self.state);
            match state.slots.get_mut(&model.path) {
                Some(Slot::Ready(ready)) if !ready.model.has_failed() => {
                    ready.last_use = Instant::now();
                    return Ok(Arc::clone(&ready.model));
                }
                Some(Slot::Loading(attempt)) => (Arc::clone(attempt), false),
                Some(Slot::Ready(_)) | None => {
                    let attempt =
                        Arc::new(Attempt { name: model.name.clone(), outcome: Mutex::new(None), done: Condvar::new() });
                    let before = state.slots.insert(model.path.clone(), Slot::Loading(Arc::clone(&attempt)));
                    if let Some(Slot::Ready(ready)) = before {
                        failed = Some(ready.model);
                    }
                    (attempt, true)
                }
            }
        };
        if !is_mine {
            let mut outcome = lock(&attempt.outcome);
            loop {
                if let Some(outcome) = outcome.as_ref() {
                    return outcome.clone();
                }
                outcome = attempt.done.wait(outcome).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let mut finish = Finish { models: self, path: &model.path, attempt: &attempt, outcome: None };
        if let Some(failed) = failed {
            tracing::warn!(model = model.name, "it failed and is loaded again");
            failed.wait_released();
        }
        let outcome = (self.loader)(&model).map(Arc::new).map_err(Arc::new);
        finish.outcome = Some(outcome.clone());
        drop(finish);
        outcome
    }

    /// A model of the pinned ones or of the last scan, however old.
    fn known(&self, name: &str) -> Option<Discovered> {
        let state = lock(&self.state);
        if let Some((_, catalog)) = &state.catalog {
            return catalog.find(name).cloned();
        }
        drop(state);
        let wanted = super::names::normalise(name);
        self.pinned.iter().find(|model| model.name == wanted || model.name == name).cloned()
    }

    fn fresh(&self, age: Duration) -> Option<Arc<Catalog>> {
        let state = lock(&self.state);
        let (at, catalog) = state.catalog.as_ref()?;
        (at.elapsed() < age).then(|| Arc::clone(catalog))
    }

    fn catalog(&self, age: Duration) -> Arc<Catalog> {
        if let Some(catalog) = self.fresh(age) {
            return catalog;
        }
        let _scanning = lock(&self.scanning);
        if let Some(catalog) = self.fresh(age) {
            return catalog;
        }
        self.scan()
    }

    /// Walks the disk. Call it with `scanning` held.
    fn scan(&self) -> Arc<Catalog> {
        let began = Instant::now();
        let catalog = Arc::new(Catalog::scan(&self.pinned, &self.roots));
        lock(&self.state).catalog = Some((began, Arc::clone(&catalog)));
        catalog
    }
}

/// Publishes the outcome of a load, even if the loader panicked: nobody may wait for ever.
struct Finish<'a, M: Servable> {
    models: &'a Models<M>,
    path: &'a PathBuf,
    attempt: &'a Attempt<M>,
    outcome: Option<Result<Arc<M>, SharedError>>,
}

impl<M: Servable> Drop for Finish<'_, M> {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            Err(Arc::new(Error::EngineStopped(format!("loading {} failed unexpectedly", self.path.display()))))
        });
        let mut state = lock(&self.models.state);
        match &outcome {
            Ok(model) => {
                let is_pinned = self.models.pinned.iter().any(|pinned| pinned.path == *self.path);
                let keep_alive = if is_pinned { KeepAlive::Forever } else { self.models.keep_alive };
                let ready = Ready { model: Arc::clone(model), keep_alive, last_use: Instant::now() };
                state.slots.insert(self.path.clone(), Slot::Ready(ready))
            }
            Err(_) => state.slots.remove(self.path),
        };
        drop(state);
        *lock(&self.attempt.outcome) = Some(outcome);
        self.attempt.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::models::discover::Origin;

    impl Servable for String {
        fn has_failed(&self) -> bool {
            self == "failed"
        }

        fn wait_released(&self) {}

        fn is_busy(&self) -> bool {
            self == "busy"
        }
    }

    impl Servable for () {
        fn has_failed(&self) -> bool {
            false
        }

        fn wait_released(&self) {}

        fn is_busy(&self) -> bool {
            false
        }
    }

    fn entry(name: &str) -> Discovered {
        Discovered {
            name: name.into(),
            aliases: vec![format!("{name}-alias")],
            path: format!("/nowhere/{name}").into(),
            bytes: 0,
            modified: None,
            origin: Origin::File,
        }
    }

    #[test]
    fn eight_askers_make_one_load() {
        let loads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loads);
        let models = Models::new(vec![entry("a")], vec![], move |model| {
            counter.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            Ok(model.name.clone())
        });
        assert!(models.ready("a").is_none());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| models.get("A").unwrap())).collect();
            for thread in threads {
                assert_eq!(*thread.join().unwrap(), "a");
            }
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(models.ready("a").as_deref(), Some(&"a".to_string()));
        assert_eq!(*models.get("a-alias").unwrap(), "a");
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert!(models.list()[0].1);
    }

    #[test]
    fn a_failed_load_is_reported_to_all_and_tried_again() {
        let loads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loads);
        let models: Models<()> = Models::new(vec![entry("a")], vec![], move |_| {
            std::thread::sleep(Duration::from_millis(20));
            match counter.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Error::Unsupported("first".into())),
                _ => Ok(()),
            }
        });
        let errors = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| models.get("a").is_err())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|&failed| failed).count()
        });
        assert!(errors >= 1);
        assert!(models.get("a").is_ok());
    }

    #[test]
    fn a_model_that_failed_is_loaded_again_when_it_is_next_asked_for() {
        let loads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loads);
        let models = Models::new(vec![entry("a"), entry("b")], vec![], move |model| {
            let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            Ok(if first { "failed".to_owned() } else { model.name.clone() })
        });
        assert_eq!(*models.get("a").unwrap(), "failed");
        assert_eq!(*models.get("b").unwrap(), "b");
        assert_eq!(*models.get("a").unwrap(), "a");
        for name in ["a", "b"] {
            assert_eq!(*models.get(name).unwrap(), name);
        }
        assert_eq!(loads.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn models_go_when_their_time_is_over_and_nobody_uses_them() {
        let root = tempfile::tempdir().unwrap();
        for name in ["idle", "busy", "held", "kept"] {
            std::fs::write(root.path().join(format!("{name}.gguf")), b"x").unwrap();
        }
        let pinned = vec![entry("pinned")];
        let models = Models::new(pinned, vec![root.path().into()], |model| Ok(model.name.clone()));
        let models = models.with_keep_alive(KeepAlive::For(Duration::ZERO));
        let held = models.get("held").unwrap();
        for name in ["pinned", "idle", "busy", "kept"] {
            models.get(name).unwrap();
        }
        assert!(models.keep("kept", KeepAlive::For(Duration::from_secs(1000))));
        assert!(!models.keep("nobody", KeepAlive::Forever));
        let names = || {
            let mut names: Vec<String> = models.loaded().iter().map(|model| model.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!((models.sweep(), names()), (1, ["busy", "held", "kept", "pinned"].map(String::from).to_vec()));
        let left = |name: &str| models.lives().into_iter().find(|life| *life.model == name).unwrap().left;
        assert_eq!((left("pinned"), left("held")), (None, Some(Duration::ZERO)));
        assert!(left("kept") > Some(Duration::from_secs(900)));
        drop(held);
        assert_eq!((models.sweep(), names()), (1, ["busy", "kept", "pinned"].map(String::from).to_vec()));
        assert!(models.unload("pinned") && !models.unload("pinned") && !models.unload("nobody"));
        assert_eq!(*models.get("pinned").unwrap(), "pinned", "it can be loaded again");
    }

    #[test]
    fn a_panicking_loader_frees_the_waiters() {
        let models: Models<()> = Models::new(vec![entry("a")], vec![], |_| panic!("loader"));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| models.get("a"));
            assert!(first.join().is_err());
        });
        assert!(lock(&models.state).slots.is_empty());
    }

    #[test]
    fn an_unknown_name_lists_the_nearest_and_loads_nothing() {
        let models: Models<()> = Models::new(vec![entry("smollm2")], vec![], |_| panic!("loaded"));
        let error = models.get("smollm3").unwrap_err();
        assert!(matches!(&*error, Error::ModelNotFound { nearest, .. } if nearest == &["smollm2"]), "{error}");
        assert_eq!(models.default_model().unwrap().name, "smollm2");
    }

    #[test]
    fn a_new_file_is_found_without_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let models = Models::new(vec![], vec![root.path().into()], |model| Ok(model.name.clone()));
        assert!(models.get("late").is_err());
        std::fs::write(root.path().join("late.gguf"), b"x").unwrap();
        // The unknown name made a scan a moment ago; another one is due after RESCAN_AGE.
        lock(&models.state).catalog.as_mut().unwrap().0 -= RESCAN_AGE;
        assert_eq!(*models.get("late").unwrap(), "late");
    }
}
