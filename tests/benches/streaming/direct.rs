//! The provider called directly, by a client as lean as the load generator: what the product adds is what is more than this.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use super::provider::DELTA_BYTES;

/// What stands before the time in a delta.
const BEFORE: &[u8] = br#""content":""#;

/// Connections to the provider, each with one answer at a time.
#[derive(Debug)]
pub(super) struct Direct {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// What has come and was not looked at: less than a delta.
    rest: Vec<u8>,
}

impl Direct {
    pub(super) fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let body =
            r#"{"model":"bench","messages":[{"role":"user","content":"Tell me what time it is."}],"stream":true}"#;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: provider\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for number in 0..count {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            connections.push(Connection { stream, rest: Vec::new() });
        }
        Ok(Self { poll, events: Events::with_capacity(1_024), connections, buffer: vec![0; 64 * 1024], request })
    }

    /// Asks the question.
    pub(super) fn ask(&mut self, number: usize) -> Result<()> {
        self.connections[number].rest.clear();
        let written = self.connections[number].stream.write(&self.request)?;
        ensure!(written == self.request.len(), "the provider took a part of a question");
        Ok(())
    }

    /// Hands the time in every delta that has come to `each`; waits at most so long for the first of them.
    pub(super) fn receive(&mut self, wait: Duration, mut each: impl FnMut(usize, Duration)) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let number = event.token().0;
            let connection = &mut self.connections[number];
            loop {
                match connection.stream.read(&mut self.buffer) {
                    Ok(0) => anyhow::bail!("the provider left"),
                    Ok(read) => connection.rest.extend_from_slice(&self.buffer[..read]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
            while let Some(at) = memchr::memmem::find(&connection.rest, BEFORE) {
                let (from, to) = (at + BEFORE.len(), at + BEFORE.len() + DELTA_BYTES);
                let Some(stamp) = connection.rest.get(from..to) else { break };
                let stamp = std::str::from_utf8(stamp)?.parse().context("a delta is a time")?;
                each(number, Duration::from_nanos(stamp));
                connection.rest.drain(..to);
            }
        }
        Ok(())
    }
}
