//! Which names a request may call this server by, and which pages may send one.
//!
//! A page of any site can send requests to this machine's own addresses, and with a name that resolves to them (DNS
//! rebinding) it can read the answers too. So a server that only this machine is to reach answers to this machine's names,
//! and a page of another site is refused unless it is on the list.

use std::net::IpAddr;

/// Schemes that no web site has: programs on this machine that are made of pages.
const LOCAL_SCHEMES: [&str; 4] = ["app", "file", "tauri", "vscode-webview"];

/// Names this server answers to.
#[derive(Debug, Default)]
pub struct Hosts {
    /// `None`: all.
    names: Option<Vec<Pattern>>,
}

impl Hosts {
    /// Of a server that only this machine can reach, or that `names` were given for: these and this machine's own. `*` and
    /// the others: all.
    pub fn new(is_loopback: bool, names: &[String]) -> Self {
        let names: Vec<Pattern> = names.iter().map(|name| Pattern::new(name)).collect();
        let is_open = names.contains(&Pattern::Any) || (!is_loopback && names.is_empty());
        Self { names: (!is_open).then_some(names) }
    }

    /// Whether a request may call it by this `Host`.
    pub fn allows(&self, host: &str) -> bool {
        let Some(names) = &self.names else { return true };
        let name = without_port(host);
        is_this_machine(name) || names.iter().any(|pattern| pattern.matches(name))
    }
}

/// Pages that may use this server.
#[derive(Debug, Default)]
pub struct Origins {
    listed: Vec<String>,
}

impl Origins {
    /// Origins such as `https://chat.example.com`, without a path; `*` is all of them.
    pub fn new(listed: &[String]) -> Self {
        Self { listed: listed.iter().map(|origin| origin.trim().trim_end_matches('/').to_ascii_lowercase()).collect() }
    }

    /// Whether a page of this `Origin` may send a request to this `Host`: one that this server sent itself, one of this
    /// machine, or one on the list.
    pub fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.listed.iter().any(|listed| listed == "*" || *listed == origin) {
            return true;
        }
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        LOCAL_SCHEMES.contains(&scheme)
            || host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
            || is_this_machine(without_port(authority))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    /// All names that end in this, which starts with a dot.
    Under(String),
    Name(String),
}

impl Pattern {
    fn new(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(under) if under.starts_with('.') => Self::Under(under.to_owned()),
            _ => Self::Name(without_port(&text).to_owned()),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Under(under) => name.to_ascii_lowercase().ends_with(under),
            Self::Name(own) => own.eq_ignore_ascii_case(name),
        }
    }
}

/// The name of `name:port` or `[v6]:port`.
fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or(authority, |(address, _)| address);
    }
    match authority.rsplit_once(':') {
        // More than one colon: an address without brackets.
        Some((name, _)) if !name.contains(':') => name,
        _ => authority,
    }
}

/// `localhost`, what is under it, and the addresses of the machine's own network.
fn is_this_machine(name: &str) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_server_answers_to_local_names() {
        let local = Hosts::new(true, &[]);
        for host in
            ["localhost", "LOCALHOST:11435", "127.0.0.1", "127.9.9.9:80", "[::1]:1", "::1", "a.localhost", "localhost."]
        {
            assert!(local.allows(host), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:11435",
            "evillocalhost",
            "10.0.0.1",
            "",
            "0.0.0.0",
            "[::2]",
            "[",
            "@localhost@evil",
        ] {
            assert!(!local.allows(host), "{host}");
        }
    }

    #[test]
    fn other_names_can_be_listed() {
        let listed = Hosts::new(true, &["Box.lan:80".into(), "*.example.com".into()]);
        assert!(listed.allows("box.lan:11435") && listed.allows("a.b.Example.com") && listed.allows("localhost"));
        assert!(!listed.allows("example.com") && !listed.allows("badexample.com") && !listed.allows("lan"));
        assert!(Hosts::new(true, &["*".into()]).allows("anything"));
        assert!(Hosts::new(false, &[]).allows("anything"), "a server for a network is called by names it can't know");
        assert!(!Hosts::new(false, &["box".into()]).allows("anything"));
    }

    #[test]
    fn pages_of_other_sites_are_kept_out() {
        let origins = Origins::new(&["https://Chat.example.com/".into()]);
        let host = Some("10.0.0.1:11435");
        for origin in [
            "http://10.0.0.1:11435",
            "https://chat.example.com",
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://[::1]:5173",
            "tauri://localhost",
            "vscode-webview://1a2b",
        ] {
            assert!(origins.allows(origin, host), "{origin}");
        }
        for origin in [
            "null",
            "",
            "https://evil.example",
            "https://chat.example.com.evil.example",
            "https://chat.example.com:8443",
            "http://chat.example.com",
            "http://10.0.0.1",
            "chrome-extension://abc",
            "localhost",
        ] {
            assert!(!origins.allows(origin, host), "{origin}");
        }
        assert!(Origins::new(&["*".into()]).allows("null", None));
    }
}
