//! Bringing a connection up: the token of the first frame, the user's seat, the stream to core. And the token that takes the
//! place of the first one.

use std::sync::Arc;

use bytes::Bytes;
use chatbox_proto::{error_code::close, status::Failure, token::Identity};
use futures_channel::mpsc;

use super::close::too_many_connections;
use crate::{
    auth,
    core_api::{Caller, Events, core_unavailable, is_core_unavailable},
    limits::Seat,
    state::Edge,
};

/// A connection that core has the stream of.
pub(super) struct Attached {
    pub(super) identity: Identity,
    pub(super) frames: mpsc::Sender<Bytes>,
    pub(super) events: Events,
    pub(super) seat: Seat,
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
        let (mut frames, queue) = mpsc::channel(edge.config.socket.frame_queue);
        // A new queue has room.
        let _ = frames.try_send(first);
        let events = edge.core.chat(&caller, queue).await.map_err(|failure| NotAttached {
            code: is_core_unavailable(&failure).then_some(close::CORE_UNAVAILABLE),
            failure,
        })?;
        Ok(Attached { identity, frames, events, seat })
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
