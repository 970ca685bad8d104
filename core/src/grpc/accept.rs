//! Connections of the gRPC listener: counted, and bounded in number, in all and for one address, and in the time that one may
//! be silent. Above the bound of all the listener's backlog waits; above that of an address a connection is closed.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After an error of the listener.
const PAUSE: Duration = Duration::from_millis(100);

/// The preface of HTTP/2 and the head of the SETTINGS frame that follows it (RFC 9113 3.4). Whoever has sent this much is
/// pinged from then on by the server, and must answer; a client hello of TLS is longer, and has a time limit of its own.
const FIRST_BYTES: usize = 24 + 9;

/// What connections may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// At once.
    pub(super) total: usize,
    /// At once from one address.
    pub(super) per_ip: usize,
    /// Until a connection has begun to speak HTTP/2.
    pub(super) handshake: Duration,
    /// Between two reads. Live peers answer pings more often than that.
    pub(super) silence: Duration,
    /// Until a peer takes something of what is being written. The end of a connection is written too, so that without this
    /// a peer that never reads would never be rid of.
    pub(super) stall: Duration,
}

/// Accepts connections within these limits.
pub(super) fn connections(
    listener: TcpListener,
    limits: ConnectionLimits,
    gauge: Gauge,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(limits.total));
    let addresses = Addresses { limit: limits.per_ip, counts: Arc::default() };
    stream::unfold((listener, permits, addresses, gauge), move |(listener, permits, addresses, gauge)| async move {
        loop {
            let permit = permits.clone().acquire_owned().await.ok()?;
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes when somebody leaves, and trying at once would spin.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(place) = addresses.enter(peer.ip()) else {
                tracing::debug!(address = %peer.ip(), "too many connections from one address");
                continue;
            };
            // Frames are small and wanted at once.
            let accepted = socket.set_nodelay(true).map(|()| {
                gauge.inc();
                Connection {
                    _place: (permit, place),
                    socket,
                    gauge: gauge.clone(),
                    silence: Silence::new(limits),
                    stall: Stall { limit: limits.stall, timer: None },
                }
            });
            return Some((accepted, (listener, permits, addresses, gauge)));
        }
    })
}

/// Connections by address. Holds addresses that have one, and no others.
#[derive(Debug, Clone)]
struct Addresses {
    limit: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of an address, until it is dropped.
#[derive(Debug)]
struct Place {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.get(&address).copied().unwrap_or(0);
        if count >= self.limit {
            return None;
        }
        counts.insert(address, count + 1);
        Some(Place { addresses: self.clone(), address })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Only map operations run under this lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// How long nothing has come.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    /// Bytes that came, as far as that matters.
    read: usize,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(limits: ConnectionLimits) -> Self {
        let timer = Box::pin(tokio::time::sleep(limits.handshake));
        Self { limit: limits.silence, read: 0, last: Instant::now(), timer }
    }

    fn broken(&mut self, bytes: usize) {
        self.read = self.read.saturating_add(bytes);
        self.last = Instant::now();
    }

    /// Ready when it has been too long. The timer is not set again at each read, but when it goes off too early.
    fn poll_too_long(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.read < FIRST_BYTES || self.last.elapsed() >= self.limit {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer is silent"));
            }
            self.timer.as_mut().reset(self.last + self.limit);
        }
        Poll::Pending
    }
}

/// How long a peer has taken nothing of what is being written.
#[derive(Debug)]
struct Stall {
    limit: Duration,
    /// Set while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// The outcome of a write, or that it has waited too long.
    fn bound<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.timer = None;
            return outcome;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        timer.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

/// One connection, counted while it lives.
#[derive(Debug)]
pub(super) struct Connection {
    /// Dropped before the socket: a peer that sees the end may come back at once.
    _place: (OwnedSemaphorePermit, Place),
    socket: TcpStream,
    gauge: Gauge,
    silence: Silence,
    stall: Stall,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.socket).poll_read(cx, buf) {
            Poll::Ready(outcome) => {
                self.silence.broken(buf.filled().len() - before);
                Poll::Ready(outcome)
            }
            Poll::Pending => self.silence.poll_too_long(cx).map(Err),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.stall.bound(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.stall.bound(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        total: 8,
        per_ip: 2,
        handshake: Duration::from_secs(10),
        silence: Duration::from_secs(40),
        stall: Duration::from_secs(20),
    };

    async fn accepted(limits: ConnectionLimits) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut accepted = Box::pin(connections(listener, limits, Gauge::default()));
        (client, accepted.next().await.unwrap().unwrap())
    }

    #[tokio::test]
    async fn an_address_has_so_many_connections_and_gets_a_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gauge = Gauge::default();
        let mut accepted = Box::pin(connections(listener, LIMITS, gauge.clone()));
        let (mut clients, mut served) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(accepted.next().await.unwrap().unwrap());
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        let refused = tokio::select! {
            read = third.read(&mut byte) => read,
            _ = accepted.next() => panic!("a third connection was accepted"),
        };
        assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
        assert_eq!(gauge.get(), 2);
        served.pop();
        let _fourth = TcpStream::connect(address).await.unwrap();
        accepted.next().await.unwrap().unwrap();
        drop(served);
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_in_time_is_cut_however_slowly_it_drips() {
        let (mut client, mut served) = accepted(LIMITS).await;
        let started = Instant::now();
        let read = async {
            let mut bytes = Vec::new();
            served.read_to_end(&mut bytes).await
        };
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(b"P").await.unwrap();
            }
        };
        let outcome = tokio::select! { outcome = read => outcome, () = drip => unreachable!() };
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_may_be_silent_for_a_while_since_the_last_byte() {
        let (mut client, mut served) = accepted(LIMITS).await;
        client.write_all(&[0; FIRST_BYTES]).await.unwrap();
        served.read_exact(&mut [0; FIRST_BYTES]).await.unwrap();
        let said_more = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            client.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        let started = Instant::now();
        let read = async {
            served.read_exact(&mut [0; 1]).await.unwrap();
            served.read_exact(&mut [0; 1]).await
        };
        let outcome = tokio::select! { outcome = read => outcome, () = said_more => unreachable!() };
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 70);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_what_is_written_is_cut() {
        let (client, mut served) = accepted(LIMITS).await;
        let fill = async {
            loop {
                if let Err(error) = served.write_all(&[0; 1 << 16]).await {
                    return error;
                }
            }
        };
        // The peer is there, and never reads.
        let started = Instant::now();
        assert_eq!(fill.await.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 20);
        drop(client);
    }
}
