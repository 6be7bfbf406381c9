//! `GET /`: the chat page for browsers, and for everybody else the answer by which Ollama's clients find a server;
//! `GET /ui/…`: what the page is made of.
//!
//! All of it lies in the binary as it lies in `server/src/ui`: no build step, and nothing is fetched from elsewhere. The
//! page holds no data of its own (it asks the other routes, as any client does), so it is open where those want a key.

use std::hash::{DefaultHasher, Hash, Hasher};

use actix_web::http::Method;
use actix_web::http::header::{self, ETag, EntityTag, HeaderMap, HeaderName, HeaderValue, IfNoneMatch};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};

use super::ollama;
use crate::error::ApiError;
use crate::routes::resource_of;

/// What the page may do: run its own scripts and talk to its own server, and nothing else. An answer that got past the
/// renderer still couldn't run, nor fetch a picture that tells somebody what was asked.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
struct Asset {
    /// Its path below `/ui/`.
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $content_type:expr) => {
        Asset { name: $name, content_type: $content_type, text: include_str!(concat!("../ui/", $name)) }
    };
}

static INDEX: Asset = asset!("index.html", HTML);

static ASSETS: [Asset; 11] = [
    asset!("api.js", SCRIPT),
    asset!("app.css", "text/css; charset=utf-8"),
    asset!("app.js", SCRIPT),
    asset!("icon.svg", "image/svg+xml"),
    asset!("inline.js", SCRIPT),
    asset!("markdown.js", SCRIPT),
    asset!("settings.js", SCRIPT),
    asset!("shell.js", SCRIPT),
    asset!("store.js", SCRIPT),
    asset!("theme.js", SCRIPT),
    asset!("view.js", SCRIPT),
];

impl Asset {
    /// Changes with the text. Between builds by different compilers it may change without need.
    fn etag(&self) -> EntityTag {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        EntityTag::new_strong(format!("{:016x}", hasher.finish()))
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let etag = self.etag();
        let is_known = match request.get_header::<IfNoneMatch>() {
            Some(IfNoneMatch::Any) => true,
            Some(IfNoneMatch::Items(items)) => items.iter().any(|item| item.weak_eq(&etag)),
            None => false,
        };
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header(ETag(etag))
            // Asked for each time: the files of two versions don't fit together, and the answer is mostly 304.
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .insert_header((header::X_FRAME_OPTIONS, "DENY"))
            .insert_header((HeaderName::from_static("cross-origin-opener-policy"), "same-origin"));
        if is_known {
            return response.finish();
        }
        response.content_type(self.content_type).body(self.text)
    }
}

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    let both =
        |path, route: fn() -> actix_web::Route| resource_of(path, [(Method::GET, route()), (Method::HEAD, route())]);
    cfg.service(both("/", || web::route().to(index))).service(both("/ui/{name}", || web::route().to(file)));
}

/// Whether `Accept` names HTML. That it accepts anything (`*/*`) is what programs say too, and is no wish for a page.
fn wants_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let is_refused = parts.any(|part| {
            let quality = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            quality.is_some_and(|quality| quality.trim().parse() == Ok(0.0_f32))
        });
        is_html && !is_refused
    })
}

async fn index(request: HttpRequest) -> HttpResponse {
    let mut response = match wants_html(request.headers()) {
        true => INDEX.answer(&request),
        false => ollama::hello(),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

async fn file(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    // Looked up among the names that there are: a path never reaches the file system.
    let asset = ASSETS.iter().find(|asset| asset.name == name.as_str());
    let missing = || ApiError {
        code: Some("unknown_url"),
        ..ApiError::not_found(format!("there is no {} here; the chat page is at /", request.path()))
    };
    asset.map(|asset| asset.answer(&request)).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_told_from_programs() {
        let wants = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            wants_html(&headers)
        };
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
            "text/html",
            "application/json, Text/HTML ;q=0.5",
        ] {
            assert!(wants(accept), "{accept}");
        }
        for accept in ["*/*", "text/*", "application/json", "text/html;q=0", "text/html; q=0.0, */*", "text/htmlx", ""]
        {
            assert!(!wants(accept), "{accept}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ui");
        let mut on_disk: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        on_disk.sort();
        let mut known: Vec<&str> = ASSETS.iter().map(|asset| asset.name).chain([INDEX.name]).collect();
        known.sort_unstable();
        assert_eq!(on_disk, known);
        let etags: std::collections::BTreeSet<String> = ASSETS.iter().map(|asset| asset.etag().to_string()).collect();
        assert_eq!(etags.len(), ASSETS.len());
        // `from './x.js'` in scripts, `ui/x` in the page.
        for asset in ASSETS.iter().chain([&INDEX]) {
            for quote in ["from './", "\"ui/"] {
                for part in asset.text.split(quote).skip(1) {
                    let name = part.split(['\'', '"']).next().unwrap();
                    assert!(ASSETS.iter().any(|asset| asset.name == name), "{} names {name}", asset.name);
                }
            }
            // Nothing from elsewhere, and no way for text to become HTML.
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=\"", "onclick="]
            {
                assert!(!asset.text.contains(forbidden), "{}: {forbidden}", asset.name);
            }
            for address in asset.text.match_indices("://").map(|(at, _)| &asset.text[at.saturating_sub(6)..]) {
                let is_namespace = address.contains("://www.w3.org/2000/svg");
                assert!(
                    is_namespace || asset.name == "inline.js",
                    "{}: {}",
                    asset.name,
                    &address[..address.len().min(40)]
                );
            }
        }
    }
}
