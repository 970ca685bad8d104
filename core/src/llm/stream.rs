//! One streamed response being read: bytes to events, events to chunks. A dialect says what an event means.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::Response;
use tokio::time::Instant;

use super::http::{Access, transport_error};
use super::sse::{SseDecoder, SseEvent};
use super::{Chunk, ChunkStream, ProviderError};

/// After the last event, the end of the body is awaited this long, so that the connection can serve the next request.
const CLOSE_WAIT: Duration = Duration::from_millis(50);

const MAX_ID_BYTES: usize = 200;

/// Whether more of the stream is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Yes.
    More,
    /// No: the last chunk is out.
    Done,
}

/// Turns the events of one stream into chunks. Dropped before [`Progress::Done`] when nobody wants the rest.
pub trait Decoder: Send + 'static {
    /// Reads one event.
    ///
    /// # Errors
    /// What the event says, or that it is not what the format says. Nothing is read after it.
    fn event(&mut self, event: &SseEvent, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError>;

    /// The body is over, or the wait for the rest of a complete text.
    ///
    /// # Errors
    /// [`ProviderError::Truncated`] if the text is not complete.
    fn end(&mut self, out: &mut VecDeque<Chunk>) -> Result<Progress, ProviderError>;

    /// No more text comes: whatever goes wrong from here on, the answer is there.
    fn text_is_complete(&self) -> bool;
}

/// Ids of other people's are kept when they are printable, not blank and at most 200 bytes.
#[must_use]
pub fn usable_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic())
}

/// The chunks of a response; `ready` goes first.
#[must_use]
pub fn chunks<D: Decoder>(
    response: Response,
    access: &StreamLimits,
    decoder: D,
    ready: VecDeque<Chunk>,
) -> ChunkStream {
    let reply = Reply {
        response: Some(response),
        sse: SseDecoder::new(access.max_event_bytes),
        input: Bytes::new(),
        decoder,
        ready,
        tail_wait: access.tail_wait,
        tail_ends: None,
    };
    stream::unfold(reply, |mut reply| async move { Some((reply.next().await?, reply)) }).boxed()
}

/// The part of [`Access`] that is needed while reading.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    max_event_bytes: usize,
    tail_wait: Duration,
}

impl From<&Access> for StreamLimits {
    fn from(access: &Access) -> Self {
        Self { max_event_bytes: access.max_event_bytes, tail_wait: access.tail_wait }
    }
}

struct Reply<D> {
    /// `None` once the stream is over; dropping it closes the request.
    response: Option<Response>,
    sse: SseDecoder,
    input: Bytes,
    decoder: D,
    ready: VecDeque<Chunk>,
    tail_wait: Duration,
    /// Set when the text is complete.
    tail_ends: Option<Instant>,
}

impl<D: Decoder> Reply<D> {
    async fn next(&mut self) -> Option<Result<Chunk, ProviderError>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(Ok(chunk));
            }
            match self.advance().await? {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => self.close().await,
                Err(error) => {
                    self.response = None;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Reads one event, or more input. `None`: the stream is over.
    async fn advance(&mut self) -> Option<Result<Progress, ProviderError>> {
        let response = self.response.as_mut()?;
        match self.sse.decode(&mut self.input) {
            Err(_) => return Some(Err(ProviderError::Malformed("event too large"))),
            Ok(Some(event)) => return Some(self.decoder.event(&event, &mut self.ready)),
            Ok(None) => {}
        }
        let read = if self.decoder.text_is_complete() {
            let ends = *self.tail_ends.get_or_insert_with(|| Instant::now() + self.tail_wait);
            tokio::time::timeout_at(ends, response.chunk()).await.ok().and_then(Result::ok).flatten()
        } else {
            match response.chunk().await {
                Ok(read) => read,
                Err(error) => return Some(Err(transport_error(&error))),
            }
        };
        Some(match read {
            Some(bytes) => {
                self.input = bytes;
                Ok(Progress::More)
            }
            None => self.decoder.end(&mut self.ready),
        })
    }

    async fn close(&mut self) {
        if let Some(mut response) = self.response.take() {
            let _ = tokio::time::timeout(CLOSE_WAIT, response.chunk()).await;
        }
    }
}
