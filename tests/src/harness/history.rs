//! The history of a session as each transport tells it.

use anyhow::{Result, ensure};
use chatbox_proto::v1::{ListMessagesRequest, ListMessagesResponse, Message, PageOrder};

use super::{grpc::Core, http::Http};

/// More pages than any scenario has.
const MAX_PAGES: usize = 1_000;

/// All messages, oldest first, by gRPC.
///
/// # Errors
/// When a page is refused.
pub async fn by_grpc(core: &mut Core, session_id: &str, page_size: i32) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = ListMessagesRequest {
            session_id: session_id.to_owned(),
            page_size,
            page_token,
            order: PageOrder::OldestFirst.into(),
            after_seq: 0,
        };
        let page = core.list_messages(request).await?.into_inner();
        messages.extend(page.messages);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    ensure!(page_token.is_empty(), "more than {MAX_PAGES} pages");
    Ok(messages)
}

/// All messages, oldest first, by HTTP.
///
/// # Errors
/// When a page is refused.
pub async fn by_http(http: &Http, session_id: &str, page_size: i32) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let path = format!(
            "/api/v1/sessions/{session_id}/messages?pageSize={page_size}&order=PAGE_ORDER_OLDEST_FIRST&pageToken={page_token}"
        );
        let page: ListMessagesResponse = http.get(&path).await?;
        messages.extend(page.messages);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    ensure!(page_token.is_empty(), "more than {MAX_PAGES} pages");
    Ok(messages)
}

/// What must hold of any history: in order, every message once, every reply ended.
///
/// # Errors
/// When it does not.
pub fn check(messages: &[Message]) -> Result<()> {
    for pair in messages.windows(2) {
        ensure!(pair[0].seq < pair[1].seq, "{} is followed by {}", pair[0].seq, pair[1].seq);
    }
    for message in messages {
        let same = messages.iter().filter(|other| other.message_id == message.message_id).count();
        ensure!(same == 1, "message {} is there {same} times", message.message_id);
        if let Some(reply) = &message.reply {
            ensure!(reply.finish_reason != 0, "reply {} has not ended", message.message_id);
        }
    }
    Ok(())
}

/// Fetches the history both ways, in pages of several sizes, and returns it when all agree.
///
/// # Errors
/// When they do not, or when it breaks a rule of [`check`].
pub async fn agreed(core: &mut Core, http: &Http, session_id: &str) -> Result<Vec<Message>> {
    let all = by_grpc(core, session_id, 0).await?;
    ensure!(
        by_grpc(core, session_id, 1).await? == all,
        "pages of one tell another history than pages of the default size"
    );
    ensure!(by_http(http, session_id, 3).await? == all, "HTTP tells another history than gRPC");
    check(&all)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use chatbox_proto::v1::Reply;

    use super::*;

    fn message(seq: u64, message_id: &str) -> Message {
        Message { seq, message_id: message_id.to_owned(), ..Message::default() }
    }

    #[test]
    fn disorder_doubles_and_open_replies_are_found() {
        assert!(check(&[message(1, "a"), message(3, "b")]).is_ok());
        assert!(check(&[message(3, "a"), message(1, "b")]).is_err());
        assert!(check(&[message(1, "a"), message(2, "a")]).is_err());
        let running = Message { reply: Some(Reply::default()), ..message(2, "b") };
        assert!(check(&[message(1, "a"), running]).is_err());
    }
}
