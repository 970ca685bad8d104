//! One connection over an in-memory stream, with a core that the test plays and a clock that it moves.

use std::sync::atomic::Ordering;

use chatbox_proto::{
    error_code::{self, ErrorCode},
    json,
    token::Role,
    v1::{self, ChatRequest, ChatResponse, chat_request},
};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::{io::DuplexStream, sync::oneshot};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role as WsRole},
};

use super::*;
use crate::{
    config::Config,
    testing::{Chat, FakeCore, config, edge_with, token, token_for},
};

mod ending;
mod flow;
mod lifetime;
mod reopen;

/// A browser.
struct Client {
    ws: WebSocketStream<DuplexStream>,
    dialect: Dialect,
    ended: oneshot::Receiver<(u16, By)>,
    core: Arc<FakeCore>,
    edge: Arc<Edge>,
}

impl Client {
    async fn connect(dialect: Dialect) -> Self {
        Self::connect_with(dialect, config(), &FakeCore::new()).await
    }

    async fn connect_with(dialect: Dialect, config: Config, core: &Arc<FakeCore>) -> Self {
        Self::connect_to(dialect, &edge_with(config, core), core).await
    }

    async fn connect_to(dialect: Dialect, edge: &Arc<Edge>, core: &Arc<FakeCore>) -> Self {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let caller = Caller { token: String::new(), client_ip: [192, 0, 2, 1].into(), traceparent: String::new() };
        let handshake = Handshake { dialect, caller, identity: None };
        let connection = Box::new(Connection::new(Arc::clone(edge), far, Bytes::new(), handshake));
        let (tx, ended) = oneshot::channel();
        edge.tasks.spawn("connection", async move {
            let _ = tx.send(connection.run().await);
        });
        let ws = WebSocketStream::from_raw_socket(near, WsRole::Client, None).await;
        Self { ws, dialect, ended, core: Arc::clone(core), edge: Arc::clone(edge) }
    }

    /// Opens with a token and returns core's end of the stream.
    async fn open(&mut self, token: &str) -> Chat {
        self.send(open(token)).await;
        let mut chat = self.core.chat().await;
        assert!(matches!(chat.frame().await, Some(chat_request::Frame::Open(_))));
        chat
    }

    /// Opens, and has `opened`.
    async fn attached(&mut self, token: &str) -> Chat {
        let mut chat = self.open(token).await;
        let opened = chat_response::Event::Opened(Default::default());
        chat.send(opened.clone()).await;
        assert_eq!(self.event().await, opened);
        chat
    }

    async fn send(&mut self, frame: chat_request::Frame) {
        self.send_as("r", frame).await;
    }

    async fn send_as(&mut self, request_id: &str, frame: chat_request::Frame) {
        let request = ChatRequest { request_id: request_id.into(), frame: Some(frame) };
        let message = match self.dialect {
            Dialect::Json => Message::text(json::to_string(&request)),
            Dialect::Proto => Message::binary(request.encode_to_vec()),
        };
        self.send_raw(message).await;
    }

    async fn send_raw(&mut self, message: Message) {
        let _ = self.ws.send(message).await;
    }

    async fn next(&mut self) -> Option<Message> {
        loop {
            match self.ws.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    async fn event(&mut self) -> chat_response::Event {
        let message = self.next().await.expect("an event");
        assert!(!message.is_close(), "not an event: {message:?}");
        let event = match self.dialect {
            Dialect::Json => json::from_slice::<ChatResponse>(&message.into_data()).unwrap(),
            Dialect::Proto => ChatResponse::decode(message.into_data()).unwrap(),
        };
        event.event.unwrap()
    }

    async fn error(&mut self) -> v1::Error {
        let event = self.event().await;
        let chat_response::Event::Error(error) = event else { panic!("not an error: {event:?}") };
        error
    }

    /// The close frame, and that the close handshake ends cleanly.
    async fn closed(mut self) -> u16 {
        let Some(Message::Close(Some(frame))) = self.next().await else { panic!("no close frame") };
        assert!(self.next().await.is_none());
        u16::from(frame.code)
    }

    /// An error event that announces a close code, and the close with it.
    async fn closed_after_error(mut self) -> v1::Error {
        let error = self.error().await;
        assert_eq!(u32::from(self.closed().await), error.close_code);
        error
    }
}

fn open(token: &str) -> chat_request::Frame {
    chat_request::Frame::Open(chat_request::Open { token: token.into(), ..Default::default() })
}

fn send(text: &str) -> chat_request::Frame {
    let (client_message_id, text) = ("c".into(), text.into());
    chat_request::Frame::Send(chat_request::Send { client_message_id, text, file_ids: Vec::new() })
}

fn heartbeat(head: u64) -> chat_response::Event {
    chat_response::Event::Heartbeat(chat_response::Heartbeat { head, server_time: None })
}

fn code(error: &v1::Error) -> ErrorCode {
    ErrorCode::from_wire(error.code())
}

fn after(seconds: u64) -> std::time::Duration {
    Duration::from_secs(seconds)
}
