//! What one client may take: handshakes per address, sockets per user, frames per second. All of it is bounded memory.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A token bucket: `rate` per `period`, as many at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// How much time of allowance is used up; one unit costs `period / rate`.
    used: Duration,
    last: Instant,
}

/// How a bucket fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    cost: Duration,
    burst: Duration,
}

impl Rate {
    pub(crate) fn new(count: u32, period: Duration) -> Self {
        Self { cost: period / count.max(1), burst: period }
    }

    /// Like [`new`](Self::new), but the `count`th one is refused already: "so many strikes and out".
    pub(crate) fn until(count: u32, period: Duration) -> Self {
        let cost = period / count.max(1);
        Self { cost, burst: period.saturating_sub(cost) }
    }
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { used: Duration::ZERO, last: now }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When one will be there again.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.used = self.used.saturating_sub(now.saturating_duration_since(self.last));
        self.last = now;
        let after = self.used + rate.cost;
        if after > rate.burst {
            return Err(after.saturating_sub(rate.burst));
        }
        self.used = after;
        Ok(())
    }

    fn is_full(&self, now: Instant) -> bool {
        self.used <= now.saturating_duration_since(self.last)
    }
}

/// Addresses that are remembered at once. A stranger with more addresses than this gets past the limit, not past memory.
const MAX_ADDRESSES: usize = 65_536;

/// Handshakes per address.
#[derive(Debug)]
pub(crate) struct Handshakes {
    rate: Rate,
    /// Guards the buckets; held for one look-up.
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Handshakes {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { rate: Rate::new(per_second, Duration::from_secs(1)), buckets: Mutex::default() }
    }

    /// Takes one handshake of an address.
    ///
    /// # Errors
    /// When the next may come.
    pub(crate) fn take(&self, ip: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_ADDRESSES {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= MAX_ADDRESSES {
                buckets.clear();
            }
        }
        buckets.entry(network_of(ip)).or_insert_with(|| Bucket::new(now)).take(self.rate, now)
    }
}

/// One customer of an IPv6 provider has a whole /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

/// Sockets per user.
#[derive(Debug, Clone)]
pub(crate) struct Seats {
    per_user: u32,
    /// Guards the counts; held for one look-up. A user without sockets has no entry.
    taken: Arc<Mutex<HashMap<Arc<str>, u32>>>,
}

/// One socket of a user; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    user_id: Arc<str>,
    seats: Seats,
}

impl Seats {
    pub(crate) fn new(per_user: u32) -> Self {
        Self { per_user, taken: Arc::default() }
    }

    /// Takes a seat, if the user has one left.
    pub(crate) fn take(&self, user_id: &str) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (user_id, count) = match taken.get_key_value(user_id) {
            Some((user_id, count)) => (Arc::clone(user_id), *count),
            None => (Arc::from(user_id), 0),
        };
        if count >= self.per_user {
            return None;
        }
        taken.insert(Arc::clone(&user_id), count + 1);
        Some(Seat { user_id, seats: self.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.user_id) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate::new(10, Duration::from_secs(1));
        let mut bucket = Bucket::new(Instant::now());
        assert_eq!((0..20).filter(|_| bucket.take(rate, Instant::now()).is_ok()).count(), 10);
        let wait = bucket.take(rate, Instant::now()).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        tokio::time::advance(wait).await;
        assert!(bucket.take(rate, Instant::now()).is_ok());
        assert!(bucket.take(rate, Instant::now()).is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..20).filter(|_| bucket.take(rate, Instant::now()).is_ok()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_are_counted_per_address_and_ipv6_network() {
        let handshakes = Handshakes::new(2);
        let now = Instant::now();
        let take = |ip: &str| handshakes.take(ip.parse().unwrap(), now).is_ok();
        assert!(take("1.1.1.1") && take("1.1.1.1") && !take("1.1.1.1"));
        assert!(take("1.1.1.2"));
        assert!(take("2001:db8::1") && take("2001:db8::2") && !take("2001:db8::3"));
        assert!(take("2001:db8:0:1::1"));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_do_not_fill_memory() {
        let handshakes = Handshakes::new(2);
        for i in 0..200_000_u32 {
            let _ = handshakes.take(IpAddr::V4(i.into()), Instant::now());
        }
        assert!(handshakes.buckets.lock().unwrap().len() <= MAX_ADDRESSES);
    }

    #[test]
    fn seats_are_given_back() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take("alice"), seats.take("alice"));
        assert!(first.is_some() && second.is_some() && seats.take("alice").is_none());
        assert!(seats.take("bob").is_some());
        drop(first);
        assert!(seats.take("alice").is_some());
        drop(second);
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
