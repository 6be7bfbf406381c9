//! A key in the handshake of a WebSocket. Browsers let a page set no header of it but the protocols that it offers
//! (`Sec-WebSocket-Protocol`), so the key comes as one of them, beside the one that the server answers with.

use actix_web::http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::keys::Secret;

/// The protocol of `/ws/generate`. It is answered to those who offer it; a key never is.
pub const PROTOCOL: &str = "shimmy";
/// Before a key in base64url, in which every key can be written.
const ENCODED: &str = "shimmy-key.";
/// Before a key as it is, as OpenAI's clients send it.
const PLAIN: &str = "openai-insecure-api-key.";

/// Whether a WebSocket is asked for.
pub fn is_handshake(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(SEC_WEBSOCKET_PROTOCOL).filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',').map(str::trim))
}

/// The key among the protocols that a handshake offers; the first one, if there are several. What can't be decoded is
/// a key, too, that nobody has.
pub fn key(headers: &HeaderMap) -> Option<Secret> {
    if !is_handshake(headers) {
        return None;
    }
    offered(headers).find_map(|protocol| {
        if let Some(plain) = protocol.strip_prefix(PLAIN) {
            return Some(Secret::of(plain));
        }
        let encoded = protocol.strip_prefix(ENCODED)?;
        Some(match URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')) {
            Ok(key) => Secret::of(key),
            Err(_) => Secret::of(protocol),
        })
    })
}

/// Whether there is a key among the protocols and nothing to answer with: a browser would give up on the socket then.
pub fn offers_only_a_key(headers: &HeaderMap) -> bool {
    key(headers).is_some() && !offered(headers).any(|protocol| protocol == PROTOCOL)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_key_is_found_among_the_protocols_of_a_handshake_only() {
        let headers = |upgrade: &'static str, lists: &[&'static str]| {
            let request = TestRequest::default().insert_header((UPGRADE, upgrade));
            let all = lists.iter().fold(request, |all, list| all.append_header((SEC_WEBSOCKET_PROTOCOL, *list)));
            all.to_http_request().headers().clone()
        };
        let found = |lists: &[&'static str]| key(&headers("websocket", lists));
        let sesame = Some(Secret::of("sesame"));
        for lists in [
            &["shimmy, shimmy-key.c2VzYW1l"][..],
            &["shimmy-key.c2VzYW1l,shimmy"],
            &["shimmy", "shimmy-key.c2VzYW1l"],
            &["realtime, openai-insecure-api-key.sesame, openai-beta.realtime-v1"],
        ] {
            assert_eq!(found(lists), sesame, "{lists:?}");
        }
        // A key may hold what no protocol may.
        assert_eq!(found(&["shimmy-key.w6kgIiw_"]), Some(Secret::of("é \",?")));
        assert_eq!(found(&["shimmy"]), None);
        assert_ne!(found(&["shimmy-key.sesame!"]), None);
        assert_eq!(key(&headers("h2c", &["shimmy, shimmy-key.c2VzYW1l"])), None);
        assert!(offers_only_a_key(&headers("websocket", &["realtime, openai-insecure-api-key.sesame"])));
        assert!(!offers_only_a_key(&headers("websocket", &["realtime"])));
    }
}
