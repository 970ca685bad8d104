//! The Origin of a browser: an exact allow-list, checked before the upgrade. CORS does not protect sockets.

use std::net::IpAddr;

/// Scheme, host and port, normalised as RFC 6454 section 4 compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Reads what a browser sends: `scheme://host` or `scheme://host:port` and nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (host, port) = split_port(authority)?;
        let port = if port.is_empty() { default_port } else { digits(port)? };
        Some(Self { scheme, host: host.to_ascii_lowercase(), port })
    }

    /// Over TLS, or from this machine.
    pub(crate) fn is_secure(&self) -> bool {
        self.scheme == "https" || self.host == "localhost" || self.address().is_some_and(|ip| ip.is_loopback())
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

fn digits(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Host and port of an authority without user information.
fn split_port(authority: &str) -> Option<(&str, &str)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 2;
            let (host, port) = authority.split_at(end);
            (host, if port.is_empty() { "" } else { port.strip_prefix(':')? })
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let of_a_host =
        |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b) || (host.starts_with('[') && b"[]:".contains(&b));
    (!host.is_empty() && host.bytes().all(of_a_host)).then_some((host, port))
}

/// Which origins may open a socket.
#[derive(Debug)]
pub(crate) struct AllowedOrigins {
    listed: Vec<Origin>,
    same_host: bool,
}

impl AllowedOrigins {
    /// With the configured list. `dev` and an empty list: the page's own host, when that is an address or `localhost`
    /// (names could be pointed at this machine by a stranger's DNS).
    pub(crate) fn new(origins: &[String], dev: bool) -> Self {
        Self { listed: origins.iter().filter_map(|o| Origin::parse(o)).collect(), same_host: dev && origins.is_empty() }
    }

    /// Whether a request with this Origin and Host may be upgraded.
    pub(crate) fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let Some(origin) = Origin::parse(origin) else { return false };
        if self.listed.contains(&origin) {
            return true;
        }
        let own = host.and_then(|host| Origin::parse(&format!("{}://{host}", origin.scheme)));
        self.same_host && own.as_ref() == Some(&origin) && (origin.host == "localhost" || origin.address().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_origin_is_allowed() {
        let allowed = AllowedOrigins::new(&["https://app.test".into(), "http://localhost:5173".into()], true);
        for good in ["https://app.test", "https://app.test:443", "HTTPS://APP.TEST", "http://localhost:5173"] {
            assert!(allowed.allows(good, None), "{good}");
        }
        for bad in [
            "",
            "null",
            "*",
            "app.test",
            "http://app.test",
            "https://app.test:8443",
            "https://app.test.evil.test",
            "https://evil-app.test",
            "https://sub.app.test",
            "https://app.test/",
            "https://app.test?",
            "https://user@app.test",
            "https://app.test@evil.test",
            "https://app.test evil",
            "https://app.test:+443",
            "https://app.test:443:443",
            "wss://app.test",
            "http://localhost:5174",
            "http://[::1",
        ] {
            assert!(!allowed.allows(bad, Some("localhost:5174")), "{bad}");
        }
    }

    #[test]
    fn development_allows_the_pages_own_host_when_nobody_can_point_it_here() {
        let allowed = AllowedOrigins::new(&[], true);
        assert!(allowed.allows("http://127.0.0.1:8080", Some("127.0.0.1:8080")));
        assert!(allowed.allows("http://[::1]:8080", Some("[::1]:8080")));
        assert!(allowed.allows("http://localhost", Some("localhost")));
        assert!(!allowed.allows("http://localhost:8080", Some("localhost:8081")));
        assert!(!allowed.allows("http://evil.test:8080", Some("evil.test:8080")));
        assert!(!allowed.allows("http://localhost:8080", None));
        assert!(!AllowedOrigins::new(&[], false).allows("http://localhost", Some("localhost")));
    }
}
