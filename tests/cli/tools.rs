//! Other people's programs that tests need, installed once under the target folder: Python packages and Node packages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What was installed by this process, or why it couldn't be.
static INSTALLED: Mutex<BTreeMap<String, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());

fn once(folder: &str, install: impl FnOnce(&Path) -> Result<PathBuf, String>) -> Result<PathBuf, String> {
    // One after the other: npm and pip share caches.
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    installed.entry(folder.to_owned()).or_insert_with(|| install(&path)).clone()
}

fn step(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// A Python with these packages (`name==version`): a virtual environment of this name. `Err` says why there is none.
pub(crate) fn python(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    once(name, |folder| {
        let python = folder.join("bin/python");
        let check = "import sys\nfrom importlib.metadata import version\n\
                     for name, wanted in (package.split('==') for package in sys.argv[1:]):\n    assert version(name) == wanted";
        let has_all = Command::new(&python).args(["-c", check]).args(packages).output();
        if has_all.is_ok_and(|output| output.status.success()) {
            return Ok(python);
        }
        step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        step(Command::new(&python).args(pip).args(packages))?;
        Ok(python)
    })
}

/// A folder whose scripts can import these packages (`name@version`) of npm. `Err` says why there is none.
pub(crate) fn node(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    once(name, |folder| {
        step(Command::new("node").arg("--version"))?;
        let (list, wanted) = (folder.join("installed"), packages.join("\n"));
        if fs::read_to_string(&list).is_ok_and(|installed| installed == wanted) {
            return Ok(folder.to_owned());
        }
        // What an interrupted installation has left; there may be nothing.
        let _ = fs::remove_dir_all(folder);
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(failed)?;
        fs::write(folder.join("package.json"), "{\"private\": true, \"type\": \"module\"}").map_err(failed)?;
        let npm = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact"];
        step(Command::new("npm").args(npm).args(packages).current_dir(folder))?;
        fs::write(list, wanted).map_err(failed)?;
        Ok(folder.to_owned())
    })
}

/// The path of a script in `tests/cli/clients`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/clients").join(name)
}

/// Runs a client to its end, which must be a good one.
pub(crate) fn run(program: impl AsRef<OsStr>, args: &[&OsStr]) {
    // Python would leave its caches beside the scripts.
    let output = Command::new(program).args(args).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.ends_with("all good\n"), "{stdout}");
}
