//! Ports for programs that have to be told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Result, bail};
use rand::RngExt as _;

/// Below the range that the system hands out for outgoing connections, so that none of those can take the port between this
/// call and the program's own bind.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// A free port on loopback. Servers that live in the test bind port 0 instead.
///
/// # Errors
/// When none of many tries is free.
pub fn free_port() -> Result<SocketAddr> {
    for _ in 0..100 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(RANGE)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let address = free_port().unwrap();
        assert!(RANGE.contains(&address.port()));
        TcpListener::bind(address).unwrap();
    }
}
