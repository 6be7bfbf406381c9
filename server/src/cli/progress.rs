//! A progress bar on stderr while a large file is prepared.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shimmy_runtime::models::load::{Progress, ProgressFn};

/// Smaller files are there before anybody could read a bar.
const LARGE_FILE_BYTES: u64 = 256 << 20;

/// A bar that removes itself when dropped.
pub(super) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar for a file of this size, if it is large and somebody watches.
    pub(super) fn new(file_bytes: u64) -> Self {
        let is_shown = file_bytes >= LARGE_FILE_BYTES && std::io::stderr().is_terminal();
        let bar = is_shown.then(|| {
            let bar = ProgressBar::new(file_bytes);
            let style = "{msg:>9} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar }
    }

    /// What `load` calls.
    pub(super) fn watcher(&self) -> Option<ProgressFn> {
        let bar = self.bar.clone()?;
        Some(Arc::new(move |progress: Progress| {
            bar.set_message(progress.stage.name());
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
