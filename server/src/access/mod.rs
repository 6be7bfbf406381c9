//! Who may ask, from where, and how much.
//!
//! | module | what it decides |
//! |---|---|
//! | [`keys`] | which API keys there are; a file holds their hashes only |
//! | [`quota`] | requests and tokens a minute, of a key or else of an address |
//! | [`origins`] | which `Host` and `Origin` a request may name |
//! | [`client`] | who a request is from, and what it took |
//! | [`handshake`] | a key in the handshake of a WebSocket |
//! | [`guard`] | asks all of them before any handler runs |

pub mod client;
pub mod guard;
pub mod handshake;
pub mod keys;
pub mod origins;
pub mod quota;

use actix_web::HttpRequest;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};

use crate::error::ApiError;
use client::Client;
use keys::{KeyRing, Secret};
use origins::{Hosts, Origins};
use quota::Addresses;

/// The rules of a service. The default asks nobody for a key, counts nothing, and answers to any name.
#[derive(Debug, Default)]
pub struct Access {
    /// Keys that are asked for, if there are any.
    pub keys: KeyRing,
    /// Names this server answers to.
    pub hosts: Hosts,
    /// Pages that may use it.
    pub origins: Origins,
    /// What an address may take a minute, where no keys are asked for.
    pub addresses: Addresses,
    /// Least `priority` that a request may have: of keys that have no bound of their own (`None`: 0), and where no keys are
    /// asked for (`None`: any).
    pub least_priority: Option<i32>,
}

impl Access {
    /// Who a request is from.
    ///
    /// # Errors
    /// 401 without a known key where one is asked for.
    pub fn client(&self, request: &HttpRequest) -> Result<Client, ApiError> {
        let address = request.peer_addr().map(|address| address.ip());
        let secret = secret(request.headers());
        if !self.keys.is_required() {
            let client = Client::by_address(address, secret.as_ref(), self.addresses.quota(address));
            return Ok(client.from_priority(self.least_priority));
        }
        let Some(secret) = secret else {
            let message = match handshake::is_handshake(request.headers()) {
                false => "this server asks for an API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
                true => {
                    "this server asks for an API key: send `Authorization: Bearer KEY`, or offer the protocols `shimmy` and \
                     `shimmy-key.` with the key in base64url"
                }
            };
            return Err(ApiError::unauthorized(message, "missing_api_key"));
        };
        match self.keys.find(&secret) {
            Some(key) => {
                // Whose turn it is concerns all keys: none goes before the others unless somebody said so.
                let least = key.least_priority.or(self.least_priority).unwrap_or(0);
                Ok(Client::by_key(&key).from_priority(Some(least)))
            }
            None => Err(ApiError::unauthorized("the API key is not one of this server's", "invalid_api_key")),
        }
    }
}

/// The key that a request brings.
fn secret(headers: &HeaderMap) -> Option<Secret> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let key = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim));
    match key {
        Some(key) => (!key.is_empty()).then(|| Secret::of(key)),
        None => handshake::key(headers),
    }
}

/// What tells clients apart where nobody asks for a key: the key that a request brings all the same, in whichever header,
/// or else what it says in `Authorization`.
pub fn claim(headers: &HeaderMap) -> Option<Secret> {
    secret(headers).or_else(|| headers.get(AUTHORIZATION).map(|value| Secret::of(value.as_bytes())))
}
