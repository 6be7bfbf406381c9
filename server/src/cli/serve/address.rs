//! The address to listen at, and the search for a free port.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use crate::cli::failure::usage;

/// The first port that is tried, and the last.
const PORTS: std::ops::RangeInclusive<u16> = 11435..=11535;

/// Where to listen, as people write it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    /// `None`: any of [`PORTS`].
    port: Option<u16>,
}

impl Address {
    /// `bind` is HOST, HOST:PORT, [IPv6]:PORT or `auto`; `port` beats the port in it.
    pub(super) fn parse(bind: Option<&str>, host: Option<&str>, port: Option<u16>) -> anyhow::Result<Self> {
        let given = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let host = given(host).unwrap_or_else(|| "127.0.0.1".into());
        let Some(bind) = given(bind).filter(|bind| bind != "auto") else { return Ok(Self { host, port }) };
        if let Ok(address) = bind.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: port.or(Some(address.port())) });
        }
        match bind.rsplit_once(':') {
            // `::1` and the like.
            _ if bind.parse::<std::net::IpAddr>().is_ok() => Ok(Self { host: bind, port }),
            Some((of_bind, in_bind)) => {
                let wrong = || usage(format!("--bind {bind}: `{in_bind}` is no port; write HOST or HOST:PORT"));
                let in_bind = in_bind.parse().map_err(|_| wrong())?;
                let host = if of_bind.is_empty() { host } else { of_bind.to_owned() };
                Ok(Self { host, port: port.or(Some(in_bind)) })
            }
            None => Ok(Self { host: bind, port }),
        }
    }

    pub(super) fn listen(&self) -> anyhow::Result<TcpListener> {
        let bind = |port: u16| {
            (self.host.as_str(), port).to_socket_addrs().and_then(|all| TcpListener::bind(&*all.collect::<Vec<_>>()))
        };
        if let Some(port) = self.port {
            return bind(port).map_err(|error| {
                anyhow::anyhow!("can't listen at {}:{port}: {error}; choose another with --port", self.host)
            });
        }
        let mut last = None;
        for port in PORTS {
            match bind(port) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) => anyhow::bail!("can't listen at {}:{port}: {error}", self.host),
            }
        }
        let error = last.map(|error| error.to_string()).unwrap_or_default();
        anyhow::bail!("no free port at {} from {} to {}: {error}", self.host, PORTS.start(), PORTS.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_their_forms() {
        let parse = |bind: &str, host: &str, port| {
            let address = Address::parse(Some(bind), Some(host), port).unwrap();
            (address.host, address.port)
        };
        assert_eq!(parse("", "", None), ("127.0.0.1".into(), None));
        assert_eq!(parse("auto", "", None), ("127.0.0.1".into(), None));
        assert_eq!(parse("0.0.0.0", "", None), ("0.0.0.0".into(), None));
        assert_eq!(parse("0.0.0.0:80", "", None), ("0.0.0.0".into(), Some(80)));
        assert_eq!(parse("localhost:80", "", Some(81)), ("localhost".into(), Some(81)));
        assert_eq!(parse(":80", "10.0.0.1", None), ("10.0.0.1".into(), Some(80)));
        assert_eq!(parse("[::1]:80", "", None), ("::1".into(), Some(80)));
        assert_eq!(parse("::1", "", None), ("::1".into(), None));
        assert_eq!(parse("", "10.0.0.1", Some(5)), ("10.0.0.1".into(), Some(5)));
        assert!(Address::parse(Some("localhost:http"), None, None).is_err());
    }

    #[test]
    fn the_next_free_port_is_taken_unless_one_was_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Address { host: "127.0.0.1".into(), port: Some(port) }.listen().unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        let any = Address { host: "127.0.0.1".into(), port: None };
        let (first, second) = (any.listen().unwrap(), any.listen().unwrap());
        let ports = [&first, &second].map(|listener| listener.local_addr().unwrap().port());
        assert!(ports[0] < ports[1] && ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
    }
}
