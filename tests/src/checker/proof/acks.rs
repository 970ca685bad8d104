//! What must hold of answers: what was acknowledged is stored as it was acknowledged, repeats are told to be repeats, and
//! what was refused is not there.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chatbox_proto::v1::{
    Error, Message,
    chat_request::Frame,
    chat_response::{Ack, Event},
};

use super::{Case, Class, Sent, Stored, Violation};
use crate::checker::record::{Connection, Place, Step};

/// An answer to a message, with what was sent.
struct Answered<'a> {
    sent: &'a Sent<'a>,
    place: Place,
    at: Duration,
    ack: &'a Ack,
}

pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    let all = case.sent();
    let mut groups: BTreeMap<(&str, &str, &str), Vec<&Sent<'_>>> = BTreeMap::new();
    for sent in &all {
        let key = (sent.session_id, sent.user, sent.send.client_message_id.as_str());
        groups.entry(key).or_default().push(sent);
    }
    for (place, _, connection) in case.record.connections() {
        unasked(place, connection, found);
    }
    for ((session_id, _, client_message_id), group) in groups {
        let answers: Vec<(&Sent<'_>, Vec<(Place, Duration, &Event)>)> =
            group.iter().map(|sent| (*sent, answers_to(case, sent))).collect();
        let mut acks = Vec::new();
        for (sent, answers) in &answers {
            if answers.len() > 1 {
                let what = format!("{client_message_id} was answered {} times on one connection", answers.len());
                let seen = answers.iter().map(|(place, ..)| *place);
                found.push(Violation::new(Class::Unasked, session_id, what).seen(seen));
            }
            for (place, at, event) in answers {
                if let Event::Ack(ack) = event {
                    acks.push(Answered { sent, place: *place, at: *at, ack });
                }
            }
        }
        acks.sort_by_key(|answered| answered.at);
        let Some(stored) = case.sessions.get(session_id) else {
            if let Some(first) = acks.first() {
                let what = format!("{client_message_id} was acknowledged, its session is not stored");
                found.push(Violation::new(Class::AckedLost, session_id, what).seen([first.sent.place, first.place]));
            }
            continue;
        };
        for answered in &acks {
            kept(stored, answered, found);
        }
        repeats(stored, &acks, found);
        if acks.is_empty() {
            refused(stored, client_message_id, &answers, found);
        }
    }
}

/// Answers to a frame on its connection.
fn answers_to<'a>(case: &Case<'a>, sent: &Sent<'_>) -> Vec<(Place, Duration, &'a Event)> {
    let Place { device, connection, .. } = sent.place;
    let seen = &case.record.devices[device].connections[connection];
    if sent.request_id.is_empty() {
        return Vec::new();
    }
    seen.events()
        .filter(|(_, event)| match event {
            Event::Ack(ack) => ack.request_id == sent.request_id,
            Event::Error(error) => error.request_id == sent.request_id,
            _ => false,
        })
        .map(|(step, event)| (Place { step, ..sent.place }, seen.steps[step].at, event))
        .collect()
}

/// Every answer is to a frame that was sent before.
fn unasked(place: Place, connection: &Connection, found: &mut Vec<Violation>) {
    let mut asked: HashMap<&str, &Frame> = HashMap::new();
    for (step, sighting) in connection.steps.iter().enumerate() {
        let request_id = match &sighting.step {
            Step::Sent { request_id, frame } => {
                asked.insert(request_id, frame);
                continue;
            }
            Step::Came(event) => match &**event {
                Event::Ack(Ack { request_id, .. }) => request_id,
                Event::Error(Error { request_id, .. }) if !request_id.is_empty() => request_id,
                _ => continue,
            },
            Step::Closed(_) | Step::Malformed(_) | Step::Silent => continue,
        };
        // A frame that broke its connection was recorded without its id: the connection ends with it.
        if !asked.contains_key(request_id.as_str()) && !asked.contains_key("") {
            let session = connection.session_id().unwrap_or_default();
            let what = format!("an answer to {request_id:?}, which was not sent");
            found.push(Violation::new(Class::Unasked, session, what).seen([Place { step, ..place }]));
        }
    }
}

fn message_at<'a>(stored: &Stored<'a>, ack: &Ack) -> Option<&'a Message> {
    let found = stored.messages.iter().find(|(seq, message)| *seq == ack.seq && message.message_id == ack.message_id);
    found.map(|(_, message)| *message)
}

/// It is stored where the acknowledgement says, with the text that was sent.
fn kept(stored: &Stored<'_>, answered: &Answered<'_>, found: &mut Vec<Violation>) {
    let Answered { sent, place, ack, .. } = answered;
    let id = stored.session.id.as_str();
    let seen = [sent.place, *place];
    let violation = match message_at(stored, ack) {
        None => {
            let at_place = stored.by_seq.get(&ack.seq);
            let kind = if at_place.is_none() { Class::AckedLost } else { Class::AckDiffers };
            let what = format!("{ack:?}, but entry {} is {at_place:?}", ack.seq);
            Violation::new(kind, id, what)
        }
        Some(message) => {
            let same = message.client_message_id == sent.send.client_message_id
                && message.text == sent.send.text
                && message.file_ids == sent.send.file_ids
                && message.sender.as_ref().is_some_and(|sender| sender.user_id == sent.user);
            if same {
                return;
            }
            Violation::new(Class::AckDiffers, id, format!("acknowledged {:?}, stored {message:?}", sent.send))
        }
    };
    found.push(violation.seen(seen));
}

/// All acknowledgements of one message name the same entry; only the first may claim to have written it.
fn repeats(stored: &Stored<'_>, acks: &[Answered<'_>], found: &mut Vec<Violation>) {
    let id = stored.session.id.as_str();
    let Some(first) = acks.first() else { return };
    for later in &acks[1..] {
        let seen = [first.sent.place, first.place, later.sent.place, later.place];
        if (&later.ack.message_id, later.ack.seq) != (&first.ack.message_id, first.ack.seq) {
            let what = format!("first {:?}, then {:?}", first.ack, later.ack);
            found.push(Violation::new(Class::RepeatDiffers, id, what).seen(seen));
        }
    }
    let claims: Vec<&Answered<'_>> = acks.iter().filter(|answered| !answered.ack.duplicate).collect();
    // A claim to have written it that was asked for after it had been acknowledged is wrong, whatever else was said.
    let late = claims.iter().find(|claim| acks.iter().any(|earlier| earlier.at < claim.sent.at));
    if let Some(wrong) = late.or_else(|| claims.get(1)) {
        let what = format!("{} was written once and acknowledged as new again", wrong.sent.send.client_message_id);
        let seen = [first.place, wrong.sent.place, wrong.place];
        found.push(Violation::new(Class::RepeatNotNamed, id, what).seen(seen));
    }
}

/// What was refused each time, with nothing left open, is not there.
fn refused(
    stored: &Stored<'_>,
    client_message_id: &str,
    answers: &[(&Sent<'_>, Vec<(Place, Duration, &Event)>)],
    found: &mut Vec<Violation>,
) {
    let definite = |(_, answers): &(&Sent<'_>, Vec<(Place, Duration, &Event)>)| matches!(answers.first(), Some((_, _, Event::Error(error))) if !error.outcome_unknown);
    let there = stored.messages.iter().find(|(_, message)| message.client_message_id == client_message_id);
    if let Some((seq, _)) = there
        && answers.iter().all(definite)
    {
        let what = format!("{client_message_id} was refused and is entry {seq}");
        let seen =
            answers.iter().flat_map(|(sent, answers)| [sent.place].into_iter().chain(answers.iter().map(|a| a.0)));
        found.push(Violation::new(Class::RefusedButStored, &stored.session.id, what).seen(seen));
    }
}
