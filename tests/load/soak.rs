//! `scripts/soak` for a minute.

use std::process::Command;

use crate::support;

#[test]
fn a_minute_of_mixed_load_leaves_nothing_behind() {
    let Some(model) = crate::model() else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        return support::skip("python3 is not installed");
    }
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/soak"))
        .args(["--seconds", "60", "--stall-seconds", "1", "--long", "600", "--shimmy", env!("CARGO_BIN_EXE_shimmy")])
        .args(["--serve-options", "--threads 2 --kv-tokens 16384"])
        .arg(model)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success() && said.ends_with("soak: passed\n"), "{said}");
}
