//! What several test binaries need: the goldens folder, and skips that CI turns into failures.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part, as a private module")]

use std::path::PathBuf;

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

/// A model of `scripts/fetch-model`, fetched if it isn't in the cache.
///
/// Without network or pip this prints `SKIP` for a stranger and fails where `CI=true`.
pub(crate) fn fetch_model(name: &str) -> Option<PathBuf> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/fetch-model");
    let output = std::process::Command::new(&script).arg(name).output();
    let why = match output {
        Ok(output) if output.status.success() => {
            let stdout = String::from_utf8_lossy(&output.stdout);
            return stdout.lines().last().map(PathBuf::from);
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    skip(&format!("{} {name}: {why}", script.display()));
    None
}

/// Prints `SKIP` with the reason; fails where `CI=true`.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    println!("SKIP {why}");
}
