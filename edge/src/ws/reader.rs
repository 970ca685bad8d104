//! From what the socket carries to frames: the right kind of payload, not too many, decodable.

use std::time::Duration;

use bytes::Bytes;
use chatbox_proto::{
    error_code::{ErrorCode, close},
    status::Failure,
    v1,
};
use tokio::time::Instant;

use super::{
    close::Ending,
    frame::{self, ClientFrame, Dialect},
};
use crate::{
    config::LimitsConfig,
    limits::{Bucket, Rate},
};

/// Frames over the limit that are answered, per minute, before the connection is closed.
const PATIENCE: u32 = 30;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Reader {
    dialect: Dialect,
    frames: Bucket,
    frame_rate: Rate,
    refused: Bucket,
    malformed: Bucket,
    malformed_rate: Rate,
}

/// What a payload is.
#[derive(Debug)]
pub(super) enum Received {
    Frame(ClientFrame),
    /// Not taken: the client gets this answer, the connection lives.
    Refused(Box<v1::Error>, &'static str),
    End(Box<Ending>),
}

impl Reader {
    pub(super) fn new(dialect: Dialect, limits: &LimitsConfig, now: Instant) -> Self {
        Self {
            dialect,
            frames: Bucket::new(now),
            frame_rate: Rate::new(limits.frames_per_second, Duration::from_secs(1)),
            refused: Bucket::new(now),
            malformed: Bucket::new(now),
            malformed_rate: Rate::until(limits.malformed_per_minute, MINUTE),
        }
    }

    pub(super) fn text(&mut self, payload: Bytes, now: Instant) -> Received {
        match self.dialect {
            Dialect::Json => self.read(payload, now),
            Dialect::Proto => wrong_kind("binary frames"),
        }
    }

    pub(super) fn binary(&mut self, payload: Bytes, now: Instant) -> Received {
        match self.dialect {
            Dialect::Json => wrong_kind("text frames"),
            Dialect::Proto => self.read(payload, now),
        }
    }

    fn read(&mut self, payload: Bytes, now: Instant) -> Received {
        let allowed = self.frames.take(self.frame_rate, now);
        match (frame::decode(self.dialect, payload), allowed) {
            (Ok(frame), Ok(())) => Received::Frame(frame),
            (Ok(frame), Err(wait)) => self.too_many(frame.request_id, wait, now),
            (Err(malformed), Err(wait)) => self.too_many(malformed.request_id, wait, now),
            (Err(malformed), Ok(())) => {
                if self.malformed.take(self.malformed_rate, now).is_err() {
                    return end(close::POLICY, malformed.failure, malformed.request_id);
                }
                refused(malformed.failure, malformed.request_id, "malformed")
            }
        }
    }

    fn too_many(&mut self, request_id: String, wait: Duration, now: Instant) -> Received {
        let failure = Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_FRAMES", "too many frames per second");
        let failure = failure.retry_after(wait);
        if self.refused.take(Rate::new(PATIENCE, MINUTE), now).is_err() {
            return end(close::RATE_LIMITED, failure, request_id);
        }
        refused(failure, request_id, "rate")
    }
}

fn wrong_kind(wanted: &str) -> Received {
    let failure = Failure::invalid("frame", format!("this subprotocol takes {wanted} only"));
    end(close::UNSUPPORTED, failure, String::new())
}

fn refused(failure: Failure, request_id: String, why: &'static str) -> Received {
    Received::Refused(Box::new(failure.into_event(request_id)), why)
}

fn end(code: u16, failure: Failure, request_id: String) -> Received {
    Received::End(Box::new(Ending::failed(code, failure, request_id)))
}
