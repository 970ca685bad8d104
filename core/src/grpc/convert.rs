//! Wire to domain, with the form of every field checked: lengths, alphabets, ranges. What passes here is well-formed;
//! whether it is allowed is decided further down.

use chatbox_proto::{
    ids::{MessageId, SessionId, is_client_id},
    status::Failure,
    v1::{ChatRequest, chat_request as request},
};

use crate::{
    domain::entry::{Message, Sender},
    session::{Frame, MAX_NAME},
};

/// Characters of the reason that a visitor gives for wanting a person.
const MAX_HELP_REASON: usize = 1_000;

/// A frame of a client, checked for form.
#[derive(Debug)]
pub(super) enum ClientFrame {
    Open(Open),
    Room(Frame),
    /// Whether there is such a model for the caller is not known here.
    SelectModel(String),
    RefreshToken(String),
    Detach,
}

/// An open frame, checked for form.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) session: Option<SessionId>,
    pub(super) after_seq: Option<u64>,
    pub(super) reply: Option<(MessageId, u32)>,
    pub(super) model: String,
    /// Why an admin opens somebody else's.
    pub(super) reason: String,
}

/// The frame in a request of `sender`, whose messages hold at most `max_text` bytes.
pub(super) fn frame(request: ChatRequest, sender: Option<&Sender>, max_text: usize) -> Result<ClientFrame, Failure> {
    use request::Frame as Wire;
    let Some(frame) = request.frame else {
        return Err(Failure::invalid("frame", "exactly one known frame must be set"));
    };
    Ok(match frame {
        Wire::Open(frame) => ClientFrame::Open(open(frame)?),
        Wire::Send(frame) => {
            let sender = sender.ok_or_else(not_open)?;
            ClientFrame::Room(Frame::Send(send(frame, sender.clone(), max_text)?))
        }
        Wire::Stop(frame) => ClientFrame::Room(Frame::Stop(message_id("stop.message_id", &frame.message_id)?)),
        Wire::Typing(frame) => ClientFrame::Room(Frame::Typing(frame.active)),
        Wire::Read(frame) => ClientFrame::Room(Frame::Read(frame.seq)),
        Wire::EndSession(_) => ClientFrame::Room(Frame::EndSession),
        Wire::RefreshToken(frame) => ClientFrame::RefreshToken(frame.token),
        Wire::Detach(_) => ClientFrame::Detach,
        Wire::Regenerate(frame) => {
            ClientFrame::Room(Frame::Regenerate(message_id("regenerate.message_id", &frame.message_id)?))
        }
        Wire::SelectModel(frame) => {
            bounded("select_model.model", &frame.model, 128)?;
            ClientFrame::SelectModel(frame.model)
        }
        Wire::RequestHelp(mut frame) => {
            frame.reason.retain(|c| c != '\0');
            bounded("request_help.reason", &frame.reason, MAX_HELP_REASON)?;
            ClientFrame::Room(Frame::RequestHelp(frame.reason))
        }
    })
}

/// The answer to a frame that needs an open stream.
pub(super) fn not_open() -> Failure {
    Failure::new(chatbox_proto::error_code::ErrorCode::FailedPrecondition, "NOT_OPEN", "the first frame must be open")
}

fn open(frame: request::Open) -> Result<Open, Failure> {
    if !frame.token.is_empty() {
        return Err(Failure::invalid("open.token", "only the edge takes a token here; use the authorization metadata"));
    }
    let session = match frame.session_id.as_str() {
        "" => None,
        id => Some(session_id("open.session_id", id)?),
    };
    if frame.after_seq.is_some() && session.is_none() {
        return Err(Failure::invalid("open.after_seq", "needs open.session_id"));
    }
    let reply = match frame.reply {
        Some(position) => Some((message_id("open.reply.message_id", &position.message_id)?, position.next_offset)),
        None => None,
    };
    bounded("open.model", &frame.model, 128)?;
    Ok(Open { session, after_seq: frame.after_seq, reply, model: frame.model, reason: frame.reason })
}

fn send(frame: request::Send, sender: Sender, max_text: usize) -> Result<Message, Failure> {
    if frame.client_message_id.is_empty() {
        return Err(Failure::invalid("send.client_message_id", "1 to 64 printable ASCII characters"));
    }
    printable("send.client_message_id", &frame.client_message_id)?;
    if !frame.file_ids.is_empty() {
        return Err(Failure::invalid("send.file_ids", "files are not available yet"));
    }
    let mut text = frame.text;
    // Text is opaque; NUL alone is taken out, since neither stores nor providers agree on it.
    text.retain(|c| c != '\0');
    if text.is_empty() || text.len() > max_text {
        return Err(Failure::invalid("send.text", format!("1 to {max_text} bytes of UTF-8")));
    }
    Ok(Message {
        id: MessageId::generate(),
        sender,
        client_message_id: Some(frame.client_message_id),
        text,
        file_ids: Vec::new(),
    })
}

/// A session id, or the name of the field and its rule.
pub(super) fn session_id(field: &'static str, text: &str) -> Result<SessionId, Failure> {
    text.parse().map_err(|error: chatbox_proto::ids::InvalidId| Failure::invalid(field, error.to_string()))
}

fn message_id(field: &'static str, text: &str) -> Result<MessageId, Failure> {
    text.parse().map_err(|error: chatbox_proto::ids::InvalidId| Failure::invalid(field, error.to_string()))
}

/// The name of a session: on one line, without space around it.
pub(super) fn name(field: &'static str, text: String) -> Result<String, Failure> {
    let name = text.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Failure::invalid(field, format!("1 to {MAX_NAME} characters without control characters")));
    }
    Ok(name.to_owned())
}

/// At most 64 printable ASCII characters; may be empty.
pub(super) fn printable(field: &'static str, text: &str) -> Result<(), Failure> {
    if is_client_id(text) { Ok(()) } else { Err(Failure::invalid(field, "at most 64 printable ASCII characters")) }
}

/// At most `max` characters.
pub(super) fn bounded(field: &'static str, text: &str, max: usize) -> Result<(), Failure> {
    // No character is shorter than a byte: short texts need no count.
    if text.len() <= max || text.chars().count() <= max {
        Ok(())
    } else {
        Err(Failure::invalid(field, format!("at most {max} characters")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::entry::SenderRole;

    const MAX_TEXT: usize = 32 * 1024;

    fn sender() -> Sender {
        Sender { role: SenderRole::User, user_id: "alice".into(), display_name: String::new() }
    }

    fn violation(result: Result<ClientFrame, Failure>) -> String {
        result.unwrap_err().violations.first().map(|(field, _)| field.to_string()).unwrap_or_default()
    }

    fn send_frame(id: &str, text: &str) -> ChatRequest {
        let send = request::Send { client_message_id: id.into(), text: text.into(), file_ids: Vec::new() };
        ChatRequest { request_id: String::new(), frame: Some(request::Frame::Send(send)) }
    }

    fn help_frame(reason: &str) -> ChatRequest {
        let help = request::RequestHelp { reason: reason.into() };
        ChatRequest { request_id: String::new(), frame: Some(request::Frame::RequestHelp(help)) }
    }

    #[test]
    fn every_bad_field_is_named() {
        let cases = [
            (send_frame("", "x"), "send.client_message_id"),
            (send_frame(&"i".repeat(65), "x"), "send.client_message_id"),
            (send_frame("a b", "x"), "send.client_message_id"),
            (send_frame("é", "x"), "send.client_message_id"),
            (send_frame("a", ""), "send.text"),
            (send_frame("a", "\0\0"), "send.text"),
            (send_frame("a", &"x".repeat(MAX_TEXT + 1)), "send.text"),
            (ChatRequest::default(), "frame"),
            (help_frame(&"é".repeat(MAX_HELP_REASON + 1)), "request_help.reason"),
        ];
        for (request, field) in cases {
            assert_eq!(violation(frame(request, Some(&sender()), MAX_TEXT)), field);
        }
    }

    #[test]
    fn text_loses_nul_and_nothing_else() {
        let text = "<b> & \"q\" 'x' \0 ünï\r\n";
        let Ok(ClientFrame::Room(Frame::Send(message))) = frame(send_frame("a", text), Some(&sender()), MAX_TEXT)
        else {
            panic!("not a send");
        };
        assert_eq!(message.text, "<b> & \"q\" 'x'  ünï\r\n");
    }

    #[test]
    fn names_are_one_line_of_so_many_characters() {
        for bad in ["", "  ", "a\nb", "a\0", &"ü".repeat(MAX_NAME + 1)] {
            assert_eq!(name("name", bad.to_owned()).unwrap_err().violations[0].0, "name", "{bad:?}");
        }
        assert_eq!(name("name", format!(" {} ", "ü".repeat(MAX_NAME))).unwrap(), "ü".repeat(MAX_NAME));
    }

    #[test]
    fn the_longest_text_passes() {
        assert!(frame(send_frame("a", &"x".repeat(MAX_TEXT)), Some(&sender()), MAX_TEXT).is_ok());
    }

    #[test]
    fn a_token_in_open_is_not_for_core() {
        let open = request::Open { token: "t".into(), ..request::Open::default() };
        let request = ChatRequest { request_id: String::new(), frame: Some(request::Frame::Open(open)) };
        assert_eq!(violation(frame(request, None, MAX_TEXT)), "open.token");
    }
}
