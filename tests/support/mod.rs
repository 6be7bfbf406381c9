//! What several test binaries need: the goldens folder, and skips that CI turns into failures.

#![allow(dead_code, reason = "each test binary uses its own part")]

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
