//! A TCP proxy for a network that misbehaves: delay, stall, half-close, cut, refusal.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Which way bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// How the network behaves now.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    delay: Duration,
    stalled: [bool; 2],
    refuse: bool,
    /// Connections older than the last cut are dropped.
    cuts: u64,
    /// How often each way was half-closed.
    half_closes: [u64; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    accepted: usize,
    open: usize,
}

/// The proxy; ends with all its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    counts: Arc<watch::Sender<Counts>>,
    _server: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of loopback and connects each client to `target`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather::default());
        let counts = Arc::new(watch::Sender::new(Counts::default()));
        let mut server = JoinSet::new();
        let (now, counted) = (weather.subscribe(), Arc::clone(&counts));
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counted.send_modify(|counts| counts.accepted += 1);
                connections.spawn(connect(client, target, now.clone(), Arc::clone(&counted)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, weather, counts, _server: server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds every piece back for this long.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Lets nothing through in either way; connections stay open.
    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalled = [true; 2]);
    }

    /// Lets nothing through in one way.
    pub fn stall_way(&self, way: Way) {
        self.weather.send_modify(|weather| weather.stalled[way as usize] = true);
    }

    /// Ends a stall.
    pub fn resume(&self) {
        self.weather.send_modify(|weather| weather.stalled = [false; 2]);
    }

    /// Drops every open connection with a reset on both sides.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Says the end of the stream (FIN) to whom the bytes of this way flow; the other way goes on.
    pub fn half_close(&self, way: Way) {
        self.weather.send_modify(|weather| weather.half_closes[way as usize] += 1);
    }

    /// Resets new connections instead of serving them, or serves them again.
    pub fn refuse(&self, refuse: bool) {
        self.weather.send_modify(|weather| weather.refuse = refuse);
    }

    /// Connections that were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.counts.borrow().accepted
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.borrow().open
    }
}

async fn connect(
    client: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    counts: Arc<watch::Sender<Counts>>,
) {
    let start = *weather.borrow_and_update();
    if start.refuse {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    counts.send_modify(|counts| counts.open += 1);
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut ways = JoinSet::new();
    ways.spawn(pump(client_read, server_write, weather.clone(), Way::Up, start));
    ways.spawn(pump(server_read, client_write, weather, Way::Down, start));
    while ways.join_next().await.is_some() {}
    counts.send_modify(|counts| counts.open -= 1);
}

/// Carries one way until its end, a half-close or a cut.
async fn pump(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    way: Way,
    start: Weather,
) {
    let mut buffer = vec![0; 16 * 1024];
    let half_closed = |now: &Weather| now.half_closes[way as usize] > start.half_closes[way as usize];
    let disturbed = |now: &Weather| now.cuts > start.cuts || half_closed(now);
    let mut watched = weather.clone();
    loop {
        let flows = weather.wait_for(|now| disturbed(now) || !now.stalled[way as usize]);
        let Ok(now) = flows.await.map(|now| *now) else { return };
        if now.cuts > start.cuts {
            return reset(read, write);
        }
        if half_closed(&now) {
            break;
        }
        let arrived = tokio::select! {
            arrived = read.read(&mut buffer) => arrived,
            // A change of the weather while nothing arrives; `read` is cancel-safe.
            _ = watched.changed() => continue,
        };
        let Ok(count @ 1..) = arrived else { break };
        if !carry(&mut write, &buffer[..count], &mut weather, way, start).await {
            return reset(read, write);
        }
    }
    let _ = write.shutdown().await;
}

/// Writes one piece, after the delay and not during a stall. False when the connection is over.
async fn carry(
    write: &mut OwnedWriteHalf,
    piece: &[u8],
    weather: &mut watch::Receiver<Weather>,
    way: Way,
    start: Weather,
) -> bool {
    let delay = weather.borrow().delay;
    if !delay.is_zero() {
        #[expect(clippy::disallowed_methods, reason = "the delay is what this proxy is for")]
        tokio::time::sleep(delay).await;
    }
    let Ok(now) = weather.wait_for(|now| now.cuts > start.cuts || !now.stalled[way as usize]).await.map(|now| *now)
    else {
        return false;
    };
    now.cuts == start.cuts && write.write_all(piece).await.is_ok()
}

/// Closes both connections with a reset, as soon as the other way has let go of them too.
fn reset(read: OwnedReadHalf, write: OwnedWriteHalf) {
    let (from, to): (&TcpStream, &TcpStream) = (read.as_ref(), write.as_ref());
    // Either may be gone already.
    let _ = (from.set_zero_linger(), to.set_zero_linger());
    // A dropped half would say the end of the stream in good order first.
    write.forget();
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::harness::wait::{LIMIT, wait_until, within};

    /// An echo server behind a proxy, and a client of it.
    async fn echo() -> (Proxy, TcpStream, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.write_all(b"|end").await;
                });
            }
        });
        let proxy = Proxy::start(target).await.unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client, server)
    }

    async fn round_trip(client: &mut TcpStream) {
        client.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        within("the echo", LIMIT, client.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"ping");
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_the_end_too() {
        let (proxy, mut client, _server) = echo().await;
        round_trip(&mut client).await;
        assert_eq!((proxy.accepted(), proxy.open()), (1, 1));
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within("the end", LIMIT, client.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"|end");
        wait_until("no connection is open", LIMIT, || proxy.open() == 0).await.unwrap();
    }

    #[tokio::test]
    async fn a_delay_holds_every_piece_back() {
        let (proxy, mut client, _server) = echo().await;
        proxy.delay(Duration::from_millis(30));
        let start = Instant::now();
        round_trip(&mut client).await;
        assert!(start.elapsed() >= Duration::from_millis(60), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_stall_keeps_the_connection_and_loses_nothing() {
        let (proxy, mut client, _server) = echo().await;
        round_trip(&mut client).await;
        proxy.stall();
        client.write_all(b"late").await.unwrap();
        let mut answer = [0; 4];
        {
            let mut echo = Box::pin(client.read_exact(&mut answer));
            let patience = tokio::time::timeout(Duration::from_millis(50), &mut echo).await;
            assert!(patience.is_err(), "bytes passed a stall");
            proxy.resume();
            within("the echo after the stall", LIMIT, echo).await.unwrap().unwrap();
        }
        assert_eq!(&answer, b"late");
    }

    #[tokio::test]
    async fn a_cut_resets_the_client_also_during_a_stall() {
        for stalled in [false, true] {
            let (proxy, mut client, _server) = echo().await;
            round_trip(&mut client).await;
            if stalled {
                proxy.stall();
            }
            proxy.cut();
            let end = within("the reset", LIMIT, client.read(&mut [0])).await.unwrap();
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            proxy.resume();
            let mut again = TcpStream::connect(proxy.address()).await.unwrap();
            round_trip(&mut again).await;
        }
    }

    #[tokio::test]
    async fn a_half_close_ends_one_way_only() {
        let (proxy, mut client, _server) = echo().await;
        round_trip(&mut client).await;
        assert!(client.read(&mut [0]).now_or_never().is_none());
        proxy.half_close(Way::Up);
        let mut rest = Vec::new();
        within("the end", LIMIT, client.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"|end");
    }

    #[tokio::test]
    async fn refused_connections_are_reset() {
        let (proxy, mut client, _server) = echo().await;
        round_trip(&mut client).await;
        proxy.refuse(true);
        // The reset may come before the client has looked at its new connection.
        if let Ok(mut refused) = TcpStream::connect(proxy.address()).await {
            let end = within("the refusal", LIMIT, refused.read(&mut [0])).await.unwrap();
            assert!(!matches!(end, Ok(1..)));
        }
        assert_eq!(proxy.open(), 1);
        round_trip(&mut client).await;
    }
}
