//! Starting the binary and reading what it says.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The binary under test, without this machine's settings.
pub(crate) fn shimmy() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shimmy"));
    for (name, _) in std::env::vars_os() {
        let is_ours = name.to_string_lossy().starts_with("SHIMMY_");
        // Where the tests find their goldens.
        let is_others = ["OLLAMA_", "OTEL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        if (is_ours && name != "SHIMMY_GOLDENS") || is_others {
            command.env_remove(name);
        }
    }
    // An empty name: no file of settings.
    command.env("SHIMMY_CONFIG", "");
    command.stdin(Stdio::null());
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary to its end. Whatever happens, it must not panic.
pub(crate) fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ended {
    finish(shimmy().args(args))
}

pub(crate) fn finish(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    let ended = Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    };
    assert!(!ended.stderr.contains("panicked") && !ended.stderr.contains("internal error"), "{}", ended.stderr);
    ended
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits for the end of a process, but not for ever.
pub(crate) fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it did not end in 60 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `shimmy serve` on a port that the system chose; killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// `http://127.0.0.1:…`, without a slash at the end.
    pub(crate) url: String,
    /// From its start to its first healthy answer.
    pub(crate) start_time: Duration,
}

impl Server {
    /// Serves a model and waits until it is healthy.
    pub(crate) fn start(model: &Path) -> Self {
        Self::start_with(model, &[])
    }

    pub(crate) fn start_with(model: &Path, more: &[&str]) -> Self {
        Self::start_from(shimmy(), model, more)
    }

    /// From a [`shimmy`] whose environment is set.
    pub(crate) fn start_from(mut command: Command, model: &Path, more: &[&str]) -> Self {
        let start = Instant::now();
        command.arg("serve").arg("--model").arg(model).args(["--port", "0"]).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        loop {
            match ureq::get(format!("{url}/health")).call() {
                Ok(_) => break,
                Err(ureq::Error::StatusCode(503)) if start.elapsed() < Duration::from_secs(60) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("{url}/health: {error}; the server: {:?}", child.try_wait()),
            }
        }
        Self { child, url, start_time: start.elapsed() }
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        signal(&self.child, Signal::TERM);
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a reader gives until its end.
pub(crate) fn read_all(mut reader: impl Read) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}
