//! What must hold of each connection: every entry once, in order and as it is stored, from where the client said it was; and
//! heads that never step back.

use std::{collections::BTreeMap, time::Duration};

use chatbox_proto::v1::{
    Entry,
    chat_request::Open,
    chat_response::{Event, Opened, ResumeVerdict},
};

use super::{Case, Class, Stored, Violation, pieces::Pieces};
use crate::{
    checker::record::{Connection, Place, Step},
    harness::client::Transport,
};

pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    for (place, _, connection) in case.record.connections() {
        for (step, sighting) in connection.steps.iter().enumerate() {
            if let Step::Malformed(what) = &sighting.step {
                let session = connection.session_id().unwrap_or_default();
                found.push(Violation::new(Class::Malformed, session, what.clone()).seen([Place { step, ..place }]));
            }
        }
        let Some(id) = connection.session_id() else { continue };
        match case.sessions.get(id) {
            Some(stored) => Reading::new(case, stored, place, connection).run(found),
            None => {
                let what = "a client was attached to a session that is not stored".to_owned();
                found.push(Violation::new(Class::NotStored, id, what).seen([place]));
            }
        }
    }
    heads(case, found);
}

/// One connection, read from its beginning.
pub(super) struct Reading<'a> {
    pub(super) case: &'a Case<'a>,
    pub(super) stored: &'a Stored<'a>,
    pub(super) connection: &'a Connection,
    place: Place,
    /// The entry that has to come next; 0 before `opened`.
    pub(super) next: u64,
    caught_up: bool,
    pieces: Pieces<'a>,
}

impl<'a> Reading<'a> {
    fn new(case: &'a Case<'a>, stored: &'a Stored<'a>, place: Place, connection: &'a Connection) -> Self {
        Self { case, stored, connection, place, next: 0, caught_up: false, pieces: Pieces::default() }
    }

    pub(super) fn violation(&self, kind: Class, step: usize, what: String) -> Violation {
        let seen = [Place { step, ..self.place }];
        Violation::new(kind, &self.stored.session.id, what).seen(seen)
    }

    fn run(mut self, found: &mut Vec<Violation>) {
        let (Some((_, open)), Some(opened)) = (self.connection.open(), self.connection.opened()) else { return };
        for (step, event) in self.connection.events() {
            match event {
                Event::Opened(again) if self.next > 0 => {
                    found.push(self.violation(Class::OutOfPlace, step, format!("opened twice: {again:?}")));
                }
                Event::Opened(_) => self.opened(step, open, opened, found),
                Event::Entry(entry) => self.entry(step, entry, found),
                Event::CaughtUp(caught_up) => {
                    // An edge that has to open the stream again before this one came passes on that of the new stream, which
                    // was opened later.
                    let fits = match self.connection.transport {
                        Transport::Grpc => caught_up.seq == opened.head,
                        Transport::Socket(_) => caught_up.seq >= opened.head,
                    };
                    if self.caught_up || !fits || self.next <= caught_up.seq {
                        let what = format!("{caught_up:?} before entry {}, opened at {}", self.next, opened.head);
                        found.push(self.violation(Class::OutOfPlace, step, what));
                    }
                    self.caught_up = true;
                }
                Event::Heartbeat(heartbeat) if heartbeat.head > self.stored.head() => {
                    let what = format!("{heartbeat:?}, but the log ends at {}", self.stored.head());
                    found.push(self.violation(Class::NotStored, step, what));
                }
                Event::ReplyDelta(_) | Event::ReplySnapshot(_) if self.next == 0 => {
                    found.push(self.violation(Class::OutOfPlace, step, "a piece before opened".to_owned()));
                }
                Event::ReplyDelta(_) | Event::ReplySnapshot(_) => {
                    let mut pieces = std::mem::take(&mut self.pieces);
                    pieces.piece(&self, step, event, found);
                    self.pieces = pieces;
                }
                _ => {}
            }
        }
    }

    fn opened(&mut self, step: usize, open: &'a Open, opened: &'a Opened, found: &mut Vec<Violation>) {
        let replayable = |after: u64| opened.head.saturating_sub(after) <= self.case.rules.replay;
        let right = match (open.after_seq, opened.verdict()) {
            (None, ResumeVerdict::Fresh) => true,
            (Some(after), ResumeVerdict::Replayed) => after <= opened.head && replayable(after),
            (Some(after), ResumeVerdict::Gap) => after <= opened.head && !replayable(after),
            _ => false,
        };
        let session = opened.session.as_ref();
        let named = open.session_id.is_empty() || session.is_some_and(|session| session.session_id == open.session_id);
        let head = session.is_some_and(|session| session.head == opened.head);
        if !right || !named || !head {
            found.push(self.violation(Class::WrongVerdict, step, format!("{open:?} was answered with {opened:?}")));
        }
        if opened.head > self.stored.head() {
            let what = format!("opened at {}, but the log ends at {}", opened.head, self.stored.head());
            found.push(self.violation(Class::NotStored, step, what));
        }
        self.next = match opened.verdict() {
            ResumeVerdict::Replayed => open.after_seq.unwrap_or(opened.head),
            ResumeVerdict::Gap | ResumeVerdict::Fresh | ResumeVerdict::Unspecified => opened.head,
        } + 1;
        self.pieces = Pieces::of(open);
    }

    fn entry(&mut self, step: usize, entry: &'a Entry, found: &mut Vec<Violation>) {
        if self.next == 0 {
            found.push(self.violation(Class::OutOfPlace, step, "an entry before opened".to_owned()));
            return;
        }
        if entry.seq != self.next {
            let kind = if entry.seq < self.next { Class::EntryRepeated } else { Class::EntryMissed };
            let what = format!("entry {} where {} has to come", entry.seq, self.next);
            found.push(self.violation(kind, step, what));
        }
        match self.stored.by_seq.get(&entry.seq) {
            Some(stored) if *stored == entry => {}
            Some(stored) => {
                let what = format!("was sent {entry:?}, stored is {stored:?}");
                found.push(self.violation(Class::EntryDiffers, step, what));
            }
            None => found.push(self.violation(Class::NotStored, step, format!("{entry:?} is not stored"))),
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.entry(self, step, entry, found);
        self.pieces = pieces;
        self.next = self.next.max(entry.seq + 1);
    }
}

/// What somebody knew of a session's head, and when.
struct Known {
    at: Duration,
    head: u64,
    place: Place,
}

/// An `open` never finds less than was known when it was sent: by the same client, or by anybody when there is one core.
fn heads(case: &Case<'_>, found: &mut Vec<Violation>) {
    let mut known: BTreeMap<(&str, Option<usize>), Vec<Known>> = BTreeMap::new();
    for (place, _, connection) in case.record.connections() {
        let Some(id) = connection.session_id() else { continue };
        let who = (!case.rules.one_core).then_some(place.device);
        let heads = known.entry((id, who)).or_default();
        for (step, event) in connection.events() {
            let head = match event {
                Event::Opened(opened) => opened.head,
                Event::Entry(entry) => entry.seq,
                Event::Ack(ack) => ack.seq,
                Event::Heartbeat(heartbeat) => heartbeat.head,
                _ => continue,
            };
            heads.push(Known { at: connection.steps[step].at, head, place: Place { step, ..place } });
        }
    }
    for heads in known.values_mut() {
        heads.sort_by_key(|known| known.at);
        // The largest up to each moment.
        for index in 1..heads.len() {
            if heads[index].head < heads[index - 1].head {
                (heads[index].head, heads[index].place) = (heads[index - 1].head, heads[index - 1].place);
            }
        }
    }
    for (place, _, connection) in case.record.connections() {
        let (Some((at, _)), Some(opened)) = (connection.open(), connection.opened()) else { continue };
        let Some(id) = connection.session_id() else { continue };
        let who = (!case.rules.one_core).then_some(place.device);
        let Some(heads) = known.get(&(id, who)) else { continue };
        let before = heads.partition_point(|known| known.at < at);
        let Some(largest) = before.checked_sub(1).map(|index| &heads[index]) else { continue };
        if opened.head < largest.head {
            let step =
                connection.events().find(|(_, event)| matches!(event, Event::Opened(_))).map_or(0, |(step, _)| step);
            let what = format!("opened at {}, {} was known before", opened.head, largest.head);
            let seen = [largest.place, Place { step, ..place }];
            found.push(Violation::new(Class::SteppedBack, id, what).seen(seen));
        }
    }
}
