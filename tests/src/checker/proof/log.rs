//! What must hold of the log itself, and of everything that is derived from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chatbox_proto::v1::{FinishReason, Message, entry::Kind};

use super::{Case, Class, Stored, Violation};

pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    let mut sent: HashMap<(&str, &str), BTreeSet<&str>> = HashMap::new();
    for message in case.sent() {
        let key = (message.user, message.send.client_message_id.as_str());
        sent.entry(key).or_default().insert(&message.send.text);
    }
    for (id, stored) in &case.sessions {
        numbering(id, stored, found);
        once(id, stored, found);
        for (seq, message) in &stored.messages {
            let user = message.sender.as_ref().map_or("", |sender| sender.user_id.as_str());
            let known = sent.get(&(user, message.client_message_id.as_str()));
            if user != stored.session.owner || !known.is_some_and(|texts| texts.contains(message.text.as_str())) {
                let what = format!("entry {seq} holds {message:?}, which nobody sent");
                found.push(Violation::new(Class::Invented, id, what));
            }
        }
        views(id, stored, found);
    }
}

/// 1, 2, 3 … without gaps, over documents and entries.
fn numbering(id: &str, stored: &Stored<'_>, found: &mut Vec<Violation>) {
    let mut next = 1;
    for &(first, count) in &stored.session.documents {
        if first != next {
            let what = format!("a document begins with {first} where {next} was expected");
            found.push(Violation::new(Class::LogBroken, id, what));
        }
        next = first + u64::from(count);
    }
    for (entry, expected) in stored.session.entries.iter().zip(1..) {
        if entry.seq != expected {
            let what = format!("entry {} where {expected} was expected", entry.seq);
            found.push(Violation::new(Class::LogBroken, id, what));
            return;
        }
    }
}

/// No message is there twice, neither by its own id nor by the one that its sender gave it.
fn once(id: &str, stored: &Stored<'_>, found: &mut Vec<Violation>) {
    let (mut by_id, mut by_client) = (BTreeMap::new(), BTreeMap::new());
    for (seq, message) in &stored.messages {
        let sender = message.sender.as_ref().map_or("", |sender| sender.user_id.as_str());
        let first = by_id.insert(message.message_id.as_str(), *seq);
        let first = by_client.insert((sender, message.client_message_id.as_str()), *seq).or(first);
        if let Some(first) = first {
            let what = format!("{} is entry {first} and entry {seq}", message.client_message_id);
            found.push(Violation::new(Class::StoredTwice, id, what));
        }
    }
}

fn views(id: &str, stored: &Stored<'_>, found: &mut Vec<Violation>) {
    let session = stored.session;
    if !session.state_differs.is_empty() {
        found.push(Violation::new(Class::ViewDiffers, id, format!("folded state: {}", session.state_differs)));
    }
    if session.unfinished {
        found.push(Violation::new(Class::LeftOver, id, "a reply row or the mark of an unfinished session".to_owned()));
    }
    if let Some(replay) = &session.replay
        && *replay != session.entries
    {
        let differs = replay.iter().zip(&session.entries).find(|(told, stored)| told != stored);
        let what = format!("{} entries replayed, {} stored; {differs:?}", replay.len(), session.entries.len());
        found.push(Violation::new(Class::ViewDiffers, id, what));
    }
    if let Some(history) = &session.history {
        let expected = history_of(stored);
        if let Some((told, expected)) = history.iter().zip(&expected).find(|(told, expected)| told != expected) {
            let what = format!("listed {told:?}, but the log says {expected:?}");
            found.push(Violation::new(Class::ViewDiffers, id, what));
        } else if history.len() != expected.len() {
            let what = format!("{} messages listed, the log has {}", history.len(), expected.len());
            found.push(Violation::new(Class::ViewDiffers, id, what));
        }
    }
}

/// The messages that follow from the entries.
fn history_of(stored: &Stored<'_>) -> Vec<Message> {
    let mut messages = Vec::new();
    for entry in &stored.session.entries {
        match &entry.kind {
            Some(Kind::Message(message)) => messages.push(message.clone()),
            Some(Kind::ReplyStarted(start)) => {
                use chatbox_proto::v1::{Reply, Sender, SenderRole};
                let mut reply = Reply {
                    finish_reason: FinishReason::Unspecified.into(),
                    model: start.model.clone(),
                    answers: start.answers.clone(),
                    supersedes: start.supersedes.clone(),
                    ..Reply::default()
                };
                let mut text = String::new();
                if let Some((seq, end)) = stored.finished.get(start.message_id.as_str()) {
                    reply.finish_reason = end.finish_reason;
                    reply.model.clone_from(&end.model);
                    reply.usage = end.usage;
                    reply.finished_seq = *seq;
                    reply.provider_request_id.clone_from(&end.provider_request_id);
                    reply.finish_time = stored.by_seq.get(seq).and_then(|entry| entry.create_time);
                    text.clone_from(&end.text);
                }
                messages.push(Message {
                    message_id: start.message_id.clone(),
                    seq: entry.seq,
                    sender: Some(Sender { role: SenderRole::Assistant.into(), ..Sender::default() }),
                    text,
                    create_time: entry.create_time,
                    reply: Some(reply),
                    ..Message::default()
                });
            }
            _ => {}
        }
    }
    messages
}
