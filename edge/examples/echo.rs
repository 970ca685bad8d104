//! Echoes over the edge's own socket handling, for conformance suites:
//! `cargo run --workspace --example echo -- 127.0.0.1:9001`.

use std::net::SocketAddr;

use clap::Parser;
use tokio_util::sync::CancellationToken;

/// An echo for conformance suites.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    address: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    let Args { address } = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        chatbox_edge::echo::serve(tokio::net::TcpListener::bind(address).await?, CancellationToken::new()).await;
        Ok(())
    })
}
