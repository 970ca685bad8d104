//! The load generator: one thread, all connections on one poll, frames made beforehand.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream as Blocking,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use super::{
    frame::{self, Received},
    peer::{Kind, Peer},
};

/// Connections that are brought up at the same time.
const BATCH: usize = 64;
/// Nothing a peer does may take longer.
const PATIENCE: Duration = Duration::from_secs(30);
const READ_BUFFER: usize = 64 * 1024;

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// A frame that has not come whole.
    partial: Vec<u8>,
}

/// Open connections to one peer.
#[derive(Debug)]
pub(crate) struct Load {
    peer: Peer,
    sockets: Sockets,
}

/// The connections without what is said on them.
#[derive(Debug)]
struct Sockets {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

/// What a run of a load generator saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Answers within the time.
    pub(crate) answers: usize,
    pub(crate) elapsed: Duration,
    /// Microseconds from when a frame was to be sent to its answer.
    pub(crate) latencies: Vec<f64>,
    /// Microseconds that frames were sent late, by this side's own fault.
    pub(crate) lateness: Vec<f64>,
}

/// How an open loop waits for the time of the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Looking at the clock: exact, and the core is never idle.
    Spin,
    /// To the next millisecond, with all that is due by then.
    Millisecond,
}

impl Load {
    /// Opens so many connections.
    pub(crate) fn connect(peer: Peer, count: usize) -> Result<Self> {
        let sockets = Sockets {
            poll: Poll::new()?,
            events: Events::with_capacity(1_024),
            connections: Vec::with_capacity(count),
            buffer: vec![0; READ_BUFFER],
        };
        let mut load = Self { peer, sockets };
        load.add(count)?;
        Ok(load)
    }

    /// Opens so many more.
    pub(crate) fn add(&mut self, count: usize) -> Result<()> {
        let to = self.len() + count;
        while self.len() < to {
            let from = self.len();
            for (stream, partial) in open_batch(&self.peer, from..to.min(from + BATCH))? {
                self.sockets.add(stream, partial)?;
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.sockets.connections.len()
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends a frame. The peer takes what it is sent, or the run is worth nothing.
    pub(crate) fn send(&mut self, connection: usize, frame: &[u8]) -> Result<()> {
        let written =
            self.sockets.connections[connection].stream.write(frame).context("the peer does not take frames")?;
        ensure!(written == frame.len(), "the peer took a part of a frame");
        Ok(())
    }

    /// Hands every message that has come to `each`; waits at most so long for the first of them. Pings are answered.
    pub(crate) fn receive(&mut self, wait: Duration, each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        self.sockets.receive(wait, each)
    }

    /// One frame in flight on every connection, for so long.
    pub(crate) fn closed_loop(&mut self, frame: &[u8], time: Duration) -> Result<Seen> {
        let mut seen = Seen::default();
        let start = Instant::now();
        let mut sent = vec![start; self.len()];
        for (connection, sent) in sent.iter_mut().enumerate() {
            *sent = Instant::now();
            self.send(connection, frame)?;
        }
        let mut in_flight = self.len();
        let mut answered = Vec::with_capacity(self.len());
        while in_flight > 0 {
            self.receive_answers(PATIENCE, &mut answered)?;
            ensure!(!answered.is_empty() || start.elapsed() < time + PATIENCE, "an answer is missing");
            let now = Instant::now();
            let running = now.duration_since(start) < time;
            for connection in answered.drain(..) {
                if running {
                    seen.answers += 1;
                    seen.latencies.push(micros(now.duration_since(sent[connection])));
                    sent[connection] = Instant::now();
                    self.send(connection, frame)?;
                } else {
                    in_flight -= 1;
                }
            }
            if running {
                seen.elapsed = now.duration_since(start);
            }
        }
        Ok(seen)
    }

    /// So many frames a second over all connections in turn, whether answers come or not. Latency counts from when a frame
    /// was to be sent.
    pub(crate) fn open_loop(&mut self, frame: &[u8], rate: u32, time: Duration, wait: Wait) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut in_flight: Vec<VecDeque<Instant>> = vec![VecDeque::new(); self.len()];
        let mut answered = Vec::with_capacity(self.len());
        let total = (f64::from(rate) * time.as_secs_f64()) as u32;
        let start = Instant::now();
        let due = |number: u32| start + Duration::from_secs(1) * number / rate;
        let mut sent = 0;
        while sent < total || in_flight.iter().any(|frames| !frames.is_empty()) {
            while sent < total && due(sent) <= Instant::now() {
                let connection = sent as usize % self.len();
                seen.lateness.push(micros(due(sent).elapsed()));
                in_flight[connection].push_back(due(sent));
                self.send(connection, frame)?;
                sent += 1;
            }
            let pause = match wait {
                Wait::Spin => Duration::ZERO,
                Wait::Millisecond => Duration::from_millis(1),
            };
            self.receive_answers(pause, &mut answered)?;
            let now = Instant::now();
            ensure!(now < due(total) + PATIENCE, "an answer is missing");
            for connection in answered.drain(..) {
                let due = in_flight[connection].pop_front().context("an answer to nothing")?;
                seen.latencies.push(micros(now.duration_since(due)));
            }
        }
        seen.answers = total as usize;
        seen.elapsed = start.elapsed();
        Ok(seen)
    }

    /// Reads and throws away for so long, as an idle client does.
    pub(crate) fn idle(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let mut answered = Vec::new();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.receive_answers(left, &mut answered)?;
            answered.clear();
        }
        Ok(())
    }

    fn receive_answers(&mut self, wait: Duration, answered: &mut Vec<usize>) -> Result<()> {
        self.sockets.receive(wait, |connection, message| {
            match self.peer.kind(message) {
                Kind::Answer => answered.push(connection),
                Kind::Failed => bail!("the product refused a frame: {}", String::from_utf8_lossy(message)),
                Kind::Ready | Kind::Other => {}
            }
            Ok(())
        })
    }
}

impl Sockets {
    fn add(&mut self, stream: Blocking, partial: Vec<u8>) -> Result<()> {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(self.connections.len()), Interest::READABLE)?;
        self.connections.push(Connection { stream, partial });
        Ok(())
    }

    fn receive(&mut self, wait: Duration, mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let number = event.token().0;
            let connection = &mut self.connections[number];
            loop {
                let read = match connection.stream.read(&mut self.buffer) {
                    Ok(0) => bail!("the peer closed connection {number}"),
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error.into()),
                };
                connection.take(read, &self.buffer, |message| each(number, message))?;
                // epoll(7): a stream that gives less than was asked for has no more.
                if read < self.buffer.len() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Connection {
    /// Takes the frames out of what was read.
    fn take(&mut self, read: usize, buffer: &[u8], mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let whole;
        let mut input = &buffer[..read];
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(input);
            whole = std::mem::take(&mut self.partial);
            input = &whole;
        }
        while let Some((received, length)) = frame::parse(input)? {
            match received {
                Received::Message(message) => each(message)?,
                Received::Ping(payload) => _ = self.stream.write(&frame::pong(payload))?,
                Received::Pong => {}
            }
            input = &input[length..];
        }
        self.partial.extend_from_slice(input);
        Ok(())
    }
}

/// Brings connections up together: each step of all before the next step of any, so that a store may group their writes.
fn open_batch(peer: &Peer, numbers: std::ops::Range<usize>) -> Result<Vec<(Blocking, Vec<u8>)>> {
    let mut batch = Vec::with_capacity(numbers.len());
    for number in numbers {
        let mut stream = Blocking::connect(peer.address()).context("the peer does not listen")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(peer.upgrade(number)?.as_bytes())?;
        batch.push((stream, Vec::new()));
    }
    for (stream, input) in &mut batch {
        read_until(stream, input, |input| {
            let Some(end) = input.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
            ensure!(input.starts_with(b"HTTP/1.1 101 "), "no upgrade: {}", String::from_utf8_lossy(&input[..end]));
            Ok(Some(end + 4))
        })?;
    }
    let Some(open) = peer.open() else { return Ok(batch) };
    for (stream, _) in &mut batch {
        stream.write_all(&open)?;
    }
    for (stream, input) in &mut batch {
        let mut ready = false;
        while !ready {
            read_until(stream, input, |input| {
                let Some((received, length)) = frame::parse(input)? else { return Ok(None) };
                if let Received::Message(message) = received {
                    ready = peer.kind(message) == Kind::Ready;
                    ensure!(peer.kind(message) != Kind::Failed, "not opened: {}", String::from_utf8_lossy(message));
                }
                Ok(Some(length))
            })?;
        }
    }
    Ok(batch)
}

/// One connection whose stream is open, as a socket that blocks.
pub(crate) fn open_one(peer: &Peer, number: usize) -> Result<Blocking> {
    let mut batch = open_batch(peer, number..number + 1)?;
    Ok(batch.pop().context("there is one")?.0)
}

/// Reads until `take` finds what it looks for at the start of the input, and removes that.
fn read_until(
    stream: &mut Blocking,
    input: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]) -> Result<Option<usize>>,
) -> Result<()> {
    let mut buffer = [0; 4_096];
    loop {
        if let Some(length) = take(input)? {
            input.drain(..length);
            return Ok(());
        }
        let read = stream.read(&mut buffer).context("no answer")?;
        ensure!(read > 0, "the peer hung up");
        input.extend_from_slice(&buffer[..read]);
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
