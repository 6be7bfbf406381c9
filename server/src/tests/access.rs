//! Keys, limits, names, origins, HTTPS, sockets and the log, over the wire.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Reply, exchange, get, open};
use super::harness::{MODEL, TestServer, endless, spelling, test_limits, wait_for};
use super::hostile_http::stop_in_a_second_head;
use super::websocket_client::{Socket, text};
use crate::access::Access;
use crate::access::keys::{self, KeyRing};
use crate::access::origins::{Hosts, Origins};
use crate::access::quota::{Addresses, Rates};
use crate::access_log::AccessLog;
use crate::app::Limits;

fn send(server: &TestServer, head: &[&str], body: &str) -> Reply {
    exchange(TcpStream::connect(server.address).unwrap(), head, body)
}

fn question() -> String {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).to_string()
}

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1";
const MESSAGES: &str = "POST /v1/messages HTTP/1.1";
const HOST: &str = "host: localhost";

fn per_minute(requests: u32) -> Rates {
    Rates { requests_per_minute: NonZeroU32::new(requests), tokens_per_minute: None }
}

#[test]
fn only_known_keys_open_what_is_not_open_to_all() {
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        state.access.keys = KeyRing::new(&["sesame".into()], None, Rates::default()).unwrap();
    });
    for head in [
        &["GET /v1/models HTTP/1.1", HOST][..],
        &["GET /metrics HTTP/1.1", HOST],
        &[CHAT, HOST],
        &[CHAT, HOST, "authorization: Bearer sesam"],
        &[CHAT, HOST, "authorization: Bearer "],
        &[CHAT, HOST, "authorization: Basic sesame"],
        &[CHAT, HOST, "x-api-key: sesamee"],
        &["GET /nowhere HTTP/1.1", HOST],
    ] {
        let reply = send(&server, head, &question());
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{head:?}");
        assert_eq!(reply.json()["error"]["type"], "authentication_error", "{head:?}");
    }
    let reply = send(&server, &[MESSAGES, HOST], "{}");
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(reply.json()["type"], "error");
    let reply = send(&server, &["POST /api/chat HTTP/1.1", HOST], "{}");
    assert!(reply.status == 401 && reply.json()["error"].is_string(), "{}", reply.body);

    assert_eq!(get(server.address, "/health").status, 200);
    for key in ["authorization: Bearer sesame", "authorization: bearer  sesame", "x-api-key: sesame"] {
        assert_eq!(send(&server, &[CHAT, HOST, key], &question()).status, 200, "{key}");
    }
}

#[test]
fn a_key_has_its_own_limits_and_they_are_exact_however_many_ask_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let (few, many) = (keys::generate().unwrap(), keys::generate().unwrap());
    keys::add(&path, "few", &few, per_minute(6), None).unwrap();
    keys::add(&path, "many", &many, Rates::default(), None).unwrap();
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        state.access.keys = KeyRing::new(&[], Some(path), Rates::default()).unwrap();
    });
    let start = Instant::now();
    let ask = |key: &str| send(&server, &[CHAT, HOST, &format!("x-api-key: {key}")], &question());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(|| ask(&few).status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A new place every ten seconds.
    let filled = usize::try_from(start.elapsed().as_secs() / 10 + 1).unwrap();
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!((6..=6 + filled).contains(&passed), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");

    let refused = ask(&few);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("6"));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    // What computes nothing isn't counted, and others have their own.
    assert_eq!(send(&server, &["GET /v1/models HTTP/1.1", HOST, &format!("x-api-key: {few}")], "").status, 200);
    let free = ask(&many);
    assert_eq!((free.status, free.header("x-ratelimit-limit-requests")), (200, None));
}

#[test]
fn only_who_may_goes_before_others() {
    let ask = |server: &TestServer, path: &str, key: &str, priority: i32| {
        let mut body = json!({"priority": priority, "input": "hi", "background": true});
        match path {
            "/v1/chat/completions" => {
                body = json!({"priority": priority, "messages": [{"role": "user", "content": "x"}]})
            }
            "/v1/embeddings" => drop(body.as_object_mut().unwrap().shift_remove("background")),
            _ => {}
        }
        let reply = send(server, &[&format!("POST {path} HTTP/1.1"), HOST, key], &body.to_string());
        let param = serde_json::from_str::<Value>(&reply.body).unwrap()["error"]["param"].as_str() == Some("priority");
        assert_eq!(reply.status == 403, param, "{}", reply.body);
        reply.status
    };
    let paths = ["/v1/chat/completions", "/v1/embeddings", "/v1/responses"];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    keys::add(&file, "first", "urgent", Rates::default(), Some(-5)).unwrap();
    keys::add(&file, "batch", "slow", Rates::default(), Some(10)).unwrap();
    keys::add(&file, "other", "plain", Rates::default(), None).unwrap();
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        state.access.keys = KeyRing::new(&["given".into()], Some(file), Rates::default()).unwrap();
    });
    for path in paths {
        for (key, least) in [("urgent", -5), ("slow", 10), ("plain", 0), ("given", 0)] {
            let key = format!("x-api-key: {key}");
            assert_eq!(
                (ask(&server, path, &key, least), ask(&server, path, &key, least - 1)),
                (200, 403),
                "{path} {key}"
            );
            assert_eq!(ask(&server, path, &key, 1000), 200);
        }
    }
    // Without keys it is for whoever started the server to say.
    let open = TestServer::start(spelling("hi"));
    let bounded = TestServer::start_as(spelling("hi"), |state, _| state.access.least_priority = Some(-1));
    for path in paths {
        assert_eq!(ask(&open, path, "x-a: b", -1000), 200);
        assert_eq!((ask(&bounded, path, "x-a: b", -1), ask(&bounded, path, "x-a: b", -2)), (200, 403));
    }
}

#[test]
fn tokens_of_prompts_and_answers_are_counted() {
    let rates = Rates { requests_per_minute: None, tokens_per_minute: NonZeroU32::new(20) };
    let server = TestServer::start_as(spelling("hello"), |state, _| state.access.addresses = Addresses::new(rates));
    let first = send(&server, &[CHAT, HOST], &question());
    assert_eq!(first.status, 200, "{}", first.body);
    let usage = first.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert!(usage > 20, "{usage}");
    let second = send(&server, &[CHAT, HOST], &question());
    assert_eq!(second.status, 429, "{}", second.body);
    assert_eq!(second.header("x-ratelimit-remaining-tokens"), Some("0"));
    assert!(second.json()["error"]["message"].as_str().unwrap().contains("20 tokens a minute"), "{}", second.body);
}

#[test]
fn names_and_pages_that_nobody_allowed_are_refused() {
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        let origins = Origins::new(&["https://chat.example.com".into()]);
        state.access = Access { hosts: Hosts::new(true, &["box.lan".into()]), origins, ..Access::default() };
    });
    for (head, code) in [
        (&[CHAT, "host: evil.example"][..], "host_not_allowed"),
        (&["GET /health HTTP/1.1", "host: evil.example:11435"], "host_not_allowed"),
        (&[CHAT, HOST, "origin: https://evil.example"], "origin_not_allowed"),
        (&[CHAT, HOST, "origin: null"], "origin_not_allowed"),
        (&["GET /v1/models HTTP/1.1", HOST, "origin: https://evil.example"], "origin_not_allowed"),
    ] {
        let reply = send(&server, head, &question());
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!(code)), "{head:?}");
        assert_eq!(reply.header("access-control-allow-origin"), None, "{head:?}");
    }
    for head in [
        &[CHAT, "host: box.lan"][..],
        &[CHAT, "host: 127.0.0.1:1"],
        &[CHAT, "host: 127.0.0.1:1", "origin: http://127.0.0.1:1"],
        &[CHAT, HOST, "origin: http://localhost:3000"],
        &[CHAT, HOST, "origin: https://chat.example.com"],
    ] {
        let reply = send(&server, head, &question());
        assert_eq!(reply.status, 200, "{head:?}: {}", reply.body);
        let origin = head.get(2).map(|line| line.strip_prefix("origin: ").unwrap());
        assert_eq!(reply.header("access-control-allow-origin"), origin, "{head:?}");
    }
    assert_eq!(send(&server, &["GET /health HTTP/1.1", "host: \u{e9}"], "").status, 400);
}

#[test]
fn a_browser_may_ask_first_and_read_errors_too() {
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        state.access.origins = Origins::new(&["https://chat.example.com".into()]);
        state.access.keys = KeyRing::new(&["sesame".into()], None, Rates::default()).unwrap();
    });
    let preflight = |origin: &str| {
        let origin = format!("origin: {origin}");
        let wanted =
            ["access-control-request-method: POST", "access-control-request-headers: authorization, x-stainless-os"];
        send(&server, &["OPTIONS /v1/chat/completions HTTP/1.1", HOST, &origin, wanted[0], wanted[1]], "")
    };
    let allowed = preflight("https://chat.example.com");
    assert_eq!(allowed.status, 200, "{}", allowed.body);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://chat.example.com"));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("POST"));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(preflight("https://evil.example").header("access-control-allow-origin"), None);
    // Without its key: the page can tell its reader.
    let reply = send(&server, &[CHAT, HOST, "origin: https://chat.example.com"], &question());
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (401, Some("https://chat.example.com")));
}

/// What the log was given.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn all(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn wait(&self, count: usize) -> Vec<Value> {
        wait_for("the log is written", || self.all().len() >= count);
        self.all()
    }
}

#[test]
fn every_request_has_a_name_and_a_line_that_holds_no_prompt() {
    let lines = Lines::default();
    let server = TestServer::start_as(spelling("hello"), |state, _| {
        state.access.keys = KeyRing::new(&["sesame".into()], None, Rates::default()).unwrap();
        state.access_log = Some(AccessLog::new(lines.clone(), false).unwrap());
    });
    let key = "authorization: Bearer sesame";
    let reply = send(&server, &[CHAT, HOST, key, "x-request-id: mine-1"], &question());
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    let refused = send(&server, &["POST /v1/chat/completions?prompt=secret HTTP/1.1", HOST], &question());
    let id = refused.header("x-request-id").unwrap().to_owned();
    assert!(id.starts_with("req-"), "{id}");
    let all = lines.wait(2);
    let usage = &reply.json()["usage"];
    assert_eq!(all[0]["id"], "mine-1");
    assert_eq!(
        (&all[0]["key"], &all[0]["status"], &all[0]["path"]),
        (&json!("key-1"), &json!(200), &json!("/v1/chat/completions"))
    );
    assert_eq!((&all[0]["model"], &all[0]["client"]), (&json!(MODEL), &json!("127.0.0.1")));
    assert_eq!(all[0]["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!(all[0]["completion_tokens"], usage["completion_tokens"]);
    assert_eq!((&all[0]["bytes"], &all[0]["complete"]), (&json!(reply.body.len()), &json!(true)));
    assert_eq!(
        (&all[1]["id"], &all[1]["status"], &all[1]["error"]),
        (&json!(id), &json!(401), &json!("missing_api_key"))
    );
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("sesame") && !text.contains("secret") && !text.contains("\"hi\""), "{text}");
}

/// The handshake of a WebSocket that offers these protocols.
fn handshake(server: &TestServer, protocols: &str) -> Reply {
    let offer = format!("sec-websocket-protocol: {protocols}");
    let version = ["sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="];
    let upgrade = ["upgrade: websocket", "connection: upgrade"];
    let head = ["GET /ws/generate HTTP/1.1", HOST, upgrade[0], upgrade[1], version[0], version[1], &offer];
    send(server, &head, "")
}

#[test]
fn a_page_opens_a_websocket_with_its_key_among_the_protocols() {
    let lines = Lines::default();
    let server = TestServer::start_as(spelling("hi"), |state, _| {
        state.access.keys = KeyRing::new(&["sesame".into()], None, Rates::default()).unwrap();
        state.access_log = Some(AccessLog::new(lines.clone(), true).unwrap());
    });
    for offer in ["shimmy, shimmy-key.c2VzYW1l", "openai-insecure-api-key.sesame, shimmy"] {
        let stream = TcpStream::connect(server.address).unwrap();
        let (mut socket, head) = Socket::over_with(stream, &format!("sec-websocket-protocol: {offer}\r\n"));
        let head = head.to_ascii_lowercase();
        let answered: Vec<&str> =
            head.lines().filter_map(|line| line.strip_prefix("sec-websocket-protocol: ")).collect();
        assert_eq!(answered, ["shimmy"], "{offer}: only what is no secret is answered");
        assert!(!head.contains("sesame") && !head.contains("c2vzyw1l"), "{head}");
        socket.send(&json!({"model": MODEL, "prompt": "x"}));
        assert_eq!(text(&socket.answer()), "hi");
    }
    for (offer, status, code) in [
        ("shimmy", 401, "missing_api_key"),
        ("shimmy, shimmy-key.c2VzYW1", 401, "invalid_api_key"),
        ("shimmy, shimmy-key.sesame", 401, "invalid_api_key"),
        ("shimmy, openai-insecure-api-key.sesam", 401, "invalid_api_key"),
        // We don't speak that one, and there is nothing else to answer.
        ("realtime, openai-insecure-api-key.sesame", 400, "protocol_missing"),
    ] {
        let reply = handshake(&server, offer);
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (status, &json!(code)), "{offer}");
        assert_eq!(reply.header("sec-websocket-protocol"), None, "{offer}");
        assert!(!reply.body.contains("sesam") && !reply.body.contains("c2Vz"), "{}", reply.body);
    }
    // In any other request it is no key.
    let offer = "sec-websocket-protocol: shimmy, shimmy-key.c2VzYW1l";
    assert_eq!(send(&server, &["GET /v1/models HTTP/1.1", HOST, offer], "").status, 401);
    lines.wait(8);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("\"key\":\"key-1\""), "{text}");
    assert!(!text.contains("sesam") && !text.contains("c2Vz"), "{text}");
}

#[test]
fn a_stream_that_breaks_off_is_logged_as_such_with_what_it_took() {
    let lines = Lines::default();
    let server = TestServer::start_as(endless(), |state, _| {
        state.access_log = Some(AccessLog::new(lines.clone(), true).unwrap());
    });
    let body =
        json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "for ever"}]}).to_string();
    let mut stream = open(server.address, "POST", "/v1/chat/completions", body.as_bytes());
    for _ in 0..5 {
        stream.chunk().unwrap();
    }
    drop(stream);
    let line = lines.wait(1).remove(0);
    assert_eq!((&line["status"], &line["complete"]), (&json!(200), &json!(false)));
    assert!(line["completion_tokens"].as_u64().unwrap() >= 3, "{line}");
    assert_eq!(line["request"], json!(body), "it was asked for");
}

#[cfg(unix)]
#[test]
fn a_unix_socket_serves_who_can_open_it_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (listener, _file) = crate::listen::at_path(&path).unwrap();
    let server = TestServer::start_as(spelling("hi"), |state, listeners| {
        state.access.hosts = Hosts::new(true, &[]);
        listeners.unix.push(listener);
    });
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let reply = exchange(stream, &[CHAT, "host: anything"], &question());
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(send(&server, &[CHAT, "host: anything"], &question()).status, 403);
}

/// Limits under which a connection on which nothing runs is soon closed.
fn impatient() -> Limits {
    let second = Duration::from_secs(1);
    Limits { keep_alive: second, head: second, ..test_limits() }
}

#[cfg(unix)]
#[test]
fn half_a_head_does_not_hold_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (listener, _file) = crate::listen::at_path(&path).unwrap();
    let server = TestServer::start_as(spelling("hi"), |state, listeners| {
        state.limits = impatient();
        listeners.unix.push(listener);
    });
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stop_in_a_second_head(&mut stream, "GET /health HTTP/1.1\r\n");
    wait_for("its handles are closed", || server.state.connections.is_empty());
}

mod https {
    use std::process::Command;
    use std::time::SystemTime;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

    use super::*;
    use crate::tls::Tls;

    /// Takes any certificate and remembers it.
    #[derive(Debug, Default)]
    struct Any(Mutex<Vec<u8>>);

    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            cert: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            *self.0.lock().unwrap() = cert.to_vec();
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519, SignatureScheme::RSA_PSS_SHA256]
        }
    }

    /// A reply over HTTPS and the certificate that the server showed.
    fn over_https(server: &TestServer, head: &[&str]) -> (Reply, Vec<u8>) {
        let (stream, any) = secured(server);
        let reply = exchange(stream, head, &question());
        let cert = any.0.lock().unwrap().clone();
        (reply, cert)
    }

    fn secured(server: &TestServer) -> (StreamOwned<ClientConnection, TcpStream>, Arc<Any>) {
        let provider = Arc::new(rustls_graviola::default_provider());
        let any = Arc::new(Any::default());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&any) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (StreamOwned::new(connection, stream), any)
    }

    /// A new certificate for localhost; false where there is no openssl to make it.
    fn make_certificate(folder: &std::path::Path, at: u64) -> bool {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(folder)
            .output();
        let is_made = made.is_ok_and(|output| output.status.success());
        for name in ["key.pem", "cert.pem"].iter().filter(|_| is_made) {
            let file = fs::File::options().write(true).open(folder.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).unwrap();
        }
        is_made
    }

    #[test]
    fn half_a_head_does_not_hold_a_connection() {
        let folder = tempfile::tempdir().unwrap();
        if !make_certificate(folder.path(), 1_000_000) {
            println!("SKIP: there is no openssl to make a certificate");
            return;
        }
        let tls = Tls::load(folder.path().join("cert.pem"), folder.path().join("key.pem")).unwrap();
        let server = TestServer::start_as(spelling("hi"), |state, listeners| {
            state.limits = impatient();
            listeners.tls = Some(Arc::new(tls));
        });
        stop_in_a_second_head(&mut secured(&server).0, "GET /health HTTP/1.1\r\n");
        wait_for("its handles are closed", || server.state.connections.is_empty());
    }

    #[test]
    fn a_changed_certificate_is_shown_to_new_connections() {
        let folder = tempfile::tempdir().unwrap();
        if !make_certificate(folder.path(), 1_000_000) {
            println!("SKIP: there is no openssl to make a certificate");
            return;
        }
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let tls = Arc::new(Tls::load(cert.clone(), key.clone()).unwrap());
        let server = TestServer::start_as(spelling("hi"), |_, listeners| listeners.tls = Some(Arc::clone(&tls)));
        let (reply, first) = over_https(&server, &[CHAT, HOST]);
        assert_eq!((reply.status, &reply.json()["choices"][0]["message"]["content"]), (200, &json!("hi")));
        // A key that isn't the certificate's changes nothing.
        let old_key = fs::read(&key).unwrap();
        assert!(make_certificate(folder.path(), 2_000_000));
        let new_key = fs::read(&key).unwrap();
        fs::write(&key, &old_key).unwrap();
        tls.reload();
        assert_eq!(over_https(&server, &["GET /health HTTP/1.1", HOST]).1, first);
        fs::write(&key, &new_key).unwrap();
        tls.reload();
        let (reply, second) = over_https(&server, &["GET /health HTTP/1.1", HOST]);
        assert_eq!(reply.status, 200);
        assert_ne!(second, first);
        let error = Tls::load(key.clone(), key).unwrap_err();
        assert!(error.contains("no certificate"), "{error}");
        assert!(Tls::load(cert.clone(), cert).is_err());
    }
}
