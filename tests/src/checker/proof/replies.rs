//! What must hold of replies: each message is answered by one, each has one end, and its text is the provider's.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use chatbox_proto::v1::{
    FinishReason,
    chat_request::Frame,
    chat_response::Event,
    entry::{Kind, ReplyFinished},
};

use super::{Case, Class, Stored, Violation};
use crate::checker::{
    record::{Place, Step},
    topology::STORE_RECOVERS,
};

/// Beyond the checkpoint interval: the room looks every 500 ms at the latest, and the machine may be slow.
const SLACK: Duration = Duration::from_millis(2_000);

pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    let stops = stops(case);
    for (id, stored) in &case.sessions {
        course(id, stored, found);
        answers(id, stored, found);
        for (seq, end) in stored.finished.values() {
            outcome(stored, (*seq, end), &stops, case.record.faults.is_empty(), found);
        }
    }
    checkpoints(case, found);
}

/// Replies that somebody asked to stop.
fn stops(case: &Case<'_>) -> HashSet<String> {
    let mut stops = HashSet::new();
    for (_, _, connection) in case.record.connections() {
        for sighting in &connection.steps {
            if let Step::Sent { frame: Frame::Stop(stop), .. } = &sighting.step {
                stops.insert(stop.message_id.clone());
            }
        }
    }
    stops
}

/// One reply at a time, each begins once and ends once.
fn course(id: &str, stored: &Stored<'_>, found: &mut Vec<Violation>) {
    let mut running: Option<&str> = None;
    let mut over: BTreeSet<&str> = BTreeSet::new();
    for entry in &stored.session.entries {
        match &entry.kind {
            Some(Kind::ReplyStarted(start)) => {
                if let Some(other) = running {
                    let what = format!("entry {} starts {} while {other} runs", entry.seq, start.message_id);
                    found.push(Violation::new(Class::Overlap, id, what));
                }
                running = Some(&start.message_id);
            }
            Some(Kind::ReplyFinished(end)) => {
                let begun = stored.started.get(end.message_id.as_str());
                if !over.insert(&end.message_id) || begun.is_none_or(|(seq, _)| *seq != end.started_seq) {
                    let what = format!("entry {} ends {} which began at {begun:?}", entry.seq, end.message_id);
                    found.push(Violation::new(Class::EndedTwice, id, what));
                }
                running = running.filter(|running| *running != end.message_id);
            }
            _ => {}
        }
    }
    for (message_id, (seq, _)) in &stored.started {
        if !over.contains(message_id) {
            let what = format!("reply {message_id}, started by entry {seq}, has no end");
            found.push(Violation::new(Class::Unended, id, what));
        }
    }
}

/// Each message is named by exactly one reply, which starts after it.
fn answers(id: &str, stored: &Stored<'_>, found: &mut Vec<Violation>) {
    let mut answered: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (seq, start) in stored.started.values() {
        for message_id in &start.answers {
            answered.entry(message_id).or_default().push(*seq);
        }
    }
    for (seq, message) in &stored.messages {
        let by = answered.remove(message.message_id.as_str()).unwrap_or_default();
        let what = || format!("entry {seq} ({}) is answered by the replies at {by:?}", message.client_message_id);
        match by.as_slice() {
            [] => found.push(Violation::new(Class::Unanswered, id, what())),
            [only] if only > seq => {}
            _ => found.push(Violation::new(Class::AnsweredTwice, id, what())),
        }
    }
    for (message_id, by) in answered {
        let what = format!("the replies at {by:?} answer {message_id}, which is no message");
        found.push(Violation::new(Class::AnsweredTwice, id, what));
    }
}

/// The end is one that something caused, and the text is what the provider gave as far as it came.
fn outcome(
    stored: &Stored<'_>,
    (seq, end): (u64, &ReplyFinished),
    stops: &HashSet<String>,
    undisturbed: bool,
    found: &mut Vec<Violation>,
) {
    let id = stored.session.id.as_str();
    let Some(plan) = stored.plan(&end.message_id) else {
        let what = format!("entry {seq} ends a reply to no message");
        return found.push(Violation::new(Class::WrongOutcome, id, what));
    };
    let whole = plan.whole();
    let reason = end.finish_reason();
    let ended_session =
        matches!(stored.by_seq.values().next_back().map(|entry| &entry.kind), Some(Some(Kind::Ended(_))));
    let caused = match reason {
        FinishReason::Stop | FinishReason::Length | FinishReason::ProviderError => plan.end.outcome() == Some(reason),
        FinishReason::Cancelled => stops.contains(&end.message_id) || ended_session,
        FinishReason::Interrupted => !undisturbed,
        FinishReason::Unspecified | FinishReason::Superseded | FinishReason::Filtered | FinishReason::Timeout => false,
    };
    if !caused {
        let what = format!("entry {seq} ends the reply to {} as {reason:?}", plan.name);
        found.push(Violation::new(Class::WrongOutcome, id, what));
    }
    let complete = plan.end.outcome() == Some(reason);
    let right = if complete { end.text == whole } else { whole.starts_with(&end.text) };
    if !right {
        let what = format!("entry {seq} ends {reason:?} with {:?}, the provider's text is {whole:?}", end.text);
        found.push(Violation::new(Class::TextDiffers, id, what));
    }
}

/// A reply that a death has cut is short by at most one checkpoint: what was streamed well before the death is kept.
fn checkpoints(case: &Case<'_>, found: &mut Vec<Violation>) {
    let ends = first_seen_ends(case);
    for (place, _, connection) in case.record.connections() {
        let Some((id, stored)) = connection.session_id().and_then(|id| case.sessions.get_key_value(id)) else {
            continue;
        };
        for (step, event) in connection.events() {
            let (message_id, reached) = match event {
                Event::ReplyDelta(delta) => (&delta.message_id, delta.next_offset),
                Event::ReplySnapshot(shot) => (&shot.message_id, shot.next_offset),
                _ => continue,
            };
            let Some((_, end)) = stored.finished.get(message_id.as_str()) else { continue };
            if end.finish_reason() != FinishReason::Interrupted || end.text.len() >= reached as usize {
                continue;
            }
            let at = connection.steps[step].at;
            let until = lived_until(case, at, ends.get(message_id.as_str()).map(|(at, _)| *at));
            let age = working_time(case, at, until);
            if age > case.rules.checkpoint + SLACK {
                let kept = end.text.len();
                let what = format!("{reached} bytes were streamed {age:?} before the end, {kept} are kept");
                let seen =
                    [Place { step, ..place }].into_iter().chain(ends.get(message_id.as_str()).map(|(_, at)| *at));
                found.push(Violation::new(Class::CheckpointLost, id, what).seen(seen));
            }
        }
    }
}

/// When and where the end of each reply was seen first.
fn first_seen_ends<'a>(case: &Case<'a>) -> BTreeMap<&'a str, (Duration, Place)> {
    let mut ends: BTreeMap<&str, (Duration, Place)> = BTreeMap::new();
    for (place, _, connection) in case.record.connections() {
        for (step, event) in connection.events() {
            if let Event::Entry(entry) = event
                && let Some(Kind::ReplyFinished(end)) = &entry.kind
            {
                let seen = (connection.steps[step].at, Place { step, ..place });
                let first = ends.entry(&end.message_id).or_insert(seen);
                *first = (*first).min(seen);
            }
        }
    }
    ends
}

/// How long the core that streamed at `at` can have gone on: to its death, or to the end of the reply.
fn lived_until(case: &Case<'_>, at: Duration, end: Option<Duration>) -> Duration {
    let deaths = case.record.faults.iter().filter(|inflicted| inflicted.fault.kills_core());
    // A process that fell by itself did so at some time between two looks.
    deaths.filter(|death| death.until > at).map(|death| death.from.max(at)).chain(end).min().unwrap_or(at)
}

/// The time between two moments, without that in which core could not work or its store not write.
fn working_time(case: &Case<'_>, from: Duration, until: Duration) -> Duration {
    let halts = case.record.faults.iter().filter_map(|inflicted| {
        let fault = inflicted.fault;
        let longer = if fault.halts_store() { STORE_RECOVERS } else { Duration::ZERO };
        (fault.halts_core() || fault.halts_store()).then_some((inflicted.from, inflicted.until + longer))
    });
    let halted: Duration = halts.map(|(begun, over)| over.min(until).saturating_sub(begun.max(from))).sum();
    until.saturating_sub(from).saturating_sub(halted)
}
