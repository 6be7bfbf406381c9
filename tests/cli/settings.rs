//! Settings and their sources, API keys, and the sockets of a server, from the outside.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::binary::{Ended, Server, finish, shimmy, signal, wait};
use crate::support;

/// Runs the binary in a folder with this `shimmy.toml`.
fn with_file(text: &str, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("shimmy.toml"), text).unwrap();
    let mut command = shimmy();
    command.env_remove("SHIMMY_CONFIG").env("XDG_CONFIG_HOME", folder.path()).envs(env.iter().copied());
    finish(command.current_dir(folder.path()).args(args))
}

const FILE: &str = "# ours
port = 8080
kv = \"q8_0\"
deterministic = true
allow-origin = [\"https://a.example\", \"https://b.example\"]

[generate]
max_tokens = 7
";

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let show = |args: &[&str], env: &[(&str, &str)]| {
        let ended = with_file(FILE, &[&["config", "show", "--json", "serve"], args].concat(), env);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()
    };
    let entry = |shown: &Value, key: &str| {
        (shown[key]["value"].as_str().unwrap_or("-").to_owned(), shown[key]["source"].as_str().unwrap().to_owned())
    };
    let is = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    let plain = show(&[], &[]);
    assert_eq!(entry(&plain, "port"), is("8080", "shimmy.toml:2"));
    assert_eq!(entry(&plain, "deterministic"), is("true", "shimmy.toml:4"));
    assert_eq!(entry(&plain, "allow-origin"), is("https://a.example,https://b.example", "shimmy.toml:5"));
    assert_eq!(entry(&plain, "queue"), is("512", "default"));
    assert_eq!(entry(&plain, "model"), is("-", "not set"));
    let env = [("SHIMMY_PORT", "8081"), ("SHIMMY_API_KEY", "sesame")];
    let of_env = show(&[], &env);
    assert_eq!(entry(&of_env, "port"), is("8081", "environment: SHIMMY_PORT"));
    assert_eq!(entry(&of_env, "api-key"), is("(hidden)", "environment: SHIMMY_API_KEY"));
    // A flag goes before what excludes it in the file, too.
    let typed = show(&["--port", "8082", "--deterministic=false", "--cache-type-k", "f16"], &env);
    assert_eq!(entry(&typed, "port"), is("8082", "command line"));
    assert_eq!(entry(&typed, "deterministic"), is("false", "command line"));
    assert_eq!(entry(&typed, "kv"), is("f16", "default"));

    let of_generate = with_file(FILE, &["config", "show", "--json", "generate"], &[]);
    let of_generate: Value = serde_json::from_str(&of_generate.stdout).unwrap();
    assert_eq!(of_generate["max-tokens"]["value"], "7");
    let table = with_file(FILE, &["config", "show"], &[]);
    assert!(table.stdout.contains("SOURCE") && table.stdout.contains("shimmy.toml:2"), "{}", table.stdout);
}

#[test]
fn mistakes_in_the_file_are_named_with_their_line() {
    for (text, args, parts) in [
        ("\nprot = 1\n", &["list"][..], &["shimmy.toml:2", "`prot`", "port"][..]),
        ("[srve]\nport = 1\n", &["list"], &["shimmy.toml:2", "`srve`", "serve"]),
        ("[generate]\nport = 1\n", &["list"], &["`port` is no option of `shimmy generate`"]),
        ("port = \"many\"\n", &["serve"], &["shimmy.toml:1", "many", "--port"]),
        ("deterministic = 5\n", &["serve"], &["true or false"]),
        ("port = [1, 2]\n", &["serve"], &["shimmy.toml:1", "--port"]),
        ("port = \n", &["list"], &["shimmy.toml:1"]),
        ("json = true\n", &["list"], &["`json` is no option"]),
    ] {
        let ended = with_file(text, args, &[]);
        assert_eq!(ended.code, Some(2), "{text:?}: {}", ended.stderr);
        assert!(parts.iter().all(|part| ended.stderr.contains(part)), "{text:?}: {}", ended.stderr);
    }
    let missing = with_file("", &["--config", "missing.toml", "list"], &[]);
    assert!(missing.code == Some(2) && missing.stderr.contains("missing.toml"), "{}", missing.stderr);
    assert_eq!(with_file("prot = 1", &["--config", "", "list"], &[]).code, Some(0));
}

#[test]
fn keys_are_made_listed_used_and_taken_away() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let file = file.to_str().unwrap();
    let key = |args: &[&str]| finish(shimmy().arg("key").args(args).args(["--file", file]));
    let new = key(&["new", "ann", "--requests-per-minute", "100"]);
    let ann = new.stdout.trim().to_owned();
    assert!(new.code == Some(0) && ann.starts_with("sk-shimmy-"), "{} {}", new.stdout, new.stderr);
    assert_eq!(key(&["new", "ann"]).code, Some(2));
    assert_eq!(key(&["new", "bob", "--least-priority", "-5"]).code, Some(0));
    assert!(!fs::read_to_string(file).unwrap().contains(&ann[10..]));
    let list: Value = serde_json::from_str(&key(&["list", "--json"]).stdout).unwrap();
    assert_eq!((&list[0]["name"], &list[0]["requests_per_minute"]), (&"ann".into(), &100.into()));
    assert_eq!((&list[0]["least_priority"], &list[1]["least_priority"]), (&Value::Null, &(-5).into()));

    let log = folder.path().join("access.jsonl");
    let server = Server::start_with(&model, &["--api-key-file", file, "--access-log", log.to_str().unwrap()]);
    let status = |key: &str| {
        let request = ureq::get(format!("{}/v1/models", server.url)).header("authorization", format!("Bearer {key}"));
        match request.call() {
            Ok(response) => response.status().as_u16(),
            Err(ureq::Error::StatusCode(status)) => status,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!((status(&ann), status("sk-shimmy-0")), (200, 401));
    assert_eq!(key(&["remove", "ann"]).code, Some(0));
    let start = Instant::now();
    while status(&ann) == 200 {
        assert!(start.elapsed() < Duration::from_secs(30), "a key that was taken away still opens");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(key(&["remove", "eve"]).stderr.contains("bob"));
    assert_eq!(server.terminate(), Some(0));
    // All of it, though the server has ended.
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_models: Vec<&Value> = lines.iter().filter(|line| line["path"] == "/v1/models").collect();
    assert_eq!((&of_models[0]["key"], &of_models[0]["status"]), (&"ann".into(), &200.into()));
    let last = of_models.last().unwrap();
    assert_eq!((&last["key"], &last["error"]), (&Value::Null, &"invalid_api_key".into()));
    assert!(!log.contains(&ann));
}

/// A GET on an open connection: the response.
fn get(mut stream: UnixStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn a_unix_socket_serves_and_a_service_manager_is_told() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (socket, manager) = (folder.path().join("shimmy.sock"), folder.path().join("notify.sock"));
    let told = UnixDatagram::bind(&manager).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hear = || {
        let mut message = [0; 256];
        let length = told.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut command = shimmy();
    command.args(["serve", "--unix-socket"]).arg(&socket).arg("--model").arg(&model).env("NOTIFY_SOCKET", &manager);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("listening on unix:{}\n", socket.display()));
    assert_eq!(hear().trim(), "READY=1");
    let response = get(UnixStream::connect(&socket).unwrap(), "/health");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    signal(&child, Signal::TERM);
    assert_eq!(hear().trim(), "STOPPING=1");
    assert_eq!(wait(&mut child), Some(0));
    assert!(!socket.exists(), "the socket stays behind");
}

#[test]
fn sockets_of_systemd_are_taken_over() {
    if Command::new("python3").arg("--version").output().is_err() {
        return support::skip("python3 is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("given.sock");
    // What systemd does: the socket as descriptor 3, and who it is for. Where 3 was free the socket has it at once,
    // and copying it onto itself wouldn't keep it open over exec.
    let give = "import os, socket, sys\n\
                s = socket.socket(socket.AF_UNIX)\n\
                s.bind(sys.argv[1])\n\
                s.listen()\n\
                os.dup2(s.fileno(), 3)\n\
                os.set_inheritable(3, True)\n\
                os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
                os.execv(sys.argv[2], sys.argv[2:])\n";
    let binary = shimmy();
    let mut command = Command::new("python3");
    command.args(["-c", give]).arg(&socket).arg(binary.get_program()).arg("serve").env("SHIMMY_CONFIG", "");
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("listening on unix:{}\n", socket.display()));
    let response = get(UnixStream::connect(&socket).unwrap(), "/health");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child), Some(0));
    assert!(socket.exists(), "it is systemd's");
}
