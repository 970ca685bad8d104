//! A WebSocket to the edge in either encoding, authenticated in any of the three ways.

use std::{fmt, net::SocketAddr};

use anyhow::{Context as _, Result, anyhow, bail};
use chatbox_proto::{
    json,
    v1::{ChatRequest, ChatResponse},
};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest as _,
        http::{HeaderMap, HeaderName, HeaderValue, header},
    },
};

use super::client::{Closed, Received};

/// How frames are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `chatbox.v1.json`: text frames.
    Json,
    /// `chatbox.v1.proto`: binary frames.
    Proto,
}

impl Encoding {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Json, Self::Proto];

    /// Name of the subprotocol.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "chatbox.v1.json",
            Self::Proto => "chatbox.v1.proto",
        }
    }
}

/// Where the token goes.
#[derive(Debug, Clone)]
pub enum Auth {
    /// `Authorization: Bearer`, as native clients do.
    Header(String),
    /// The subprotocol `bearer.<token>`, as browsers do.
    Subprotocol(String),
    /// Nowhere yet: in `open.token`, or not at all.
    None,
}

/// What to connect to, and how.
#[derive(Debug, Clone)]
pub struct Connect {
    address: SocketAddr,
    path: String,
    subprotocols: Vec<String>,
    encoding: Encoding,
    headers: HeaderMap,
}

impl Connect {
    /// The socket of the edge at `address`, with JSON frames and without a token.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let encoding = Encoding::Json;
        let subprotocols = vec![encoding.subprotocol().to_owned()];
        Self { address, path: "/chatbox/ws".to_owned(), subprotocols, encoding, headers: HeaderMap::new() }
    }

    /// Another path or a query.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// The encoding of frames.
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        encoding.subprotocol().clone_into(&mut self.subprotocols[0]);
        self
    }

    /// Where the token goes.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        match auth {
            Auth::Header(token) => return self.header("authorization", &format!("Bearer {token}")),
            Auth::Subprotocol(token) => self.subprotocols.push(format!("bearer.{token}")),
            Auth::None => {}
        }
        self
    }

    /// The page that makes the request.
    #[must_use]
    pub fn origin(self, origin: &str) -> Self {
        self.header("origin", origin)
    }

    /// Any header. What cannot be one is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            self.headers.append(name, value);
        }
        self
    }

    /// Offers exactly these subprotocols.
    #[must_use]
    pub fn subprotocols(mut self, offered: &[&str]) -> Self {
        self.subprotocols = offered.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Refused`] when the edge answers without an upgrade.
    pub async fn connect(self) -> Result<Ws> {
        let mut request = format!("ws://{}{}", self.address, self.path).into_client_request()?;
        request.headers_mut().extend(self.headers);
        if !self.subprotocols.is_empty() {
            let offered = HeaderValue::try_from(self.subprotocols.join(", "))?;
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
        }
        let stream = TcpStream::connect(self.address).await.context("the edge does not listen")?;
        stream.set_nodelay(true)?;
        match client_async(request, stream).await {
            Ok((socket, response)) => {
                let chosen = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
                Ok(Ws { socket, encoding: self.encoding, chosen, upgrade: response.headers().clone() })
            }
            Err(tungstenite::Error::Http(response)) => {
                let (parts, body) = response.into_parts();
                Err(anyhow!(Refused {
                    status: parts.status.as_u16(),
                    headers: parts.headers,
                    body: body.unwrap_or_default()
                }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Connects where a refusal is expected.
    ///
    /// # Errors
    /// When the edge upgrades, or does not answer.
    pub async fn refused(self) -> Result<Refused> {
        match self.connect().await {
            Ok(_) => bail!("the edge upgraded"),
            Err(error) => error.downcast(),
        }
    }
}

/// The edge answered without an upgrade.
#[derive(Debug)]
pub struct Refused {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, as far as it came with the head.
    pub body: Vec<u8>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused with {}: {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

impl std::error::Error for Refused {}

/// An open WebSocket.
#[derive(Debug)]
pub struct Ws {
    socket: WebSocketStream<TcpStream>,
    encoding: Encoding,
    chosen: Option<HeaderValue>,
    upgrade: HeaderMap,
}

impl Ws {
    /// The subprotocol that the edge chose.
    #[must_use]
    pub fn chosen_subprotocol(&self) -> Option<&str> {
        self.chosen.as_ref().and_then(|chosen| chosen.to_str().ok())
    }

    /// Headers of the answer that upgraded.
    #[must_use]
    pub fn upgrade_headers(&self) -> &HeaderMap {
        &self.upgrade
    }

    /// Sends a frame of the contract.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send(&mut self, request: &ChatRequest) -> Result<()> {
        let message = match self.encoding {
            Encoding::Json => Message::text(json::to_string(request)),
            Encoding::Proto => Message::binary(request.encode_to_vec()),
        };
        self.send_message(message).await
    }

    /// Sends any WebSocket message.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send_message(&mut self, message: Message) -> Result<()> {
        Ok(self.socket.send(message).await?)
    }

    /// The next event or the end. Pings are answered on the way. Cancel-safe.
    ///
    /// # Errors
    /// When a frame is not of the contract or not of the chosen encoding.
    pub async fn receive(&mut self) -> Result<Received> {
        loop {
            let event = match (self.socket.next().await, self.encoding) {
                (Some(Ok(Message::Text(text))), Encoding::Json) => json::from_slice::<ChatResponse>(text.as_bytes())?,
                (Some(Ok(Message::Binary(bytes))), Encoding::Proto) => ChatResponse::decode(bytes)?,
                (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => continue,
                (Some(Ok(Message::Close(frame))), _) => {
                    let (code, reason) = frame
                        .map_or((None, String::new()), |frame| (Some(frame.code.into()), frame.reason.to_string()));
                    return Ok(Received::Closed(Closed { code, reason }));
                }
                (Some(Ok(other)), encoding) => bail!("not a frame of {}: {other:?}", encoding.subprotocol()),
                (Some(Err(error)), _) => return Ok(Received::Closed(Closed { code: None, reason: error.to_string() })),
                (None, _) => return Ok(Received::Closed(Closed { code: None, reason: "end of stream".to_owned() })),
            };
            return Ok(Received::Event(Box::new(event.event.context("an event without content")?)));
        }
    }

    /// The next WebSocket message as it came.
    ///
    /// # Errors
    /// When there is none any more.
    pub async fn receive_message(&mut self) -> Result<Message> {
        Ok(self.socket.next().await.context("the socket has ended")??)
    }

    /// Closes with 1000 and waits for the answer.
    ///
    /// # Errors
    /// When the socket breaks instead.
    pub async fn close(&mut self) -> Result<()> {
        self.socket.close(None).await?;
        while let Some(message) = self.socket.next().await {
            message?;
        }
        Ok(())
    }

    /// The TCP socket below, to read nothing from it or to break it.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.socket.get_ref()
    }
}
