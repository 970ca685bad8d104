//! Where a webhook may go. A URL of the configuration must not become a way into the network that core stands in.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// What a URL must be, beyond https.
///
/// # Errors
/// What it must not be.
pub fn check(url: &Url, allow_private: bool) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user name or password");
    }
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        _ => return Err("must be https"),
    }
    if url.fragment().is_some() {
        return Err("must not contain a fragment");
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("must name a host")?;
    // A name is looked at when it is looked up; an address is written in its usual form by now.
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
    if !allow_private && literal.is_ok_and(|address| !is_public(address)) {
        return Err("must not be an address that is not public");
    }
    Ok(())
}

/// Looks names up and refuses them when any of their addresses is not public; what it returns is what is connected to, so
/// that a second look-up cannot give another answer.
#[derive(Debug, Default)]
pub struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.iter().any(|address| !is_public(address.ip())) {
                return Err(Box::new(NotPublic) as Box<dyn Error + Send + Sync>);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// A name that leads to an address that is not public.
#[derive(Debug, thiserror::Error)]
#[error("the name leads to an address that is not public")]
pub struct NotPublic;

/// Reachable from anywhere, by the registries of special addresses (RFC 6890 and its updates at IANA).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 192 && b == 168)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Those that hold an IPv4 address lead there: mapped (RFC 4291), translated (RFC 6052), 6to4 (RFC 3056).
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let parts = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0x2002, high, low, ..] => inner(high, low),
        // Documentation (RFC 3849, RFC 9637), Teredo, benchmarking and ORCHID.
        [0x2001, 0xdb8, ..] | [0x2001, 0..=0x1ff, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is 2000::/3; all else is local, multicast or not given out.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn urls_that_could_leak_or_lead_inside_are_refused() {
        let check = |url: &str, private| check(&Url::parse(url).unwrap(), private);
        assert_eq!(check("https://hooks.example.org/a?b=c", false), Ok(()));
        assert_eq!(check("https://1.1.1.1/", false), Ok(()));
        assert_eq!(check("http://127.0.0.1:8080/", true), Ok(()));
        for (url, wrong) in [
            ("http://hooks.example.org/", "https"),
            ("ftp://hooks.example.org/", "https"),
            ("https://user@hooks.example.org/", "user name"),
            ("https://hooks.example.org/#a", "fragment"),
            ("https://127.0.0.1/", "not public"),
            ("https://2130706433/", "not public"),
            ("https://0x7f.1/", "not public"),
            ("https://[::ffff:10.0.0.1]/", "not public"),
        ] {
            assert!(check(url, false).unwrap_err().contains(wrong), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_resolved() {
        let refused = PublicResolver.resolve("localhost".parse().unwrap()).await;
        assert!(refused.is_err_and(|error| error.is::<NotPublic>()));
    }
}
