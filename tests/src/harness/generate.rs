//! `Generate` at core, as a service uses it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use chatbox_proto::v1::{
    GenerateRequest, GenerateResponse,
    generate_request::{Cancel, Frame, Parameters, PromptMessage, PromptRole, Start},
    generate_response::{Event, Finished},
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, metadata::MetadataMap};

use super::{
    grpc::Core,
    wait::{LIMIT, within},
};

/// Frames that may be on their way to a server that does not read.
const FRAMES: usize = 64;

/// One stream.
#[derive(Debug)]
pub struct Generation {
    frames: Option<mpsc::Sender<Bytes>>,
    events: Streaming<Bytes>,
}

/// What a turn said, and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenTurn {
    /// Ids of the models that answered, in order.
    pub models: Vec<String>,
    /// Everything it said.
    pub text: String,
    /// Its end.
    pub end: Finished,
}

impl Generation {
    /// Opens a stream.
    ///
    /// # Errors
    /// The status, when it is refused.
    pub async fn open(core: Core) -> Result<Self, Status> {
        Self::open_with(core, MetadataMap::new(), None).await
    }

    /// Opens a stream with metadata, and a deadline that the server is told.
    ///
    /// # Errors
    /// The status, when it is refused.
    pub async fn open_with(mut core: Core, metadata: MetadataMap, deadline: Option<Duration>) -> Result<Self, Status> {
        let (frames, queue) = mpsc::channel(FRAMES);
        let mut request = Request::new(ReceiverStream::new(queue));
        *request.metadata_mut() = metadata;
        if let Some(deadline) = deadline {
            // Not by `Request::set_timeout`: then the client keeps it itself and does not wait for the server's word.
            let text = format!("{}m", deadline.as_millis());
            let value = text.parse().map_err(|_| Status::internal("not a deadline"))?;
            request.metadata_mut().insert("grpc-timeout", value);
        }
        let events = core.generate(request).await?.into_inner();
        Ok(Self { frames: Some(frames), events })
    }

    /// Sends any bytes as a frame.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send_bytes(&self, bytes: Bytes) -> Result<()> {
        self.frames.as_ref().context("half-closed")?.send(bytes).await.context("the stream has ended")
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&self, request_id: &str, frame: Frame) -> Result<()> {
        let request = GenerateRequest { request_id: request_id.to_owned(), frame: Some(frame) };
        self.send_bytes(request.encode_to_vec().into()).await
    }

    /// Starts a turn with one message of a user.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn ask(&self, request_id: &str, model: &str, text: &str) -> Result<()> {
        self.send(request_id, Frame::Start(start(model, &[(PromptRole::User, text)], None))).await
    }

    /// Cancels the turn that runs.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn cancel(&self) -> Result<()> {
        self.send("", Frame::Cancel(Cancel {})).await
    }

    /// Says that no more frames come.
    pub fn half_close(&mut self) {
        self.frames = None;
    }

    /// The next event; `None` at an end in order.
    ///
    /// # Errors
    /// The status of another end.
    pub async fn event(&mut self) -> Result<Option<(String, Event)>, Status> {
        let message = within("an event of the stream", LIMIT, self.events.message()).await;
        let Some(bytes) = message.map_err(|error| Status::deadline_exceeded(error.to_string()))?? else {
            return Ok(None);
        };
        let response = GenerateResponse::decode(bytes).map_err(|_| Status::internal("not a response"))?;
        let event = response.event.ok_or_else(|| Status::internal("an event without content"))?;
        Ok(Some((response.request_id, event)))
    }

    /// The next event, which is of this turn.
    ///
    /// # Errors
    /// When it is another one's, or the stream ends.
    pub async fn expect(&mut self, request_id: &str) -> Result<Event> {
        let (id, event) = self.event().await?.context("the stream ended")?;
        anyhow::ensure!(id == request_id, "{event:?} of {id:?} instead of {request_id:?}");
        Ok(event)
    }

    /// Reads a whole turn.
    ///
    /// # Errors
    /// When something else comes.
    pub async fn turn(&mut self, request_id: &str) -> Result<SeenTurn> {
        let (mut models, mut text) = (Vec::new(), String::new());
        loop {
            match self.expect(request_id).await? {
                Event::Started(started) => models.push(started.model),
                Event::Delta(delta) if !models.is_empty() => text.push_str(&delta.text),
                Event::Finished(end) => return Ok(SeenTurn { models, text, end }),
                other => bail!("{other:?} in a turn"),
            }
        }
    }

    /// Reads until the stream ends, and says how.
    pub async fn ended(&mut self) -> Result<(), Status> {
        while self.event().await?.is_some() {}
        Ok(())
    }
}

/// A start frame.
#[must_use]
pub fn start(model: &str, messages: &[(PromptRole, &str)], parameters: Option<Parameters>) -> Start {
    let message = |(role, text): &(PromptRole, &str)| PromptMessage {
        role: (*role).into(),
        text: (*text).to_owned(),
        file_ids: Vec::new(),
    };
    Start { model: model.to_owned(), messages: messages.iter().map(message).collect(), parameters }
}
