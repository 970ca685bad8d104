//! gRPC at core.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use chatbox_proto::v1::{
    ChatRequest, ChatResponse, admin::chat_admin_client::ChatAdminClient, core::chat_core_client::ChatCoreClient,
};
use futures_util::future::BoxFuture;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::client::{Closed, Received};

/// Frames that may be on their way to a server that does not read.
const FRAMES: usize = 64;

/// Adds the token to every call.
#[derive(Debug, Clone)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Client of `ChatCore` as one caller.
pub type Core = ChatCoreClient<InterceptedService<Channel, Bearer>>;

/// A channel to a plain-text listener; it connects with the first call.
///
/// # Errors
/// When the address is not one.
pub fn channel(address: SocketAddr) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(5)).connect_lazy())
}

/// A client that calls with this token, or without one.
///
/// # Errors
/// When the token cannot be metadata.
pub fn core(channel: Channel, token: Option<&str>) -> Result<Core> {
    let value = token.map(|token| format!("Bearer {token}").parse()).transpose().context("a token is ASCII")?;
    Ok(ChatCoreClient::with_interceptor(channel, Bearer(value)))
}

/// Client of `ChatAdmin` as one caller.
pub type Team = ChatAdminClient<InterceptedService<Channel, Bearer>>;

/// A client of the team's calls that calls with this token.
///
/// # Errors
/// When the token cannot be metadata.
pub fn team(channel: Channel, token: &str) -> Result<Team> {
    let value = format!("Bearer {token}").parse().context("a token is ASCII")?;
    Ok(ChatAdminClient::with_interceptor(channel, Bearer(Some(value))))
}

/// Before the server's first answer the call itself is still pending.
enum Events {
    Pending(BoxFuture<'static, Result<Response<Streaming<Bytes>>, Status>>),
    Live(Box<Streaming<Bytes>>),
    Ended,
}

/// A `Chat` stream. What is sent leaves with the next [`GrpcChat::receive`] at the latest.
pub struct GrpcChat {
    frames: Option<mpsc::Sender<Bytes>>,
    events: Events,
}

impl fmt::Debug for GrpcChat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcChat").finish_non_exhaustive()
    }
}

impl GrpcChat {
    /// Begins the call.
    #[must_use]
    pub fn start(mut core: Core) -> Self {
        let (frames, queue) = mpsc::channel(FRAMES);
        let call = async move { core.chat(ReceiverStream::new(queue)).await };
        Self { frames: Some(frames), events: Events::Pending(Box::pin(call)) }
    }

    /// Sends a frame of the contract.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&mut self, request: &ChatRequest) -> Result<()> {
        self.send_bytes(request.encode_to_vec().into()).await
    }

    /// Sends any bytes as a message.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send_bytes(&mut self, bytes: Bytes) -> Result<()> {
        self.frames.as_ref().context("already half-closed")?.send(bytes).await.context("the stream has ended")
    }

    /// Says that no more frames come.
    pub fn half_close(&mut self) {
        self.frames = None;
    }

    /// The next event or the end. Cancel-safe.
    ///
    /// # Errors
    /// When a message is not of the contract.
    pub async fn receive(&mut self) -> Result<Received> {
        if let Events::Pending(call) = &mut self.events {
            match call.await {
                Ok(response) => self.events = Events::Live(Box::new(response.into_inner())),
                Err(status) => return Ok(self.ended(&status)),
            }
        }
        let Events::Live(stream) = &mut self.events else {
            return Ok(self.ended(&Status::cancelled("the stream had ended before")));
        };
        match stream.message().await {
            Ok(Some(bytes)) => {
                let event = ChatResponse::decode(bytes)?.event.context("an event without content")?;
                Ok(Received::Event(Box::new(event)))
            }
            Ok(None) => Ok(self.ended(&Status::ok(""))),
            Err(status) => Ok(self.ended(&status)),
        }
    }

    fn ended(&mut self, status: &Status) -> Received {
        self.events = Events::Ended;
        Received::Closed(Closed { code: Some(status.code() as u16), reason: status.message().to_owned() })
    }
}
