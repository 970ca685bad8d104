//! The calls about share links.

use chatbox_proto::{
    ids::{InvalidId, ShareId},
    status::Failure,
    v1,
};

use super::{convert, core::CoreService, page};
use crate::{
    domain::{
        entry::{Sender, Seq},
        time::Timestamp,
    },
    session::NewShare,
};

pub(super) async fn create(
    service: &CoreService,
    caller: &Sender,
    request: v1::CreateShareRequest,
) -> Result<v1::CreateShareResponse, Failure> {
    let id = convert::session_id("session_id", &request.session_id)?;
    convert::printable("request_id", &request.request_id)?;
    let expires_at = request.expire_time.map(|time| {
        Timestamp::from_millis(time.seconds.saturating_mul(1_000).saturating_add(i64::from(time.nanos) / 1_000_000))
    });
    let new = NewShare { live: request.live, expires_at, request_id: request.request_id };
    let (share, secret) = service.shares.create(caller, id, new).await?;
    Ok(v1::CreateShareResponse { share: Some(share), secret })
}

pub(super) async fn list(
    service: &CoreService,
    caller: &Sender,
    request: v1::ListSharesRequest,
) -> Result<v1::ListSharesResponse, Failure> {
    let id = convert::session_id("session_id", &request.session_id)?;
    let size = service.pages.size(request.page_size)?;
    let scope = page::scope("shares", &caller.user_id, &[&request.session_id]);
    let before = page::open::<16>(&service.sealer, &scope, &request.page_token)?.map(ShareId::from_bytes);
    let page = service.shares.list(&caller.user_id, id, before, size).await?;
    let next = page.next.map(|id| service.sealer.seal(&scope, id.as_bytes()));
    Ok(v1::ListSharesResponse { shares: page.shares, next_page_token: next.unwrap_or_default() })
}

pub(super) async fn revoke(
    service: &CoreService,
    caller: &Sender,
    request: v1::RevokeShareRequest,
) -> Result<v1::RevokeShareResponse, Failure> {
    let id = convert::session_id("session_id", &request.session_id)?;
    // Before the form of the other id, so that foreign sessions are told from nothing.
    service.sessions.owned(&caller.user_id, id).await?;
    let rule = |error: InvalidId| Failure::invalid("share_id", error.to_string());
    let share = request.share_id.parse().map_err(rule)?;
    Ok(v1::RevokeShareResponse { share: Some(service.shares.revoke(&caller.user_id, id, share).await?) })
}

pub(super) async fn shown(
    service: &CoreService,
    request: v1::GetSharedSessionRequest,
) -> Result<v1::GetSharedSessionResponse, Failure> {
    let size = service.pages.size(request.page_size)?;
    // Bound to the link alone: whoever has it may go on with its page.
    let scope = page::scope("shared", "", &[&request.share_id]);
    let after: Option<Seq> = page::open::<8>(&service.sealer, &scope, &request.page_token)?.map(u64::from_be_bytes);
    let page = service.shares.shown(&request.share_id, &request.secret, after.unwrap_or(0), size as usize).await?;
    Ok(v1::GetSharedSessionResponse {
        name: page.name,
        messages: page.messages,
        next_page_token: page.next.map(|seq| service.sealer.seal(&scope, &seq.to_be_bytes())).unwrap_or_default(),
    })
}
