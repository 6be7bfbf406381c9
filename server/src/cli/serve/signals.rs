//! SIGTERM and SIGINT: the first drains the server, a second one ends it.

use std::time::Duration;

use crate::cli::failure;

/// A second signal this soon is the same wish: a terminal and a wrapping script both pass Ctrl-C on.
const SAME_WISH: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }

    /// Returns at the first signal; a second, later one ends the process at once.
    pub(super) async fn received(mut self) {
        self.next().await;
        actix_web::rt::spawn(async {
            tokio::time::sleep(SAME_WISH).await;
            // A new one doesn't know of the signals of the last second.
            if let Ok(mut signals) = Self::new() {
                signals.next().await;
                std::process::exit(i32::from(failure::INTERRUPTED));
            }
        });
    }
}
