//! A provider that writes deltas at their time: as lean as the load generator, and on the same thread, so that both read the
//! same clock. Each delta is the time at which it was to be sent.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

/// Bytes of a delta: a time in nanoseconds.
pub(crate) const DELTA_BYTES: usize = 20;

const LISTENER: Token = Token(usize::MAX);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n";
/// As long as those of the best known provider.
const DELTA: &str = r#"{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz0123","object":"chat.completion.chunk","created":1732280400,"model":"bench-2024-08-06","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":"00000000000000000000"},"logprobs":null,"finish_reason":null}]}"#;
const FINISH: &str =
    r#"{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz0123","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz0123","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// What has come of a request.
    input: Vec<u8>,
    /// A request has come and its stream has not ended.
    answering: bool,
}

/// The server.
#[derive(Debug)]
pub(crate) struct Provider {
    listener: TcpListener,
    poll: Poll,
    events: Events,
    connections: Vec<Option<Connection>>,
    buffer: Vec<u8>,
    start: Instant,
    delta: Vec<u8>,
    stamp: usize,
}

/// An event of the stream as a chunk of the body.
fn chunk(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

impl Provider {
    pub(crate) fn start() -> Result<Self> {
        let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let delta = chunk(DELTA);
        let zeros = [b'0'; DELTA_BYTES];
        let stamp = delta.windows(DELTA_BYTES).position(|bytes| bytes == zeros).context("no place for the time")?;
        Ok(Self {
            listener,
            poll,
            events: Events::with_capacity(1_024),
            connections: Vec::new(),
            buffer: vec![0; 64 * 1024],
            start: Instant::now(),
            delta,
            stamp,
        })
    }

    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Time on the clock of the deltas.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.duration_since(self.start)
    }

    /// The connections whose answer waits for its deltas.
    pub(crate) fn answering(&self) -> Vec<usize> {
        let answering = |(number, connection): (usize, &Option<Connection>)| {
            connection.as_ref().is_some_and(|connection| connection.answering).then_some(number)
        };
        self.connections.iter().enumerate().filter_map(answering).collect()
    }

    /// Takes connections and requests, and begins their answers.
    pub(crate) fn serve(&mut self, wait: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let tokens: Vec<Token> = self.events.iter().map(mio::event::Event::token).collect();
        for token in tokens {
            if token == LISTENER {
                self.accept()?;
            } else {
                self.read(token.0)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            self.poll.registry().register(&mut stream, Token(self.connections.len()), Interest::READABLE)?;
            self.connections.push(Some(Connection { stream, input: Vec::new(), answering: false }));
        }
    }

    fn read(&mut self, number: usize) -> Result<()> {
        let Some(connection) = self.connections.get_mut(number).and_then(Option::as_mut) else { return Ok(()) };
        loop {
            match connection.stream.read(&mut self.buffer) {
                // It was idle for too long, or core is leaving.
                Ok(0) => {
                    ensure!(!connection.answering, "core left an answer");
                    self.connections[number] = None;
                    return Ok(());
                }
                Ok(read) => connection.input.extend_from_slice(&self.buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(length) = request_length(&connection.input)? {
            connection.input.drain(..length);
            connection.answering = true;
            connection.send(HEAD)?;
        }
        Ok(())
    }

    /// Sends the delta that was due at `due`.
    pub(crate) fn delta(&mut self, number: usize, due: Instant) -> Result<()> {
        let stamp = format!("{:0DELTA_BYTES$}", self.elapsed(due).as_nanos());
        self.delta[self.stamp..self.stamp + DELTA_BYTES].copy_from_slice(stamp.as_bytes());
        self.connections[number].as_mut().context("core left an answer")?.send(&self.delta)
    }

    /// Ends an answer as a provider does that has said everything.
    pub(crate) fn finish(&mut self, number: usize) -> Result<()> {
        let connection = self.connections[number].as_mut().context("core left an answer")?;
        connection.answering = false;
        connection.send(&[chunk(FINISH), chunk(USAGE), chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat())
    }
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.stream.write(bytes).context("core does not take what the provider writes")?;
        ensure!(written == bytes.len(), "core took a part of what the provider writes");
        Ok(())
    }
}

/// Bytes of a request, when it has come whole.
fn request_length(input: &[u8]) -> Result<Option<usize>> {
    let Some(head) = input.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&input[..head])?.to_ascii_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:")).context("no length of a request")?;
    let whole = head + 4 + length.trim().parse::<usize>()?;
    Ok((input.len() >= whole).then_some(whole))
}
