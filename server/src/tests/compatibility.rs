//! `docs/compatibility.md` says what is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::post;
use super::harness::{TestServer, spelling};
use super::openapi::listed;
use crate::routes::endpoints;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the table under a heading: their cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// What stands between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The text of all tests.
fn sources() -> String {
    fn read(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    read(&root().join("server/src/tests"), &mut text);
    read(&root().join("tests"), &mut text);
    text
}

fn assert_shown(sources: &str, row: &[String]) {
    let tests = code(row.last().unwrap());
    assert!(!tests.is_empty(), "{row:?} names no test");
    for test in tests {
        let found =
            sources.contains(&format!("#[test]\nfn {test}(")) || sources.contains(&format!("#[test]\n    fn {test}("));
        assert!(found, "there is no test {test}");
    }
}

#[test]
fn its_endpoints_are_those_of_the_server_and_each_has_a_test() {
    let _server = TestServer::start(spelling("x"));
    let (sources, rows) = (sources(), table("Endpoints"));
    let described: BTreeSet<String> = rows.iter().map(|row| code(&row[0])[0].to_owned()).collect();
    let there: BTreeSet<String> = endpoints()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("/ui/"))
        .flat_map(|(path, methods)| {
            let path = listed(&path);
            methods.into_iter().map(move |method| format!("{method} {path}")).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(described, there);
    assert_eq!(rows.len(), there.len(), "a row twice");
    rows.iter().for_each(|row| assert_shown(&sources, row));
}

#[test]
fn what_it_says_is_refused_is_refused_by_name() {
    let server = TestServer::start(spelling("x"));
    let rows = table("Refused");
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let path = code(&row[0])[0].strip_prefix("POST ").unwrap();
        let body: Value = serde_json::from_str(code(&row[1])[0]).unwrap_or_else(|error| panic!("{row:?}: {error}"));
        let field = code(&row[2])[0];
        let reply = post(server.address, path, &body);
        assert_eq!(reply.status, 400, "{row:?}: {}", reply.body);
        assert!(reply.body.contains(field), "{row:?}: {}", reply.body);
        assert!(reply.body.contains("not supported"), "{row:?}: {}", reply.body);
    }
}

#[test]
fn its_clients_are_those_that_are_installed() {
    let sources = sources();
    let rows = table("Clients");
    assert!(rows.len() >= 8, "{}", rows.len());
    for row in rows {
        let client = code(&row[0])[0];
        assert!(sources.contains(&format!("\"{client}\"")), "no test installs {client}");
        assert_shown(&sources, &row);
    }
}
