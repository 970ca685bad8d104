//! Bringing a connection up: the token of the first frame, the user's seat, the stream to core. And the token that takes the
//! place of the first one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatbox_proto::{error_code::close, status::Failure, token::Identity};
use futures_channel::mpsc;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::close::too_many_connections;
use crate::{
    auth,
    core_api::{Caller, Events, core_unavailable, is_core_unavailable},
    limits::Seat,
    state::Edge,
};

/// When a client closes right after a frame, core is given this long to read it before the stream is cut.
const LAST_FRAME_GRACE: Duration = Duration::from_secs(1);

/// A connection that core has the stream of, and the user's seat that it takes for as long as it lives.
pub(super) struct Attached {
    pub(super) identity: Identity,
    pub(super) stream: Stream,
    pub(super) seat: Seat,
}

/// The stream to core.
pub(super) struct Stream {
    pub(super) frames: mpsc::Sender<Bytes>,
    pub(super) events: Events,
    pub(super) last_frame: Instant,
}

impl Stream {
    /// Opens a stream with its first frame.
    ///
    /// # Errors
    /// When no core takes it.
    pub(super) async fn open(edge: &Edge, caller: &Caller, first: Bytes) -> Result<Self, Failure> {
        let (mut frames, queue) = mpsc::channel(edge.config.socket.frame_queue);
        // A new queue has room.
        let _ = frames.try_send(first);
        let events = edge.core.chat(caller, queue).await?;
        Ok(Self { frames, events, last_frame: Instant::now() })
    }

    /// Ends the stream. A frame that was handed over a moment ago may still be on its way: cutting the stream now could
    /// overtake it.
    pub(super) async fn let_go(self) {
        let Self { frames, mut events, last_frame } = self;
        drop(frames);
        if last_frame.elapsed() < LAST_FRAME_GRACE {
            let rest = async { while let Some(Ok(_)) = events.next().await {} };
            let _ = tokio::time::timeout(LAST_FRAME_GRACE, rest).await;
        }
    }
}

/// Why a connection could not be brought up, with the code to close with when it is not the failure's own.
#[derive(Debug)]
pub(super) struct NotAttached {
    pub(super) failure: Failure,
    pub(super) code: Option<u16>,
}

impl From<Failure> for NotAttached {
    fn from(failure: Failure) -> Self {
        Self { failure, code: None }
    }
}

/// Verifies the token (unless `known` came with the handshake), takes a seat and opens the stream with its first frame.
/// Bounded by the time a stream may take to come up.
pub(super) async fn attach(
    edge: Arc<Edge>,
    caller: Caller,
    known: Option<Identity>,
    first: Bytes,
) -> Result<Attached, NotAttached> {
    let limit = edge.config.core.attach_timeout;
    let attaching = async {
        let identity = match known {
            Some(identity) => identity,
            None => auth::verify(&edge.verifier, &caller.token, caller.client_ip).await?,
        };
        let seat = edge
            .seats
            .take(&identity.user_id)
            .ok_or_else(|| NotAttached { failure: too_many_connections(), code: Some(close::TOO_MANY_CONNECTIONS) })?;
        let stream = Stream::open(&edge, &caller, first).await.map_err(|failure| NotAttached {
            code: is_core_unavailable(&failure).then_some(close::CORE_UNAVAILABLE),
            failure,
        })?;
        Ok(Attached { identity, stream, seat })
    };
    tokio::time::timeout(limit, attaching)
        .await
        .unwrap_or_else(|_| Err(NotAttached { failure: core_unavailable(), code: Some(close::CORE_UNAVAILABLE) }))
}

/// Verifies a new token.
pub(super) async fn verify(edge: Arc<Edge>, caller: Caller) -> Result<Identity, Failure> {
    let limit = edge.config.core.attach_timeout;
    let verifying = auth::verify(&edge.verifier, &caller.token, caller.client_ip);
    tokio::time::timeout(limit, verifying).await.unwrap_or_else(|_| Err(core_unavailable()))
}
