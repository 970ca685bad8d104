//! The proof: pure, from what was seen and what is stored to a list of violations.

mod acks;
mod log;
mod pieces;
mod replies;
mod subscriber;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chatbox_proto::v1::{
    Entry, Message,
    chat_request::Send,
    entry::{Kind, ReplyFinished, ReplyStarted},
};

use super::{
    plan::Plan,
    record::{Place, Record},
    stored::StoredSession,
};

/// What a setup promises beyond what every setup does.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Entries that `open` replays at most.
    pub replay: u64,
    /// There is one core: heads never step back for anybody, and a direct subscriber misses no piece.
    pub one_core: bool,
    /// Between two checkpoints of a reply.
    pub checkpoint: Duration,
}

/// What is wrong, as a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Something was acknowledged and is not stored.
    AckedLost,
    /// What is stored under an acknowledged place is something else.
    AckDiffers,
    /// An answer to nothing that was asked.
    Unasked,
    /// A repeat gave another message or place.
    RepeatDiffers,
    /// A repeat was not told to be one.
    RepeatNotNamed,
    /// One message is stored twice.
    StoredTwice,
    /// It was refused and is stored.
    RefusedButStored,
    /// It is stored and nobody sent it.
    Invented,
    /// The log has a gap, or two entries with one number.
    LogBroken,
    /// A subscriber was not sent an entry.
    EntryMissed,
    /// A subscriber was sent an entry twice, or after a later one.
    EntryRepeated,
    /// A subscriber was sent another entry than is stored.
    EntryDiffers,
    /// A subscriber was sent an entry, or told of a head, that is not stored.
    NotStored,
    /// An event that may not come at this place.
    OutOfPlace,
    /// What came is not of the contract.
    Malformed,
    /// `opened` says something else than what was asked for allows.
    WrongVerdict,
    /// A head that is behind what was known before.
    SteppedBack,
    /// A piece of a reply that leaves a gap, repeats, or belongs to no running reply.
    PieceMisplaced,
    /// A piece of a reply with another text.
    PieceDiffers,
    /// The stored text of a reply is not what was streamed.
    StreamedDiffers,
    /// A reply lost more than a checkpoint.
    CheckpointLost,
    /// A reply with another text than the provider's.
    TextDiffers,
    /// A reply ended in a way that nobody caused.
    WrongOutcome,
    /// A message that no reply names.
    Unanswered,
    /// A message that two replies name, or a name of no message.
    AnsweredTwice,
    /// A reply that has not ended.
    Unended,
    /// A reply that ended twice, or never began.
    EndedTwice,
    /// Two replies at once.
    Overlap,
    /// The folded state, the messages as listed or the entries as replayed do not agree with the log.
    ViewDiffers,
    /// Something is left to be looked after though everything has come to rest.
    LeftOver,
    /// It did not come to rest.
    Unsettled,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::AckedLost,
        Self::AckDiffers,
        Self::Unasked,
        Self::RepeatDiffers,
        Self::RepeatNotNamed,
        Self::StoredTwice,
        Self::RefusedButStored,
        Self::Invented,
        Self::LogBroken,
        Self::EntryMissed,
        Self::EntryRepeated,
        Self::EntryDiffers,
        Self::NotStored,
        Self::OutOfPlace,
        Self::Malformed,
        Self::WrongVerdict,
        Self::SteppedBack,
        Self::PieceMisplaced,
        Self::PieceDiffers,
        Self::StreamedDiffers,
        Self::CheckpointLost,
        Self::TextDiffers,
        Self::WrongOutcome,
        Self::Unanswered,
        Self::AnsweredTwice,
        Self::Unended,
        Self::EndedTwice,
        Self::Overlap,
        Self::ViewDiffers,
        Self::LeftOver,
        Self::Unsettled,
    ];
}

/// Something that is wrong, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The class.
    pub kind: Class,
    /// The session, as far as there is one.
    pub session: String,
    /// What, for people.
    pub what: String,
    /// Where it was seen.
    pub evidence: Vec<Place>,
}

impl Violation {
    fn new(kind: Class, session: &str, what: String) -> Self {
        Self { kind, session: session.to_owned(), what, evidence: Vec::new() }
    }

    fn seen(mut self, places: impl IntoIterator<Item = Place>) -> Self {
        self.evidence.extend(places);
        self
    }
}

/// Proves a round, or finds what is wrong with it.
#[must_use]
pub fn prove(record: &Record, sessions: &[StoredSession], rules: &Rules) -> Vec<Violation> {
    let case = Case::new(record, sessions, rules);
    let mut found = Vec::new();
    for what in &record.unsettled {
        found.push(Violation::new(Class::Unsettled, "", what.clone()));
    }
    log::check(&case, &mut found);
    replies::check(&case, &mut found);
    acks::check(&case, &mut found);
    subscriber::check(&case, &mut found);
    found.sort_by_key(|violation| violation.kind);
    found
}

/// Everything that the parts of the proof look things up in.
struct Case<'a> {
    record: &'a Record,
    sessions: BTreeMap<&'a str, Stored<'a>>,
    rules: &'a Rules,
}

/// A session with its entries by what they are.
struct Stored<'a> {
    session: &'a StoredSession,
    by_seq: BTreeMap<u64, &'a Entry>,
    messages: Vec<(u64, &'a Message)>,
    started: HashMap<&'a str, (u64, &'a ReplyStarted)>,
    finished: HashMap<&'a str, (u64, &'a ReplyFinished)>,
}

impl<'a> Stored<'a> {
    fn new(session: &'a StoredSession) -> Self {
        let mut stored = Self {
            session,
            by_seq: session.entries.iter().map(|entry| (entry.seq, entry)).collect(),
            messages: Vec::new(),
            started: HashMap::new(),
            finished: HashMap::new(),
        };
        for entry in &session.entries {
            match &entry.kind {
                Some(Kind::Message(message)) => stored.messages.push((entry.seq, message)),
                Some(Kind::ReplyStarted(start)) => {
                    stored.started.entry(&start.message_id).or_insert((entry.seq, start));
                }
                Some(Kind::ReplyFinished(end)) => {
                    stored.finished.entry(&end.message_id).or_insert((entry.seq, end));
                }
                _ => {}
            }
        }
        stored
    }

    fn head(&self) -> u64 {
        self.by_seq.keys().next_back().copied().unwrap_or(0)
    }

    /// What the reply was asked for: the newest message that it answers says it.
    fn plan(&self, message_id: &str) -> Option<Plan> {
        let newest = self.started.get(message_id)?.1.answers.last()?;
        let (_, message) = self.messages.iter().find(|(_, message)| message.message_id == *newest)?;
        Plan::parse(&message.text)
    }
}

/// A message that was sent.
struct Sent<'a> {
    place: Place,
    at: Duration,
    session_id: &'a str,
    user: &'a str,
    request_id: &'a str,
    send: &'a Send,
}

impl<'a> Case<'a> {
    fn new(record: &'a Record, sessions: &'a [StoredSession], rules: &'a Rules) -> Self {
        let sessions = sessions.iter().map(|session| (session.id.as_str(), Stored::new(session))).collect();
        Self { record, sessions, rules }
    }

    /// All messages that were sent, in the order of devices and connections.
    fn sent(&self) -> Vec<Sent<'a>> {
        use super::record::Step;
        use chatbox_proto::v1::chat_request::Frame;
        let mut all = Vec::new();
        for (place, device, connection) in self.record.connections() {
            // Nothing is sent before `opened`.
            let Some(session_id) = connection.session_id() else { continue };
            for (step, sighting) in connection.steps.iter().enumerate() {
                if let Step::Sent { request_id, frame: Frame::Send(send) } = &sighting.step {
                    let (place, at) = (Place { step, ..place }, sighting.at);
                    all.push(Sent { place, at, session_id, user: &device.user, request_id, send });
                }
            }
        }
        all
    }
}
