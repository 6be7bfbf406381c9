//! The official OpenAI client for Python, from pip, against the real server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binary::Server;
use crate::support;

/// What this test was written with; the client's newest versions change without us.
const CLIENT: &str = "openai==3.54.0";

/// A Python with the client: a virtual environment under the target folder, made once. `Err` says why there is none.
fn python() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let python = folder.join("bin/python");
    let has_client = |python: &Path| {
        let version = CLIENT.rsplit('=').next().unwrap_or_default();
        let check = format!("import openai, sys; sys.exit(openai.__version__ != '{version}')");
        Command::new(python).args(["-c", &check]).output().is_ok_and(|output| output.status.success())
    };
    if has_client(&python) {
        return Ok(python);
    }
    let step = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    };
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    step(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", CLIENT]))?;
    Ok(python)
}

#[test]
fn the_official_client_chats() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match python() {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    let server = Server::start(&model);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/openai_client.py");
    let output = Command::new(python).arg(script).arg(&server.url).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.ends_with("all good\n"), "{stdout}");
    assert_eq!(server.terminate(), Some(0));
}
