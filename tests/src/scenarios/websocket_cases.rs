//! The Autobahn cases against the edge's own handshake and socket. The suite needs an echo of any payload and sends neither
//! token nor subprotocol, while a connection takes frames of the contract from callers it knows: what is tested is all that
//! is below frames.

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::harness::programs::{CaseResult, autobahn};

/// All cases but those of compression, which is not offered.
const CASES: usize = 301;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_every_autobahn_case_is_passed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut server = JoinSet::new();
    server.spawn(chatbox_edge::echo::serve(listener, stop.clone()));
    let reports = tempfile::tempdir().unwrap();
    let results = autobahn(address, "/", &[], &reports.path().join("all")).await.unwrap();
    stop.cancel();
    server.join_next().await.unwrap().unwrap();
    let failed: Vec<_> = results.iter().filter(|(_, result)| !CaseResult::conforms(result)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(results.len(), CASES);
}
