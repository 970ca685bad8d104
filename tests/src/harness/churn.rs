//! Sockets that come and go: each opens a session, asks something now and then, stays for a while, and leaves in one of the ways
//! in which browsers do.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_proto::v1::{
    ChatRequest,
    chat_request::{Frame, Open, Read},
    chat_response::Event,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};

use super::{
    client::Received,
    token::{Minter, claims},
    wait::{LIMIT, within},
    ws::{Auth, Connect, Encoding, Ws},
};

/// See the module's text.
#[derive(Debug)]
pub struct Churn {
    /// The edge.
    pub address: SocketAddr,
    /// Signs tokens that it takes.
    pub minter: Minter,
    /// At a time.
    pub sockets: usize,
    /// Each stays for at most so long.
    pub lives: Duration,
}

impl Churn {
    /// Keeps that many sockets coming and going for so long; then the last of them leave. Says how many there were in all.
    ///
    /// # Errors
    /// When one is refused, or is not told what it has to be told.
    pub async fn run(&self, time: Duration) -> Result<usize> {
        let end = Instant::now() + time;
        let mut places = JoinSet::new();
        for number in 0..self.sockets {
            let user = format!("churn-{number}");
            let token = self.minter.mint(&claims(&user, "user"))?;
            let place = Place { address: self.address, token, lives: self.lives, number: number as u64 };
            places.spawn(place.occupied(end));
        }
        let mut all = 0;
        while let Some(sockets) = places.join_next().await {
            all += sockets.context("a place")??;
        }
        Ok(all)
    }
}

/// One socket after another.
struct Place {
    address: SocketAddr,
    token: String,
    lives: Duration,
    number: u64,
}

impl Place {
    async fn occupied(self, end: Instant) -> Result<usize> {
        let mut random = StdRng::seed_from_u64(self.number);
        let mut sockets = 0;
        // Not all at once in the beginning.
        let mut life = self.lives.mul_f64(random.random_range(0.0..1.0));
        let _ = tokio::time::timeout_at(end.min(Instant::now() + life), std::future::pending::<()>()).await;
        while Instant::now() < end {
            let connect = Connect::new(self.address).encoding(Encoding::Proto).auth(Auth::Header(self.token.clone()));
            let mut socket = within("the socket", LIMIT, connect.connect()).await??;
            life = self.lives.mul_f64(random.random_range(0.1..1.0));
            within("a place in the session", LIMIT, begin(&mut socket)).await??;
            // Listens for as long as it stays.
            let listens = async {
                while let Received::Event(_) = socket.receive().await? {}
                anyhow::Ok(())
            };
            let closed = tokio::time::timeout_at(end.min(Instant::now() + life), listens).await;
            ensure!(closed.is_err(), "socket {sockets} of user {} was closed: {closed:?}", self.number);
            match random.random_range(0..3) {
                0 => socket.tcp().set_zero_linger()?,
                1 => within("the end", LIMIT, socket.close()).await??,
                _ => {}
            }
            sockets += 1;
        }
        Ok(sockets)
    }
}

/// Opens the session, and asks for something when it is open.
async fn begin(socket: &mut Ws) -> Result<()> {
    let frame = |request_id: &str, frame| ChatRequest { request_id: request_id.to_owned(), frame: Some(frame) };
    socket.send(&frame("open", Frame::Open(Open::default()))).await?;
    expect(socket, |event| matches!(event, Event::CaughtUp(_))).await?;
    socket.send(&frame("read", Frame::Read(Read::default()))).await?;
    expect(socket, |event| matches!(event, Event::Ack(ack) if ack.request_id == "read")).await
}

async fn expect(socket: &mut Ws, wanted: impl Fn(&Event) -> bool) -> Result<()> {
    loop {
        let event = match socket.receive().await? {
            Received::Event(event) => *event,
            Received::Closed(closed) => bail!("closed: {closed:?}"),
        };
        if wanted(&event) {
            return Ok(());
        }
        if let Event::Error(error) = event {
            bail!("refused: {} {}", error.reason, error.message);
        }
    }
}
