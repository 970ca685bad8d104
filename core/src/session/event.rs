//! Domain to wire: entries, messages and events in the form of the contract. Events are encoded here, once, whoever and how
//! many receive them.

use bytes::Bytes;
use chatbox_proto::{
    ids::MessageId,
    status::Failure,
    v1::{self, chat_response as response},
};
use prost::Message as _;

use crate::{
    domain::{
        entry::{EndReason, Entry, EntryKind, FinishReason, Message, Sender, SenderRole, Seq, Usage},
        session::{Responder, SessionState},
        time::Timestamp,
    },
    store::Header,
};

/// An event as it goes out.
pub fn encode(event: response::Event) -> Bytes {
    v1::ChatResponse { event: Some(event) }.encode_to_vec().into()
}

/// A durable fact.
pub fn entry(entry: &Entry) -> Bytes {
    encode(response::Event::Entry(wire_entry(entry)))
}

/// A frame was carried out.
pub fn ack(request_id: String, message_id: Option<MessageId>, seq: Seq, duplicate: bool) -> Bytes {
    let message_id = message_id.map(|id| id.to_string()).unwrap_or_default();
    encode(response::Event::Ack(response::Ack { request_id, message_id, seq, duplicate }))
}

/// A frame failed.
pub fn error(request_id: String, failure: Failure) -> Bytes {
    encode(response::Event::Error(failure.into_event(request_id)))
}

/// A piece of a running reply.
pub fn delta(message_id: MessageId, started_seq: Seq, offset: u32, text: &str) -> Bytes {
    encode(response::Event::ReplyDelta(response::ReplyDelta {
        message_id: message_id.to_string(),
        started_seq,
        offset,
        next_offset: offset + length(text),
        text: text.to_owned(),
    }))
}

/// All of a running reply from `offset` on.
pub fn snapshot(message_id: MessageId, started_seq: Seq, offset: u32, text: &str, model: &str) -> Bytes {
    encode(response::Event::ReplySnapshot(response::ReplySnapshot {
        message_id: message_id.to_string(),
        started_seq,
        offset,
        next_offset: offset + length(text),
        text: text.to_owned(),
        model: model.to_owned(),
    }))
}

/// The stream lives.
pub fn heartbeat(head: Seq) -> Bytes {
    encode(response::Event::Heartbeat(response::Heartbeat { head, server_time: Some(wire_time(Timestamp::now())) }))
}

/// The server is leaving.
pub fn going_away(reason: &str, retry_after: std::time::Duration, close_code: u16) -> Bytes {
    encode(response::Event::GoingAway(response::GoingAway {
        reason: reason.to_owned(),
        retry_after: Some(retry_after.into()),
        close_code: close_code.into(),
    }))
}

/// Bytes of a reply as the wire counts them: replies are capped far below 4 GiB where they are generated.
pub fn length(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// The session as the contract shows it.
pub fn wire_session(id: &str, owner: &str, created_at: Timestamp, state: &SessionState) -> v1::Session {
    let (responder, held_by) = match &state.responder {
        Responder::Assistant => (v1::Responder::Assistant, None),
        Responder::Admin(admin) => (v1::Responder::Admin, Some(wire_sender(admin))),
    };
    let help = match (&state.responder, state.help_requested_at) {
        (Responder::Admin(_), _) => Some(v1::HelpState::Assigned),
        (Responder::Assistant, Some(_)) => Some(v1::HelpState::Requested),
        (Responder::Assistant, None) if state.epoch > 0 => Some(v1::HelpState::Released),
        (Responder::Assistant, None) => None,
    };
    v1::Session {
        session_id: id.to_owned(),
        owner: owner.to_owned(),
        name: state.name.clone(),
        model: state.model.clone(),
        status: if state.ended.is_some() { v1::SessionStatus::Ended } else { v1::SessionStatus::Active }.into(),
        responder: responder.into(),
        held_by,
        help: help.map(|help| v1::Help {
            state: help.into(),
            request_time: state.help_requested_at.map(wire_time),
            ..v1::Help::default()
        }),
        create_time: Some(wire_time(created_at)),
        last_activity_time: Some(wire_time(state.last_activity)),
        end_time: state.ended.map(|end| wire_time(end.at)),
        message_count: state.message_count,
        head: state.head,
        usage: Some(wire_usage(state.usage)),
    }
}

/// What the header of a session says in the clear, when its sealed state cannot be read: it has no model and no responder.
pub fn unreadable_session(header: &Header) -> v1::Session {
    let ended = header.derived.ended;
    v1::Session {
        session_id: header.id.to_string(),
        owner: header.owner.clone(),
        status: if ended { v1::SessionStatus::Ended } else { v1::SessionStatus::Active }.into(),
        create_time: Some(wire_time(header.created_at)),
        last_activity_time: Some(wire_time(header.derived.last_activity)),
        head: header.derived.applied_seq,
        ..v1::Session::default()
    }
}

/// An entry as the contract shows it.
pub fn wire_entry(entry: &Entry) -> v1::Entry {
    use v1::entry as wire;
    let at = entry.fact.at;
    let kind = match &entry.fact.kind {
        EntryKind::Message(message) => wire::Kind::Message(wire_message(entry.seq, at, message)),
        EntryKind::ReplyStarted(reply) => wire::Kind::ReplyStarted(wire::ReplyStarted {
            message_id: reply.id.to_string(),
            model: reply.model.clone(),
            answers: reply.answers.iter().map(ToString::to_string).collect(),
            supersedes: reply.supersedes.map(|id| id.to_string()).unwrap_or_default(),
        }),
        EntryKind::ReplyFinished(reply) => wire::Kind::ReplyFinished(wire::ReplyFinished {
            message_id: reply.id.to_string(),
            started_seq: reply.started_seq,
            text: reply.text.clone(),
            finish_reason: wire_finish(reply.finish).into(),
            usage: Some(wire_usage(reply.usage)),
            provider_request_id: reply.provider_request_id.clone().unwrap_or_default(),
            model: reply.model.clone(),
        }),
        EntryKind::ModelSelected { model } => wire::Kind::ModelSelected(wire::ModelSelected { model: model.clone() }),
        EntryKind::HelpRequested { reason } => {
            wire::Kind::HelpRequested(wire::HelpRequested { reason: reason.clone() })
        }
        EntryKind::TakenOver { admin, previous } => wire::Kind::TakenOver(wire::TakenOver {
            admin: Some(wire_sender(admin)),
            previous: previous.as_ref().map(wire_sender),
        }),
        EntryKind::Released { admin } => {
            wire::Kind::Released(wire::Released { admin: admin.as_ref().map(wire_sender), lapsed: admin.is_none() })
        }
        EntryKind::Renamed { name, automatic } => {
            wire::Kind::Renamed(wire::Renamed { name: name.clone(), automatic: *automatic })
        }
        EntryKind::Shared { share_id, revoked } => {
            wire::Kind::Shared(wire::Shared { share_id: share_id.clone(), revoked: *revoked })
        }
        EntryKind::Ended { by, reason } => wire::Kind::Ended(wire::Ended {
            by: by.as_ref().map(wire_sender),
            reason: match reason {
                EndReason::User => v1::EndReason::User,
                EndReason::Admin => v1::EndReason::Admin,
                EndReason::Idle => v1::EndReason::Idle,
            }
            .into(),
        }),
        EntryKind::Reopened { by } => wire::Kind::Reopened(wire::Reopened { by: Some(wire_sender(by)) }),
        EntryKind::Erased { by } => wire::Kind::Erased(wire::Erased { by: Some(wire_sender(by)) }),
    };
    v1::Entry { seq: entry.seq, create_time: Some(wire_time(at)), kind: Some(kind) }
}

/// A person's message as the contract shows it.
pub fn wire_message(seq: Seq, at: Timestamp, message: &Message) -> v1::Message {
    v1::Message {
        message_id: message.id.to_string(),
        seq,
        sender: Some(wire_sender(&message.sender)),
        text: message.text.clone(),
        create_time: Some(wire_time(at)),
        client_message_id: message.client_message_id.clone().unwrap_or_default(),
        reply: None,
        file_ids: message.file_ids.clone(),
    }
}

/// The assistant as a sender.
pub fn wire_assistant() -> v1::Sender {
    v1::Sender { role: v1::SenderRole::Assistant.into(), ..v1::Sender::default() }
}

/// A sender as the contract shows it.
pub fn wire_sender(sender: &Sender) -> v1::Sender {
    v1::Sender {
        role: match sender.role {
            SenderRole::User => v1::SenderRole::User,
            SenderRole::Admin => v1::SenderRole::Admin,
            SenderRole::System => v1::SenderRole::System,
        }
        .into(),
        user_id: sender.user_id.clone(),
        display_name: sender.display_name.clone(),
    }
}

/// A finish reason as the contract shows it.
pub fn wire_finish(finish: FinishReason) -> v1::FinishReason {
    match finish {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Cancelled => v1::FinishReason::Cancelled,
        FinishReason::Superseded => v1::FinishReason::Superseded,
        FinishReason::Interrupted => v1::FinishReason::Interrupted,
        FinishReason::ProviderError => v1::FinishReason::ProviderError,
        FinishReason::Filtered => v1::FinishReason::Filtered,
        FinishReason::Timeout => v1::FinishReason::Timeout,
        FinishReason::BudgetExhausted => v1::FinishReason::BudgetExhausted,
    }
}

/// Usage as the contract shows it.
pub fn wire_usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: usage.cached_tokens,
        estimated: usage.estimated,
    }
}

/// A time as the contract shows it.
pub fn wire_time(time: Timestamp) -> chatbox_proto::time::Timestamp {
    chatbox_proto::time::Timestamp::from_millis(time.millis())
}
