//! The official clients for Python, from pip, against the real server.

use crate::binary::Server;
use crate::{support, tools};

/// What these tests were written with; the clients' newest versions change without us.
const CLIENTS: [&str; 4] = ["openai==3.54.0", "anthropic==2.12.0", "ollama==0.6.3", "websockets==17.4"];

/// Runs a script of `tests/cli/clients` against a server with the default model.
fn run(script: &str) {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match tools::python("clients", &CLIENTS) {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    let server = Server::start(&model);
    tools::run(python, &[tools::script(script).as_os_str(), server.url.as_ref()]);
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
