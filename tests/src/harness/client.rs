//! One conversation, the same over every transport: a scenario written once runs on all three.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use chatbox_proto::v1::{
    ChatRequest, Entry, Error,
    chat_request::{self, Frame},
    chat_response::{Ack, Event, Opened},
    entry,
};

use super::{
    grpc::{self, GrpcChat},
    wait::{LIMIT, within},
    ws::{Auth, Connect, Encoding, Ws},
};

/// Events that are kept for a failure's report; a scenario that needs more looks at them as they come.
const KEPT: usize = 10_000;

/// Where a running product listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The edge.
    pub http: SocketAddr,
    /// Core.
    pub grpc: SocketAddr,
}

/// How a caller reaches the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket at the edge.
    Socket(Encoding),
    /// gRPC at core.
    Grpc,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Socket(Encoding::Json), Self::Socket(Encoding::Proto), Self::Grpc];
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// An event.
    Event(Box<Event>),
    /// The end; nothing follows.
    Closed(Closed),
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Close code of a WebSocket, None when it ended without one; number of the status of a gRPC stream.
    pub code: Option<u16>,
    /// What was said with it.
    pub reason: String,
}

/// An answer to one frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was carried out.
    Ack(Ack),
    /// It was not.
    Error(Error),
}

#[derive(Debug)]
enum Link {
    Socket(Box<Ws>),
    Grpc(GrpcChat),
}

/// A reply as a subscriber saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenReply {
    /// The pieces put together.
    pub streamed: String,
    /// The terminal entry.
    pub finished: entry::ReplyFinished,
}

/// A live stream of one caller.
#[derive(Debug)]
pub struct Client {
    link: Link,
    /// Everything that came so far, oldest first.
    pub seen: Vec<Event>,
    requests: u64,
}

impl Client {
    /// Connects with this token.
    ///
    /// # Errors
    /// When the edge refuses or does not listen. gRPC connects with the first frame.
    pub async fn connect(transport: Transport, addresses: Addresses, token: &str) -> Result<Self> {
        match transport {
            Transport::Socket(encoding) => {
                let connect = Connect::new(addresses.http).encoding(encoding).auth(Auth::Header(token.to_owned()));
                Ok(Self::over_socket(connect.connect().await?))
            }
            Transport::Grpc => Ok(Self::over_grpc(grpc::core(grpc::channel(addresses.grpc)?, Some(token))?)),
        }
    }

    /// Over a socket that is open already.
    #[must_use]
    pub fn over_socket(socket: Ws) -> Self {
        Self { link: Link::Socket(Box::new(socket)), seen: Vec::new(), requests: 0 }
    }

    /// Over a new `Chat` call.
    #[must_use]
    pub fn over_grpc(core: grpc::Core) -> Self {
        Self { link: Link::Grpc(GrpcChat::start(core)), seen: Vec::new(), requests: 0 }
    }

    /// The WebSocket below, for what only a WebSocket can do.
    ///
    /// # Errors
    /// On gRPC.
    pub fn socket(&mut self) -> Result<&mut Ws> {
        match &mut self.link {
            Link::Socket(socket) => Ok(socket),
            Link::Grpc(_) => bail!("not a socket"),
        }
    }

    /// The gRPC stream below, for what only gRPC can do.
    ///
    /// # Errors
    /// On a WebSocket.
    pub fn grpc(&mut self) -> Result<&mut GrpcChat> {
        match &mut self.link {
            Link::Grpc(stream) => Ok(stream),
            Link::Socket(_) => bail!("not a gRPC stream"),
        }
    }

    /// Sends a frame and returns its `request_id`.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn send(&mut self, frame: Frame) -> Result<String> {
        self.requests += 1;
        let request_id = format!("r{}", self.requests);
        let request = ChatRequest { request_id: request_id.clone(), frame: Some(frame) };
        match &mut self.link {
            Link::Socket(socket) => socket.send(&request).await?,
            Link::Grpc(stream) => stream.send(&request).await?,
        }
        Ok(request_id)
    }

    /// The next event or the end.
    ///
    /// # Errors
    /// When nothing comes within the limit.
    pub async fn receive(&mut self) -> Result<Received> {
        let next = async {
            match &mut self.link {
                Link::Socket(socket) => socket.receive().await,
                Link::Grpc(stream) => stream.receive().await,
            }
        };
        let received = within("the next event", LIMIT, next).await??;
        if let Received::Event(event) = &received {
            ensure!(self.seen.len() < KEPT, "more than {KEPT} events");
            self.seen.push((**event).clone());
        }
        Ok(received)
    }

    /// Reads events until `pick` takes one.
    ///
    /// # Errors
    /// When the stream ends or falls silent first; the error names `what` and shows the last events.
    pub async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        loop {
            let received =
                self.receive().await.with_context(|| format!("waiting for {what}, after {:?}", self.last_seen()))?;
            match received {
                Received::Event(event) => {
                    if let Some(found) = pick(&event) {
                        return Ok(found);
                    }
                }
                Received::Closed(closed) => {
                    bail!("closed while waiting for {what}: {closed:?}, after {:?}", self.last_seen())
                }
            }
        }
    }

    /// Reads events until the stream ends.
    ///
    /// # Errors
    /// When it does not end within the limit after the last event.
    pub async fn until_closed(&mut self) -> Result<Closed> {
        loop {
            if let Received::Closed(closed) = self.receive().await? {
                return Ok(closed);
            }
        }
    }

    /// Sends a frame and reads until its answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request(&mut self, frame: Frame) -> Result<Answer> {
        let request_id = self.send(frame).await?;
        self.answer(&request_id).await
    }

    /// Reads until the answer to an earlier frame.
    ///
    /// # Errors
    /// When there is none.
    pub async fn answer(&mut self, request_id: &str) -> Result<Answer> {
        self.until(&format!("the answer to {request_id}"), |event| match event {
            Event::Ack(ack) if ack.request_id == request_id => Some(Answer::Ack(ack.clone())),
            Event::Error(error) if error.request_id == request_id => Some(Answer::Error(error.clone())),
            _ => None,
        })
        .await
    }

    /// Attaches, and reads until `opened`.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn open(&mut self, open: chat_request::Open) -> Result<Opened> {
        let request_id = self.send(Frame::Open(open)).await?;
        self.until("opened", |event| match event {
            Event::Opened(opened) => Some(Ok(opened.clone())),
            Event::Error(error) if error.request_id == request_id => Some(Err(anyhow!("open was refused: {error:?}"))),
            _ => None,
        })
        .await?
    }

    /// Reads until `caught_up`.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn caught_up(&mut self) -> Result<u64> {
        self.until("caught_up", |event| match event {
            Event::CaughtUp(caught_up) => Some(caught_up.seq),
            _ => None,
        })
        .await
    }

    /// Writes a message and reads until its ack.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn say(&mut self, client_message_id: &str, text: &str) -> Result<Ack> {
        let send = chat_request::Send {
            client_message_id: client_message_id.to_owned(),
            text: text.to_owned(),
            ..chat_request::Send::default()
        };
        match self.request(Frame::Send(send)).await? {
            Answer::Ack(ack) => Ok(ack),
            Answer::Error(error) => bail!("the message was refused: {error:?}"),
        }
    }

    /// Reads until a reply has ended and returns it with its pieces put together, those that came earlier included.
    ///
    /// # Errors
    /// When it does not end, or a piece does not fit its place.
    pub async fn reply(&mut self) -> Result<SeenReply> {
        let finished = self
            .until("the end of a reply", |event| match event {
                Event::Entry(entry) => finished(entry).cloned(),
                _ => None,
            })
            .await?;
        Ok(SeenReply { streamed: streamed(&self.seen, &finished.message_id)?, finished })
    }

    /// Like [`Client::reply`], of one reply, whose end may have come already.
    ///
    /// # Errors
    /// When it does not end, or a piece does not fit its place.
    pub async fn reply_of(&mut self, message_id: &str) -> Result<SeenReply> {
        let of = |event: &Event| match event {
            Event::Entry(entry) => finished(entry).filter(|finished| finished.message_id == message_id).cloned(),
            _ => None,
        };
        let finished = match self.seen.iter().find_map(of) {
            Some(finished) => finished,
            None => self.until("the end of the reply", of).await?,
        };
        Ok(SeenReply { streamed: streamed(&self.seen, message_id)?, finished })
    }

    /// Reads until there is such an event, unless it has come already.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn until_seen(&mut self, what: &str, is_it: impl Fn(&Event) -> bool) -> Result<()> {
        if self.seen.iter().any(&is_it) {
            return Ok(());
        }
        self.until(what, |event| is_it(event).then_some(())).await
    }

    /// The entries that came, in their order.
    #[must_use]
    pub fn entries(&self) -> Vec<&Entry> {
        self.seen
            .iter()
            .filter_map(|event| match event {
                Event::Entry(entry) => Some(entry),
                _ => None,
            })
            .collect()
    }

    fn last_seen(&self) -> &[Event] {
        &self.seen[self.seen.len().saturating_sub(5)..]
    }
}

/// The terminal entry of a reply, when this is one.
#[must_use]
pub fn finished(entry: &Entry) -> Option<&entry::ReplyFinished> {
    match &entry.kind {
        Some(entry::Kind::ReplyFinished(finished)) => Some(finished),
        _ => None,
    }
}

/// Puts the pieces of a reply together as a client has to: a delta continues the text, a snapshot replaces it from its
/// offset on.
///
/// # Errors
/// When a piece does not fit its place.
pub fn streamed(events: &[Event], message_id: &str) -> Result<String> {
    let mut text = String::new();
    for event in events {
        let (id, offset, next_offset, piece) = match event {
            Event::ReplyDelta(delta) => (&delta.message_id, delta.offset, delta.next_offset, &delta.text),
            Event::ReplySnapshot(shot) => (&shot.message_id, shot.offset, shot.next_offset, &shot.text),
            _ => continue,
        };
        if id != message_id {
            continue;
        }
        let offset = usize::try_from(offset)?;
        let snapshot = matches!(event, Event::ReplySnapshot(_));
        ensure!(
            offset == text.len() || (snapshot && text.is_char_boundary(offset)),
            "{event:?} after {} bytes",
            text.len()
        );
        text.truncate(offset);
        text.push_str(piece);
        ensure!(usize::try_from(next_offset)? == text.len(), "{event:?} ends elsewhere than at {}", text.len());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use chatbox_proto::v1::chat_response::{ReplyDelta, ReplySnapshot};

    use super::*;

    fn delta(offset: u32, text: &str) -> Event {
        let next_offset = offset + u32::try_from(text.len()).unwrap();
        Event::ReplyDelta(ReplyDelta {
            message_id: "m".to_owned(),
            offset,
            next_offset,
            text: text.to_owned(),
            started_seq: 2,
        })
    }

    fn snapshot(offset: u32, text: &str) -> Event {
        let next_offset = offset + u32::try_from(text.len()).unwrap();
        let (message_id, model, text) = ("m".to_owned(), "demo".to_owned(), text.to_owned());
        Event::ReplySnapshot(ReplySnapshot { message_id, offset, next_offset, text, started_seq: 2, model })
    }

    #[test]
    fn deltas_continue_and_snapshots_replace() {
        let events = [delta(0, "hé"), delta(3, "llo"), snapshot(3, "y"), delta(4, "!")];
        assert_eq!(streamed(&events, "m").unwrap(), "héy!");
        assert_eq!(streamed(&events, "other").unwrap(), "");
    }

    #[test]
    fn a_gap_a_repeat_and_a_wrong_length_are_found() {
        assert!(streamed(&[delta(0, "a"), delta(2, "b")], "m").is_err());
        assert!(streamed(&[delta(0, "a"), delta(0, "a")], "m").is_err());
        let Event::ReplyDelta(mut wrong) = delta(0, "a") else { panic!() };
        wrong.next_offset = 2;
        assert!(streamed(&[Event::ReplyDelta(wrong)], "m").is_err());
    }
}
