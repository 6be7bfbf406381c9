//! The chat page: who gets it, with which headers, and what else is not there.

use super::client::{get, open, open_with};
use super::harness::{TestServer, spelling};

const BROWSER: &str = "accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";

#[test]
fn browsers_get_the_page_and_programs_what_ollama_says() {
    let server = TestServer::start(spelling("x"));
    let page = open_with(server.address, "GET", "/", BROWSER, b"").finish();
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.starts_with("<!doctype html>") && page.body.contains("id=\"question\""), "{}", page.body);
    let vary = page.header("vary").unwrap();
    assert!(vary.split(", ").any(|name| name == "accept"), "{vary}");
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.split("; ").any(|found| found == part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY")]
    {
        assert_eq!(page.header(name), Some(value));
    }
    for headers in ["", "accept: */*\r\n", "accept: application/json\r\n"] {
        let reply = open_with(server.address, "GET", "/", headers, b"").finish();
        assert_eq!((reply.status, reply.body.as_str()), (200, "Ollama is running"), "{headers}");
        assert!(reply.header("vary").unwrap().starts_with("accept"), "{:?}", reply.header("vary"));
    }
    for (headers, length) in [("", "Ollama is running".len()), (BROWSER, page.body.len())] {
        let head = open_with(server.address, "HEAD", "/", headers, b"");
        assert_eq!(head.finish_head(), (200, Some(length)), "{headers}");
    }
    let refused = open(server.address, "POST", "/", b"").finish();
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (405, Some("method_not_allowed")));
}

#[test]
fn its_files_have_types_and_are_sent_once() {
    let server = TestServer::start(spelling("x"));
    for (name, content_type) in [
        ("app.js", "text/javascript; charset=utf-8"),
        ("app.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let path = format!("/ui/{name}");
        let file = get(server.address, &path);
        assert_eq!((file.status, file.header("content-type")), (200, Some(content_type)));
        assert_eq!(file.header("cache-control"), Some("no-cache"));
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        assert!(file.header("content-security-policy").is_some());
        let etag = file.header("etag").unwrap();
        for (known, status) in [(etag, 304), ("*", 304), (&format!("\"x\", W/{etag}"), 304), ("\"x\"", 200)] {
            let headers = format!("if-none-match: {known}\r\n");
            let again = open_with(server.address, "GET", &path, &headers, b"").finish();
            assert_eq!((again.status, again.header("etag")), (status, Some(etag)), "{known}");
            assert_eq!(again.body.is_empty(), status == 304);
        }
        assert_eq!(open(server.address, "HEAD", &path, b"").finish_head(), (200, Some(file.body.len())));
    }
}

#[test]
fn there_is_nothing_but_its_files() {
    let server = TestServer::start(spelling("x"));
    for path in
        ["/ui/", "/ui/nothing.js", "/ui/../app.rs", "/ui/%2e%2e%2fapp.rs", "/ui/..%2f..%2fCargo.toml", "/ui/a/b"]
    {
        let reply = get(server.address, path);
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (404, Some("unknown_url")), "{path}");
    }
}
