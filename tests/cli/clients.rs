//! The official clients for Python, from pip, against the real server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::binary::Server;
use crate::support;

/// What these tests were written with; the clients' newest versions change without us.
const CLIENTS: [&str; 4] = ["openai==3.54.0", "anthropic==2.12.0", "ollama==0.6.3", "websockets==17.4"];

/// A Python with the clients: a virtual environment under the target folder, made once. `Err` says why there is none.
fn python() -> Result<PathBuf, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(install).clone()
}

fn install() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let python = folder.join("bin/python");
    let has_clients = |python: &Path| {
        let check = "import sys\nfrom importlib.metadata import version\n\
                     for name, wanted in (client.split('==') for client in sys.argv[1:]):\n    assert version(name) == wanted";
        Command::new(python).args(["-c", check]).args(CLIENTS).output().is_ok_and(|output| output.status.success())
    };
    if has_clients(&python) {
        return Ok(python);
    }
    let step = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    };
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    step(Command::new(&python).args(pip).args(CLIENTS))?;
    Ok(python)
}

/// Runs a script of `tests/cli/clients` against a server with the default model.
fn run(script: &str) {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match python() {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    let server = Server::start(&model);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/clients").join(script);
    let output = Command::new(python).arg(script).arg(&server.url).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.ends_with("all good\n"), "{stdout}");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn openais_client_chats() {
    run("openai_client.py");
}

#[test]
fn anthropics_client_chats() {
    run("anthropic_client.py");
}

#[test]
fn ollamas_client_chats() {
    run("ollama_client.py");
}

#[test]
fn a_websocket_client_generates() {
    run("websocket_client.py");
}
