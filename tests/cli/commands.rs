//! The command line without a model: help, version, exit codes, messages.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::binary::{finish, run, shimmy};
use crate::support;

#[test]
fn help_is_on_stdout_and_mistakes_are_on_stderr() {
    let help = run(["--help"]);
    assert_eq!(help.code, Some(0));
    for command in ["serve", "generate", "chat", "list", "inspect", "probe", "gpu-info"] {
        assert!(help.stdout.contains(command), "{command} is missing in\n{}", help.stdout);
        let of_command = run([command, "--help"]);
        assert_eq!((of_command.code, of_command.stderr.as_str()), (Some(0), ""));
        assert!(of_command.stdout.contains("Usage: shimmy"), "{}", of_command.stdout);
    }
    for args in
        [&[][..], &["frobnicate"], &["inspect"], &["generate", "m", "--threads", "0"], &["serve", "--port", "x"]]
    {
        let ended = run(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(!ended.stderr.is_empty());
    }
}

#[test]
fn the_version_says_what_this_build_finds() {
    for flag in ["--version", "-V"] {
        let version = run([flag]);
        assert_eq!((version.code, version.stderr.as_str()), (Some(0), ""));
        let lines: Vec<&str> = version.stdout.lines().collect();
        assert_eq!(lines[0], concat!("shimmy ", env!("CARGO_PKG_VERSION")));
        assert!(lines[1].starts_with("cpu: "), "{}", version.stdout);
        assert!(lines[2].starts_with("cuda: "), "{}", version.stdout);
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            assert!(lines[1].contains("avx2"), "{}", version.stdout);
        }
    }
}

#[test]
fn unusable_files_are_2_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let empty = file("empty.gguf", b"");
    let text = file("text.gguf", b"this is not a model, however long the text may be");
    let cut = file("cut.gguf", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x0f\0\0\0\0\0\0\0\0");
    let missing = folder.path().join("missing.gguf").display().to_string();
    for path in [&empty, &text, &cut, &missing] {
        for args in [vec!["inspect", path], vec!["generate", path, "-p", "x"], vec!["serve", "--port", "0", "-m", path]]
        {
            let ended = run(&args);
            assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
            assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(path.as_str()), "{}", ended.stderr);
        }
    }
    let ended = run(["inspect", missing.as_str()]);
    assert!(ended.stderr.contains("No such file"), "{}", ended.stderr);
}

#[test]
fn an_unknown_name_gets_the_nearest_ones() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Nice_Model.Q4_0.gguf"), b"GGUF").unwrap();
    let dirs = folder.path().to_str().unwrap();
    let ended = run(["inspect", "nice-modell.q4-0", "--model-dirs", dirs]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("nice-model.q4-0") && ended.stderr.contains("shimmy list"), "{}", ended.stderr);
}

#[test]
fn the_list_shows_what_is_there_and_why_it_cant_be_read() {
    let home = tempfile::tempdir().unwrap();
    let nothing = finish(
        shimmy()
            .arg("list")
            .env("HOME", home.path())
            .env_remove("XDG_CACHE_HOME")
            .env_remove("SHIMMY_CACHE")
            .env_remove("HF_HOME")
            .current_dir(home.path()),
    );
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(0), ""));
    assert!(nothing.stderr.contains(".ollama"), "{}", nothing.stderr);
    fs::create_dir_all(home.path().join("models")).unwrap();
    fs::write(home.path().join("models/Broken One.gguf"), b"GGUF").unwrap();
    let list = |args: &[&str]| {
        finish(
            shimmy()
                .arg("list")
                .args(args)
                .env("HOME", home.path())
                .env_remove("XDG_CACHE_HOME")
                .env_remove("SHIMMY_CACHE")
                .env_remove("HF_HOME")
                .current_dir("/"),
        )
    };
    let table = list(&[]);
    assert!(table.stdout.contains("broken-one") && table.stdout.contains("unreadable: "), "{}", table.stdout);
    let json: Value = serde_json::from_str(&list(&["--json"]).stdout).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["bytes"]), (&"broken-one".into(), &4.into()));
    assert!(json[0]["error"].is_string());
}

#[test]
fn a_taken_port_is_a_failure_that_names_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(["serve", "--port", &port]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&port) && ended.stderr.contains("--port"), "{}", ended.stderr);
}

#[test]
fn inspect_reads_a_golden() {
    let Some(goldens) = support::goldens() else { return };
    let path = goldens.join("models/llama-gqa-llama3/model-f32.gguf");
    if !path.is_file() {
        return support::skip(&format!("{} is not there", path.display()));
    }
    let path = path.to_str().unwrap();
    let json: Value = serde_json::from_str(&run(["inspect", path, "--json", "--tensors"]).stdout).unwrap();
    assert_eq!(json["summary"]["format"], "gguf");
    assert_eq!(json["summary"]["architecture"], "llama");
    assert_eq!(json["summary"]["dtype"], "F32");
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(json["summary"]["tensors"], tensors.len());
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["summary"]["tensor_bytes"], bytes);
    assert_eq!(json["metadata"]["general.architecture"], "llama");
    let text = run(["inspect", path, "--tensors"]).stdout;
    assert!(text.contains("token_embd.weight") && text.contains("F32"), "{text}");
    let plan = run(["inspect", path, "--plan"]).stdout;
    assert!(plan.to_lowercase().contains("attention"), "{plan}");
    let folder = goldens.join("models/llama-gqa-llama3");
    let json: Value = serde_json::from_str(&run(["inspect", folder.to_str().unwrap(), "--json"]).stdout).unwrap();
    assert_eq!(
        (&json["summary"]["format"], &json["summary"]["architecture"]),
        (&"safetensors".into(), &"llama".into())
    );
}

#[test]
fn probe_says_what_this_machine_offers() {
    let json: Value = serde_json::from_str(&run(["probe", "--json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["default_workers"].as_u64().unwrap() >= 1);
    assert!(json["cuda"].is_string() && json["isa"].is_string());
    let text = run(["probe"]).stdout;
    assert!(text.contains("threads") && text.contains("cuda"), "{text}");
}

#[test]
fn gpu_info_succeeds_with_and_without_a_gpu() {
    let ended = run(["gpu-info", "--json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    let devices = json["devices"].as_array().unwrap();
    let text = run(["gpu-info"]);
    assert_eq!(text.code, Some(0));
    assert!(text.stdout.contains(json["driver"].as_str().unwrap()), "{}", text.stdout);
    if devices.is_empty() {
        // A plain statement, and what to do.
        assert!(json["advice"].as_str().unwrap().len() > 20);
        assert!(text.stdout.contains(json["advice"].as_str().unwrap()), "{}", text.stdout);
    }
    for device in devices {
        assert!(device["memory_bytes"].as_u64().unwrap() > 0, "{device}");
        assert!(device["compute_capability"].as_str().unwrap().contains('.'), "{device}");
        assert!(text.stdout.contains(device["name"].as_str().unwrap()), "{}", text.stdout);
    }
}
