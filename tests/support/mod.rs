//! What several test binaries need: the goldens folder, and skips that CI turns into failures.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part, as a private module")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The goldens folder: `SHIMMY_GOLDENS`, else `../shared/goldens` beside the checkout.
///
/// A missing folder prints `SKIP` for a stranger's clone and fails where `CI=true`.
pub(crate) fn goldens() -> Option<PathBuf> {
    let path = std::env::var_os("SHIMMY_GOLDENS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    let why = format!("no goldens at {} (set SHIMMY_GOLDENS)", path.display());
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    println!("SKIP {why}");
    None
}

/// A model of `scripts/fetch-model`, fetched if it isn't in the cache; once a process, however many tests ask for it.
///
/// Without network or pip this prints `SKIP` for a stranger and fails where `CI=true`.
pub(crate) fn fetch_model(name: &'static str) -> Option<PathBuf> {
    static FETCHED: Mutex<BTreeMap<&str, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());
    // A test that failed here has left no entry behind: the next one asks again.
    let mut fetched = FETCHED.lock().unwrap_or_else(PoisonError::into_inner);
    match fetched.entry(name).or_insert_with(|| run_fetch_model(name)) {
        Ok(path) => Some(path.clone()),
        Err(why) => {
            skip(why);
            None
        }
    }
}

fn run_fetch_model(name: &str) -> Result<PathBuf, String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/fetch-model");
    let output = std::process::Command::new(&script).arg(name).output();
    let output = output.map_err(|error| format!("{}: {error}", script.display()))?;
    if !output.status.success() {
        return Err(format!("{} {name}: {}", script.display(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout.lines().last().map(PathBuf::from).ok_or_else(|| format!("{} printed no path", script.display()))
}

/// Whether there is a GPU to test on. Without one this prints `SKIP`, and fails where `REQUIRE_CUDA=1`; CI has none.
pub(crate) fn has_gpu() -> bool {
    use shimmy_kernels::cuda::{Driver, probe};
    let driver = probe();
    if matches!(&driver, Driver::Present { devices, .. } if !devices.is_empty()) {
        return true;
    }
    skip_unless("REQUIRE_CUDA", &format!("on a GPU: {driver}"));
    false
}

/// Prints `SKIP` with the reason; fails where the variable is 1. For what no package registry brings to every machine that runs CI.
pub(crate) fn skip_unless(required: &str, why: &str) {
    assert!(std::env::var(required).as_deref() != Ok("1"), "{required}=1: {why}");
    println!("SKIP {why}");
}

/// Prints `SKIP` with the reason; fails where `CI=true`.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    println!("SKIP {why}");
}
