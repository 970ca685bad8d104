//! The proof by itself: the evidence of an honest round is changed in one place, and the proof says what is wrong. Every class
//! of violation has a change that it is found by.

use std::{collections::BTreeSet, time::Duration};

use chatbox_proto::v1::{
    Entry, Error, FinishReason,
    chat_request::Frame,
    chat_response::{Ack, Event, ResumeVerdict},
    entry::Kind,
};

use crate::{
    checker::{
        faults::{Fault, Menu, Victim},
        proof::{Class, Rules, prove},
        record::{Inflicted, Record, Sighting, Step},
        round::{self, Plan},
        stored::StoredSession,
        topology::Single,
        workload::{Amount, Habits},
    },
    harness::client::Transport,
};

/// What the proof goes by.
#[derive(Clone)]
struct Evidence {
    record: Record,
    sessions: Vec<StoredSession>,
    rules: Rules,
}

/// One change; false when there was nothing to change.
type Change = fn(&mut Evidence) -> bool;

impl Evidence {
    fn found(&self) -> BTreeSet<Class> {
        prove(&self.record, &self.sessions, &self.rules).into_iter().map(|violation| violation.kind).collect()
    }

    fn connections(&mut self) -> impl Iterator<Item = &mut Vec<Sighting>> {
        let connections = self.record.devices.iter_mut().flat_map(|device| device.connections.iter_mut());
        connections.map(|connection| &mut connection.steps)
    }

    /// Changes the first event that can be changed so.
    fn event(&mut self, mut change: impl FnMut(&mut Event) -> bool) -> bool {
        self.connections().flatten().any(|sighting| match &mut sighting.step {
            Step::Came(event) => change(event),
            _ => false,
        })
    }

    /// Changes the steps of the first connection on which such an event came, at its place.
    fn steps(&mut self, is_it: impl Fn(&Event) -> bool, change: impl FnOnce(&mut Vec<Sighting>, usize)) -> bool {
        for steps in self.connections() {
            let came = |sighting: &Sighting| matches!(&sighting.step, Step::Came(event) if is_it(event));
            if let Some(place) = steps.iter().position(came) {
                change(steps, place);
                return true;
            }
        }
        false
    }

    /// Changes the first stored entry that can be changed so.
    fn entry(&mut self, mut change: impl FnMut(&mut Kind) -> bool) -> bool {
        let entries = self.sessions.iter_mut().flat_map(|session| session.entries.iter_mut());
        entries.filter_map(|entry| entry.kind.as_mut()).any(|kind| change(kind))
    }

    /// Adds an entry behind the log of the first session.
    fn behind(&mut self, pick: impl Fn(&Kind) -> Option<Kind>) -> bool {
        let session = &mut self.sessions[0];
        let Some(kind) = session.entries.iter().filter_map(|entry| entry.kind.as_ref()).find_map(pick) else {
            return false;
        };
        let seq = session.entries.len() as u64 + 1;
        session.entries.push(Entry { seq, kind: Some(kind), ..session.entries[0].clone() });
        session.documents.push((seq, 1));
        true
    }
}

fn is_entry(event: &Event) -> bool {
    matches!(event, Event::Entry(_))
}

fn is_delta(event: &Event) -> bool {
    matches!(event, Event::ReplyDelta(_))
}

fn is_written(ack: &Ack) -> bool {
    ack.seq > 0 && !ack.duplicate
}

/// What happens to what clients saw.
const SEEN: [(Class, Change); 20] = [
    (Class::EntryMissed, |evidence| {
        evidence.steps(is_entry, |steps, place| {
            steps.remove(place);
        })
    }),
    (Class::EntryRepeated, |evidence| {
        evidence.steps(is_entry, |steps, place| {
            let again = steps[place].clone();
            steps.insert(place, again);
        })
    }),
    (Class::EntryRepeated, |evidence| {
        let connection = evidence.connections().find(|steps| {
            steps.iter().filter(|sighting| matches!(&sighting.step, Step::Came(event) if is_entry(event))).count() > 1
        });
        let Some(steps) = connection else { return false };
        let came = |sighting: &Sighting| matches!(&sighting.step, Step::Came(event) if is_entry(event));
        let places: Vec<usize> = (0..steps.len()).filter(|place| came(&steps[*place])).take(2).collect();
        steps.swap(places[0], places[1]);
        true
    }),
    (Class::EntryDiffers, |evidence| {
        evidence.event(|event| match event {
            Event::Entry(Entry { kind: Some(Kind::Message(message)), .. }) => {
                message.text.push('!');
                true
            }
            _ => false,
        })
    }),
    (Class::AckDiffers, |evidence| {
        evidence.event(|event| match event {
            Event::Ack(ack) if ack.seq > 1 => {
                ack.seq -= 1;
                true
            }
            _ => false,
        })
    }),
    (Class::AckedLost, |evidence| {
        evidence.event(|event| match event {
            Event::Ack(ack) if ack.seq > 0 => {
                ack.seq += 100_000;
                true
            }
            _ => false,
        })
    }),
    (Class::RepeatNotNamed, |evidence| {
        evidence.event(|event| match event {
            Event::Ack(ack) if ack.duplicate => {
                ack.duplicate = false;
                true
            }
            _ => false,
        })
    }),
    (Class::RepeatDiffers, |evidence| {
        evidence.event(|event| match event {
            Event::Ack(ack) if ack.duplicate => {
                ack.message_id.push('0');
                true
            }
            _ => false,
        })
    }),
    (Class::Unasked, |evidence| {
        evidence.event(|event| match event {
            Event::Ack(ack) => {
                "r99999".clone_into(&mut ack.request_id);
                true
            }
            _ => false,
        })
    }),
    (Class::RefusedButStored, |evidence| {
        // A message that was acknowledged once and never repeated.
        let mut refused = false;
        evidence.event(|event| {
            if let Event::Ack(ack) = event
                && is_written(ack)
            {
                let request_id = ack.request_id.clone();
                *event = Event::Error(Error { request_id, code: 14, ..Error::default() });
                refused = true;
            }
            false
        });
        evidence.connections().flatten().for_each(|sighting| {
            if let Step::Came(event) = &mut sighting.step
                && let Event::Ack(Ack { request_id, duplicate: true, .. }) = &**event
            {
                **event = Event::Error(Error { request_id: request_id.clone(), code: 14, ..Error::default() });
            }
        });
        refused
    }),
    (Class::Invented, |evidence| {
        let mut forgotten = false;
        for sighting in evidence.connections().flatten() {
            if let Step::Sent { frame: Frame::Send(send), .. } = &mut sighting.step {
                send.text.push('?');
                forgotten = true;
            }
        }
        forgotten
    }),
    (Class::NotStored, |evidence| {
        evidence.event(|event| match event {
            Event::Heartbeat(heartbeat) => {
                heartbeat.head += 100_000;
                true
            }
            _ => false,
        })
    }),
    (Class::OutOfPlace, |evidence| {
        evidence.event(|event| match event {
            Event::CaughtUp(caught_up) => {
                caught_up.seq += 1;
                true
            }
            _ => false,
        })
    }),
    (Class::Malformed, |evidence| {
        evidence.steps(is_entry, |steps, place| steps[place].step = Step::Malformed("not JSON".to_owned()))
    }),
    (Class::WrongVerdict, |evidence| {
        evidence.event(|event| match event {
            Event::Opened(opened) => {
                opened.verdict = ResumeVerdict::Unspecified.into();
                true
            }
            _ => false,
        })
    }),
    (Class::SteppedBack, |evidence| {
        let mut first = true;
        evidence.event(|event| match event {
            Event::Opened(opened) if opened.head > 5 && !std::mem::take(&mut first) => {
                opened.head = 1;
                true
            }
            _ => false,
        })
    }),
    (Class::PieceMisplaced, |evidence| {
        evidence.steps(is_delta, |steps, place| {
            let again = steps[place].clone();
            steps.insert(place, again);
        })
    }),
    (Class::PieceDiffers, |evidence| {
        evidence.event(|event| match event {
            Event::ReplyDelta(delta) => {
                delta.text = "x".repeat(delta.text.len());
                true
            }
            _ => false,
        })
    }),
    (Class::StreamedDiffers, |evidence| {
        // The last pieces of a reply that was watched to its end.
        let devices = evidence.record.devices.iter_mut();
        let connections = devices.flat_map(|device| device.connections.iter_mut());
        for connection in connections.filter(|connection| connection.transport == Transport::Grpc) {
            let ends = connection.steps.iter().position(|sighting| {
                matches!(&sighting.step, Step::Came(event) if matches!(&**event,
                    Event::Entry(Entry { kind: Some(Kind::ReplyFinished(end)), .. })
                        if end.finish_reason() == FinishReason::Stop))
            });
            let piece = |sighting: &Sighting| matches!(&sighting.step, Step::Came(event) if is_delta(event));
            let last = ends.and_then(|end| connection.steps[..end].iter().rposition(piece));
            if let Some(last) = last {
                connection.steps.remove(last);
                return true;
            }
        }
        false
    }),
    (Class::Unsettled, |evidence| {
        evidence.record.unsettled.push("somebody".to_owned());
        true
    }),
];

/// What happens to what is stored.
const STORED: [(Class, Change); 14] = [
    (Class::LogBroken, |evidence| {
        evidence.sessions[0].entries.remove(1);
        true
    }),
    (Class::LogBroken, |evidence| {
        evidence.sessions[0].documents.remove(0);
        true
    }),
    (Class::StoredTwice, |evidence| evidence.behind(|kind| matches!(kind, Kind::Message(_)).then(|| kind.clone()))),
    (Class::Unanswered, |evidence| {
        evidence.entry(|kind| match kind {
            Kind::ReplyStarted(start) => start.answers.pop().is_some(),
            _ => false,
        })
    }),
    (Class::AnsweredTwice, |evidence| {
        evidence.behind(|kind| match kind {
            Kind::ReplyStarted(start) => {
                let mut again = start.clone();
                "another".clone_into(&mut again.message_id);
                Some(Kind::ReplyStarted(again))
            }
            _ => None,
        })
    }),
    (Class::Unended, |evidence| {
        evidence.behind(|kind| match kind {
            Kind::ReplyStarted(start) => {
                let mut again = start.clone();
                "another".clone_into(&mut again.message_id);
                Some(Kind::ReplyStarted(again))
            }
            _ => None,
        })
    }),
    (Class::EndedTwice, |evidence| {
        evidence.behind(|kind| matches!(kind, Kind::ReplyFinished(_)).then(|| kind.clone()))
    }),
    (Class::Overlap, |evidence| {
        let mut start = None;
        evidence.entry(|kind| {
            if let Kind::ReplyStarted(_) = kind {
                start = Some(kind.clone());
            } else if let (Kind::ReplyFinished(_), Some(start)) = (&*kind, &start) {
                *kind = start.clone();
                return true;
            }
            false
        })
    }),
    (Class::TextDiffers, |evidence| {
        evidence.entry(|kind| match kind {
            Kind::ReplyFinished(end) => {
                end.text.push('!');
                true
            }
            _ => false,
        })
    }),
    (Class::WrongOutcome, |evidence| {
        evidence.entry(|kind| match kind {
            Kind::ReplyFinished(end) => {
                end.finish_reason = FinishReason::Timeout.into();
                true
            }
            _ => false,
        })
    }),
    (Class::ViewDiffers, |evidence| {
        evidence.sessions[0].history.as_mut().is_some_and(|history| history.pop().is_some())
    }),
    (Class::ViewDiffers, |evidence| evidence.sessions[0].replay.as_mut().is_some_and(|replay| replay.pop().is_some())),
    (Class::LeftOver, |evidence| {
        evidence.sessions[0].unfinished = true;
        true
    }),
    (Class::CheckpointLost, |evidence| {
        // Its core is said to have died long after the last piece, and nothing to have been kept.
        let from = Duration::from_secs(600);
        let fault = Fault::Kill(Victim::Core(0), Duration::ZERO);
        evidence.record.faults.push(Inflicted { from, until: from, fault });
        let seen: Vec<String> = {
            let mut seen = Vec::new();
            evidence.event(|event| {
                if let Event::ReplyDelta(delta) = event {
                    seen.push(delta.message_id.clone());
                }
                false
            });
            seen
        };
        // Nobody saw its end before.
        for steps in evidence.connections() {
            steps.retain(|sighting| {
                !matches!(&sighting.step, Step::Came(event) if matches!(&**event,
                    Event::Entry(Entry { kind: Some(Kind::ReplyFinished(_)), .. })))
            });
        }
        evidence.entry(|kind| match kind {
            Kind::ReplyFinished(end) if seen.contains(&end.message_id) => {
                end.finish_reason = FinishReason::Interrupted.into();
                end.text.clear();
                true
            }
            _ => false,
        })
    }),
];

#[tokio::test]
async fn heavy_every_change_of_the_evidence_is_found_as_what_it_is() {
    let plan = Plan {
        seed: 77,
        amount: Amount { users: 2, devices: 3, habits: Habits { stops: true, ends_sessions: false, restless: true } },
        faults: 0,
        calm: Duration::from_millis(2_500),
        patience: Duration::from_secs(30),
    };
    let topology = Single::start("chatbox-core", Vec::new(), Menu::Single).await.unwrap();
    let outcome = round::run(Box::new(topology), plan).await.unwrap();
    assert!(outcome.violations.is_empty(), "{}", outcome.report());
    let honest = Evidence { record: outcome.record, sessions: outcome.sessions, rules: outcome.rules };

    let mut covered = BTreeSet::new();
    for (number, (class, change)) in SEEN.iter().chain(&STORED).enumerate() {
        let mut changed = honest.clone();
        assert!(change(&mut changed), "change {number}: the round has nothing to change for {class:?}");
        let found = changed.found();
        assert!(found.contains(class), "change {number}: {class:?} was not found, but {found:?}");
        covered.insert(*class);
    }
    let uncovered: Vec<&Class> = Class::ALL.iter().filter(|class| !covered.contains(class)).collect();
    assert!(uncovered.is_empty(), "no change shows {uncovered:?}");
}
