//! The reference of everything that goes over a WebSocket: tokio-tungstenite sends back what it gets, with the read buffer
//! that the edge has too, on one thread, in a process of its own.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{accept_async_with_config, tungstenite::protocol::WebSocketConfig};

use super::machine::Place;

/// First argument of this program that makes it the reference.
pub(crate) const ARGUMENT: &str = "serve-echo";

/// The edge's default. tungstenite's own clears 128 KiB before each read.
const READ_BUFFER: usize = 4 * 1024;

/// A running reference; ends when dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    process: Child,
    address: SocketAddr,
}

impl Echo {
    pub(crate) fn start() -> Result<Self> {
        let mut command = Place::UnderTest.command(std::env::current_exe()?);
        let mut process = command.arg(ARGUMENT).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("standard output is piped")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim().parse().context("the echo did not say where it listens")?;
        Ok(Self { process, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Already ended is what we want.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves until this process is killed.
pub(crate) fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // Results are of no interest, and those of ended ones are not kept.
            while connections.try_join_next().is_some() {}
            connections.spawn(echo(stream));
        }
    })
}

async fn echo(stream: TcpStream) {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}
