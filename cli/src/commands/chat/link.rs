//! One `Chat` stream.

use std::{fmt, time::Duration};

use bytes::Bytes;
use chatbox_proto::v1::{ChatRequest, ChatResponse};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::Core;

/// Frames that may be on their way. A person does not fill it; a server that takes none is as good as gone.
const FRAMES: usize = 64;
const ATTACH_WITHIN: Duration = Duration::from_secs(10);

/// A live stream. Dropping it leaves the session, which goes on.
pub(super) struct Link {
    frames: mpsc::Sender<Bytes>,
    events: Streaming<Bytes>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Begins a stream with these frames.
    ///
    /// # Errors
    /// What the server or the way to it said.
    pub(super) async fn open(mut core: Core, first: Vec<ChatRequest>) -> Result<Self, Status> {
        let (frames, queue) = mpsc::channel(FRAMES);
        for frame in first {
            push(&frames, &frame)?;
        }
        let call = tokio::time::timeout(ATTACH_WITHIN, core.chat(ReceiverStream::new(queue)));
        let events = call.await.map_err(|_| Status::unavailable("no answer in time"))??.into_inner();
        Ok(Self { frames, events })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the stream has ended, or does not move.
    pub(super) fn send(&self, frame: &ChatRequest) -> Result<(), Status> {
        push(&self.frames, frame)
    }

    /// The next event; `None` at the end of the stream. Cancel-safe: what was received stays in the stream's buffer.
    ///
    /// # Errors
    /// How the stream ended, if not in order.
    pub(super) async fn next(&mut self) -> Result<Option<ChatResponse>, Status> {
        let Some(bytes) = self.events.message().await? else { return Ok(None) };
        // A newer server may send what we do not know; the fields we know are read, and the others skipped.
        ChatResponse::decode(bytes).map(Some).map_err(|_| Status::data_loss("an event could not be read"))
    }
}

fn push(frames: &mpsc::Sender<Bytes>, frame: &ChatRequest) -> Result<(), Status> {
    frames.try_send(frame.encode_to_vec().into()).map_err(|_| Status::unavailable("the stream takes no more frames"))
}
