//! Ctrl-C: ends the program with 130 or, while somebody listens, tells the listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::failure::INTERRUPTED;

/// The handler, alive for the rest of the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt {
    listening: Arc<AtomicBool>,
    pressed: Arc<Notify>,
}

impl Interrupt {
    /// Starts to watch for SIGINT.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let watched = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async move {
                while tokio::signal::ctrl_c().await.is_ok() {
                    if watched.listening.load(Ordering::SeqCst) {
                        watched.pressed.notify_one();
                    } else {
                        std::process::exit(i32::from(INTERRUPTED));
                    }
                }
            });
        })?;
        Ok(interrupt)
    }

    /// From now on Ctrl-C goes to [`Listener::pressed`], until the listener is dropped.
    pub(super) fn listen(&self) -> Listener<'_> {
        self.listening.store(true, Ordering::SeqCst);
        Listener(self)
    }
}

/// Catches Ctrl-C.
#[derive(Debug)]
pub(super) struct Listener<'a>(&'a Interrupt);

impl Listener<'_> {
    /// Returns when Ctrl-C was pressed.
    pub(super) async fn pressed(&self) {
        self.0.pressed.notified().await;
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.0.listening.store(false, Ordering::SeqCst);
    }
}
