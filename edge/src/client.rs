//! Who is at the other end: the address and the scheme, seen through trusted proxies only.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The proxies whose headers are believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies(Vec<Network>);

#[derive(Debug, Clone, Copy)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl TrustedProxies {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// The first that is neither.
    pub(crate) fn parse(list: &[String]) -> Result<Self, String> {
        list.iter().map(|text| Network::parse(text).ok_or_else(|| text.clone())).collect::<Result<_, _>>().map(Self)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(ip))
    }

    /// The right-most address that is not a trusted proxy: everything further left was written by whoever that is.
    pub(crate) fn client_ip(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.contains(client) {
            return client;
        }
        let values = headers.get_all(FORWARDED_FOR).into_iter().rev().filter_map(|value| value.to_str().ok());
        for hop in values.flat_map(|value| value.rsplit(',')) {
            let Some(ip) = address_of(hop.trim()) else { break };
            client = ip.to_canonical();
            if !self.contains(client) {
                break;
            }
        }
        client
    }

    /// Whether the browser's side of a trusted proxy was TLS.
    pub(crate) fn came_over_tls(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let last = headers.get_all(FORWARDED_PROTO).into_iter().next_back().and_then(|value| value.to_str().ok());
        self.contains(peer.to_canonical())
            && last
                .and_then(|value| value.rsplit(',').next())
                .is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https"))
    }
}

/// An address with or without a port, as proxies write it.
fn address_of(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip()))
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(longest), |p| p.parse().ok())?;
        (prefix <= longest).then_some(Self { address, prefix })
    }

    fn contains(self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::parse(&["10.0.0.0/8".into(), "192.0.2.7".into(), "fd00::/8".into()]).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_stranger_cannot_choose_an_address() {
        let forged = headers(&[(FORWARDED_FOR, "1.2.3.4")]);
        assert_eq!(proxies().client_ip(ip("203.0.113.9"), &forged), ip("203.0.113.9"));
    }

    #[test]
    fn the_right_most_address_that_is_no_proxy_is_the_client() {
        for (value, expected) in [
            ("1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4, 10.1.1.1", "1.2.3.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("1.2.3.4, junk", "10.0.0.1"),
            ("10.2.2.2", "10.2.2.2"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
        ] {
            let headers = headers(&[(FORWARDED_FOR, value)]);
            assert_eq!(proxies().client_ip(ip("10.0.0.1"), &headers), ip(expected), "{value}");
        }
        let two = headers(&[(FORWARDED_FOR, "6.6.6.6"), (FORWARDED_FOR, "1.2.3.4")]);
        assert_eq!(proxies().client_ip(ip("::ffff:10.0.0.1"), &two), ip("1.2.3.4"));
    }

    #[test]
    fn the_scheme_is_believed_from_trusted_proxies_only() {
        let https = headers(&[(FORWARDED_PROTO, "http, HTTPS")]);
        assert!(proxies().came_over_tls(ip("192.0.2.7"), &https));
        assert!(!proxies().came_over_tls(ip("192.0.2.8"), &https));
        assert!(!proxies().came_over_tls(ip("192.0.2.7"), &headers(&[(FORWARDED_PROTO, "https, http")])));
        assert!(!proxies().came_over_tls(ip("192.0.2.7"), &HeaderMap::new()));
    }

    #[test]
    fn networks_are_compared_by_their_prefix() {
        assert!(proxies().contains(ip("fdff::1")) && !proxies().contains(ip("fe00::1")));
        assert!(proxies().contains(ip("10.255.255.255")) && !proxies().contains(ip("11.0.0.0")));
        assert!(TrustedProxies::parse(&["0.0.0.0/0".into()]).unwrap().contains(ip("8.8.8.8")));
        for bad in ["10.0.0.0/33", "10.0.0", "10.0.0.0/", "::/129", ""] {
            assert!(TrustedProxies::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
