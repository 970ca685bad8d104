//! What the rooms of one session tell each other across cores, and ask: its form, sealed with the session's key.
//!
//! All of it is a hint. A document is published only after the store has confirmed it; whatever else is said is checked
//! against the log by whoever hears it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chatbox_proto::ids::{MessageId, SessionId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bus::{Answer, Bus, Subscription},
    domain::entry::{Sender, Seq},
    seal::{DataKey, Field},
    store::{BootId, LogDocument},
};

/// Whoever has not answered by then is done without.
pub(super) const ANSWER: Duration = Duration::from_secs(1);

/// The most text in one answer: a long reply takes several.
const PIECE_BYTES: usize = 128 * 1024;

/// What a payload is: its first byte, and part of what it is sealed with.
mod kind {
    pub(super) const DOCUMENT: u8 = 1;
    pub(super) const HINT: u8 = 2;
    pub(super) const QUESTION: u8 = 3;
    pub(super) const ANSWER: u8 = 4;
}

/// First number and count, ahead of a sealed document.
const DOCUMENT_HEADER: usize = 8 + 4;

/// Something that may be of use elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hint {
    /// New entries, as they were stored.
    Document(LogDocument),
    /// Anything else.
    Said(Said),
}

/// What is said beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// The log reaches at least so far.
    Head(Seq),
    /// A piece of a running reply.
    Delta(RemoteDelta),
    /// Somebody is writing, or stopped.
    Typing { sender: Sender, active: bool },
    /// Who is attached there.
    Presence(Presence),
}

/// A piece of a reply that runs in another core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteDelta {
    pub(super) message_id: MessageId,
    pub(super) started_seq: Seq,
    pub(super) offset: u32,
    pub(super) text: Arc<str>,
}

/// Who is attached to a session in one core, and how far anybody has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Presence {
    pub(super) core: BootId,
    pub(super) online: Vec<Sender>,
    pub(super) read: Vec<(String, Seq)>,
    /// It does not know who is attached elsewhere.
    pub(super) asks: bool,
}

/// What is asked of the core that runs a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// Its text from there on.
    Text { message_id: MessageId, from: u32 },
    /// To end it.
    Stop { message_id: MessageId },
}

/// What the core that runs it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// Text of the reply, which has `length` bytes now.
    Text { offset: u32, text: String, length: u32 },
    /// It ends; its terminal entry follows.
    Stopping,
}

/// A question and its answer carry the same number, so that an old answer is none.
#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    number: u64,
    body: T,
}

/// What was asked, and the way to answer it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    number: u64,
    answer: Answer,
}

/// One session's way to its rooms in other cores. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Link {
    bus: Arc<dyn Bus>,
    topic: Arc<str>,
    session: SessionId,
    key: Arc<DataKey>,
}

impl Link {
    pub(super) fn new(bus: Arc<dyn Bus>, session: SessionId, key: Arc<DataKey>) -> Self {
        Self { bus, topic: format!("session.{session}").into(), session, key }
    }

    /// Listens; `None` when there is nobody to listen to.
    pub(super) async fn subscribe(&self) -> Option<Subscription> {
        if self.bus.has_peers() { Some(self.bus.subscribe(&self.topic).await) } else { None }
    }

    /// Tells the others about entries that the store has confirmed.
    pub(super) fn publish_document(&self, document: &LogDocument) {
        if !self.bus.has_peers() {
            return;
        }
        let mut payload = Vec::with_capacity(1 + DOCUMENT_HEADER + document.sealed.len());
        payload.push(kind::DOCUMENT);
        payload.extend(document.first_seq.to_be_bytes());
        payload.extend(document.count.to_be_bytes());
        payload.extend(&document.sealed);
        if payload.len() > self.bus.max_payload() {
            // They read it.
            return self.publish(&Said::Head(document.first_seq + Seq::from(document.count) - 1));
        }
        self.bus.publish(&self.topic, payload.into());
    }

    /// Says something to the others.
    pub(super) fn publish(&self, said: &Said) {
        if self.bus.has_peers()
            && let Some(payload) = self.seal(kind::HINT, said)
        {
            self.bus.publish(&self.topic, payload);
        }
    }

    /// What was published; `None` for what is not ours or not whole.
    pub(super) fn open(&self, payload: &[u8]) -> Option<Hint> {
        match payload.split_first()? {
            (&kind::DOCUMENT, rest) => {
                let (first_seq, rest) = rest.split_first_chunk()?;
                let (count, sealed) = rest.split_first_chunk()?;
                Some(Hint::Document(LogDocument {
                    first_seq: Seq::from_be_bytes(*first_seq),
                    count: u32::from_be_bytes(*count),
                    sealed: sealed.to_vec(),
                }))
            }
            (&kind::HINT, _) => self.unseal(kind::HINT, payload).map(Hint::Said),
            _ => None,
        }
    }

    /// Asks the core that runs the reply; `None` when it does not answer.
    pub(super) async fn ask(&self, question: Question) -> Option<Told> {
        if !self.bus.has_peers() {
            return None;
        }
        let number = rand::random();
        let payload = self.seal(kind::QUESTION, &Numbered { number, body: question })?;
        let answer = self.bus.request(&self.topic, payload, ANSWER).await.ok()?;
        let told: Numbered<Told> = self.unseal(kind::ANSWER, &answer)?;
        (told.number == number).then_some(told.body)
    }

    /// The text of a reply from `from` on, or from further ahead: its offset and all that the core that runs it has.
    pub(super) async fn ask_text(&self, message_id: MessageId, mut from: u32) -> Option<(u32, String)> {
        let mut whole: Option<(u32, String)> = None;
        loop {
            let Some(Told::Text { offset, text, length }) = self.ask(Question::Text { message_id, from }).await else {
                // What has come already is of use: the rest is asked for again.
                return whole;
            };
            let ends_at = offset.checked_add(u32::try_from(text.len()).ok()?)?;
            let advanced = ends_at > from;
            match &mut whole {
                Some((_, whole)) if offset == from => whole.push_str(&text),
                Some(_) => return whole,
                None => whole = Some((offset, text)),
            }
            if ends_at >= length || !advanced {
                return whole;
            }
            from = ends_at;
        }
    }

    /// What was asked; `None` for what is not ours.
    pub(super) fn asked(&self, payload: &[u8], answer: Answer) -> Option<Asked> {
        let asked: Numbered<Question> = self.unseal(kind::QUESTION, payload)?;
        Some(Asked { question: asked.body, number: asked.number, answer })
    }

    /// Answers a question.
    pub(super) fn tell(&self, number: u64, answer: Answer, told: Told) {
        if let Some(payload) = self.seal(kind::ANSWER, &Numbered { number, body: told }) {
            answer.give(payload);
        }
    }

    fn seal(&self, kind: u8, body: &impl Serialize) -> Option<Bytes> {
        let plain = serde_json::to_vec(body).ok()?;
        let sealed = self.key.seal(Field::Bus { session: self.session, kind }, &plain);
        let mut payload = Vec::with_capacity(1 + sealed.len());
        payload.push(kind);
        payload.extend(sealed);
        Some(payload.into())
    }

    fn unseal<T: DeserializeOwned>(&self, kind: u8, payload: &[u8]) -> Option<T> {
        let (_, sealed) = payload.split_first().filter(|(first, _)| **first == kind)?;
        let plain = self.key.open(Field::Bus { session: self.session, kind }, sealed).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

impl Asked {
    pub(super) fn into_parts(self) -> (Question, u64, Answer) {
        (self.question, self.number, self.answer)
    }
}

/// There are others on the bus, and they cannot be heard now.
pub(super) fn is_cut_off(bus: &dyn Bus) -> bool {
    bus.has_peers() && !bus.liveness().connected
}

/// The piece of a text that answers [`Question::Text`]: from there if that is a place in it, else from its beginning.
pub(super) fn piece(text: &str, from: u32) -> Told {
    let from = if text.is_char_boundary(from as usize) { from as usize } else { 0 };
    let mut end = text.len().min(from + PIECE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let number = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    Told::Text { offset: number(from), text: text[from..end].to_owned(), length: number(text.len()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{bus::local::LocalBus, seal::KeyRing};

    fn key(session: SessionId) -> Arc<DataKey> {
        let text = KeyRing::generate_key();
        let ring = KeyRing::from_config("k", [("k", text.as_str())]).unwrap();
        Arc::new(ring.new_data_key(session).0)
    }

    fn link() -> Link {
        let session = SessionId::generate();
        Link::new(Arc::new(LocalBus::shared()), session, key(session))
    }

    #[test]
    fn what_is_said_is_understood_by_the_same_session_alone() {
        let link = link();
        let said = Said::Head(7);
        let payload = link.seal(kind::HINT, &said).unwrap();
        assert_eq!(link.open(&payload), Some(Hint::Said(said)));
        let elsewhere = Link { session: SessionId::generate(), ..link.clone() };
        assert_eq!(elsewhere.open(&payload), None);
        let stranger = Link { key: key(link.session), ..link.clone() };
        assert_eq!(stranger.open(&payload), None);
    }

    #[test]
    fn a_hint_is_no_answer_and_an_answer_no_hint() {
        let link = link();
        let mut payload = link.seal(kind::ANSWER, &Said::Head(7)).unwrap().to_vec();
        payload[0] = kind::HINT;
        assert_eq!(link.open(&payload), None);
    }

    proptest! {
        #[test]
        fn junk_is_nothing_and_never_panics(junk in prop::collection::vec(any::<u8>(), 0..100)) {
            let link = link();
            if let Some(hint) = link.open(&junk) {
                // A document is opened by the log, with the place it claims.
                prop_assert!(matches!(hint, Hint::Document(_)));
            }
            prop_assert!(link.unseal::<Numbered<Question>>(kind::QUESTION, &junk).is_none());
        }

        #[test]
        fn pieces_add_up_to_the_text(text in "\\PC{0,200}", from in 0u32..300) {
            let Told::Text { offset, text: piece, length } = piece(&text, from) else { unreachable!() };
            prop_assert_eq!(length as usize, text.len());
            prop_assert_eq!(&text[offset as usize..], piece.as_str());
            prop_assert!(offset == from || offset == 0);
        }
    }
}
