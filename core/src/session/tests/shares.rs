//! Share links: who sees what, for how long.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chatbox_proto::{
    ids::{SessionId, ShareId},
    status::Failure,
};

use super::{
    fixture::{Client, Core, sender},
    shared::held,
};
use crate::{
    domain::time::Timestamp,
    session::{Frame, NewShare, Shares},
    store::{
        RequestKey, ShareStore, StoreError,
        shares::{Share, ShareCreated, ShareRevoked},
    },
};

/// Links whose store stands outside of a paused clock.
#[derive(Debug)]
pub(crate) struct Timeless(pub(crate) Arc<dyn ShareStore>);

#[async_trait]
impl ShareStore for Timeless {
    async fn create_share(
        &self,
        share: Share,
        request: Option<RequestKey>,
        limit: u32,
    ) -> Result<ShareCreated, StoreError> {
        held(self.0.create_share(share, request, limit)).await
    }

    async fn share(&self, id: ShareId) -> Result<Option<Share>, StoreError> {
        held(self.0.share(id)).await
    }

    async fn shares(
        &self,
        session_id: SessionId,
        before: Option<ShareId>,
        limit: u32,
    ) -> Result<Vec<Share>, StoreError> {
        held(self.0.shares(session_id, before, limit)).await
    }

    async fn revoke_share(&self, session_id: SessionId, id: ShareId) -> Result<ShareRevoked, StoreError> {
        held(self.0.revoke_share(session_id, id)).await
    }

    async fn remove_shares(&self, session_id: SessionId) -> Result<u64, StoreError> {
        held(self.0.remove_shares(session_id)).await
    }
}

fn shares(core: &Core) -> Shares {
    Shares::new(core.sessions.clone(), core.place.shares.clone())
}

async fn exchange(core: &Core, client: &mut Client, id: &str, answer: &str) {
    client.post("", client.message(id, id)).await;
    let turn = core.turn().await;
    turn.say(answer).await;
    turn.finish().await;
    client.finished().await;
}

fn new(live: bool) -> NewShare {
    NewShare { live, expires_at: None, request_id: String::new() }
}

fn in_(delay: i64) -> Option<Timestamp> {
    Some(Timestamp::from_millis(Timestamp::now().millis() + delay))
}

async fn texts(shares: &Shares, id: &str, secret: &str) -> Result<Vec<String>, Failure> {
    let page = shares.shown(id, secret, 0, 100).await?;
    Ok(page.messages.into_iter().map(|message| message.text).collect())
}

#[tokio::test]
async fn a_snapshot_shows_what_was_there_and_a_live_link_what_is_there() {
    let core = Core::start().await;
    let shares = shares(&core);
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    exchange(&core, &mut client, "one", "first").await;
    client.post("", client.message("two", "two")).await;
    let turn = core.turn().await;
    turn.say("secret until it is finished").await;
    client.started().await;
    let alice = sender("alice");
    let (snapshot, key) = shares.create(&alice, id, new(false)).await.unwrap();
    let (live, live_key) = shares.create(&alice, id, new(true)).await.unwrap();
    turn.finish().await;
    client.finished().await;
    exchange(&core, &mut client, "three", "third").await;
    assert!(!snapshot.live && live.live);
    assert_eq!(texts(&shares, &snapshot.share_id, &key).await.unwrap(), ["one", "first", "two"]);
    let all = ["one", "first", "two", "secret until it is finished", "three", "third"];
    assert_eq!(texts(&shares, &live.share_id, &live_key).await.unwrap(), all);
    // Page by page, each message once.
    let (mut paged, mut after) = (Vec::new(), 0);
    loop {
        let page = shares.shown(&live.share_id, &live_key, after, 2).await.unwrap();
        paged.extend(page.messages.into_iter().map(|message| message.text));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(paged, all);
    // Nobody learns who they are.
    for message in shares.shown(&live.share_id, &live_key, 0, 100).await.unwrap().messages {
        let sender = message.sender.unwrap();
        assert_eq!((sender.user_id.as_str(), sender.display_name.as_str()), ("", ""));
        assert!(message.client_message_id.is_empty());
    }
    // An ended session can still be read.
    client.frame(Frame::EndSession).await.unwrap();
    assert_eq!(texts(&shares, &live.share_id, &live_key).await.unwrap(), all);
    core.stop().await;
}

#[tokio::test]
async fn whatever_is_wrong_with_a_link_gets_one_answer() {
    let core = Core::start().await;
    let shares = shares(&core);
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    exchange(&core, &mut client, "one", "first").await;
    let alice = sender("alice");
    let (good, key) = shares.create(&alice, id, new(true)).await.unwrap();
    let (other, other_key) = shares.create(&alice, id, new(true)).await.unwrap();
    let soon = NewShare { expires_at: in_(1_500), ..new(true) };
    let (expiring, expiring_key) = shares.create(&alice, id, soon).await.unwrap();
    let revoked = other.share_id.parse().unwrap();
    assert!(shares.revoke("alice", id, revoked).await.unwrap().revoked);
    assert!(shares.revoke("alice", id, revoked).await.unwrap().revoked, "once more is no mistake");
    let expired = async {
        while texts(&shares, &expiring.share_id, &expiring_key).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    super::fixture::patiently("the link to expire", expired).await;
    let answer = texts(&shares, "no id", &key).await.unwrap_err();
    assert_eq!(answer.reason, "SHARE_NOT_FOUND");
    let unknown = chatbox_proto::ids::ShareId::generate().to_string();
    for (id, secret) in [
        (unknown.as_str(), key.as_str()),
        (&good.share_id, ""),
        (&good.share_id, &other_key),
        (&good.share_id, &key[1..]),
        (&other.share_id, &other_key),
        (&expiring.share_id, &expiring_key),
    ] {
        assert_eq!(texts(&shares, id, secret).await.unwrap_err(), answer, "{id} {secret}");
    }
    assert!(texts(&shares, &good.share_id, &key).await.is_ok());
    // Nor does anybody else's session.
    assert_eq!(shares.create(&sender("mallory"), id, new(true)).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    let theirs = good.share_id.parse().unwrap();
    assert_eq!(shares.revoke("mallory", id, theirs).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    assert_eq!(shares.list("mallory", id, None, 10).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    let never = NewShare { expires_at: in_(-1_000), ..new(true) };
    assert_eq!(shares.create(&alice, id, never).await.unwrap_err().violations[0].0, "expire_time");
    core.stop().await;
}

#[tokio::test]
async fn a_repeated_call_makes_one_link_with_one_secret() {
    let core = Core::start().await;
    let shares = shares(&core);
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    let alice = sender("alice");
    let call = || NewShare { request_id: "r1".into(), ..new(true) };
    let first = shares.create(&alice, id, call()).await.unwrap();
    assert_eq!(shares.create(&alice, id, call()).await.unwrap(), first);
    assert!(texts(&shares, &first.0.share_id, &first.1).await.is_ok());
    let other = NewShare { live: false, ..call() };
    assert_eq!(shares.create(&alice, id, other).await.unwrap_err().reason, "REQUEST_ID_REUSED");
    // Each link and each revocation is in the log once.
    shares.revoke("alice", id, first.0.share_id.parse().unwrap()).await.unwrap();
    shares.revoke("alice", id, first.0.share_id.parse().unwrap()).await.unwrap();
    assert_eq!(core.sessions.get("alice", id).await.unwrap().head, 2);
    core.stop().await;
}

#[tokio::test]
async fn a_session_has_so_many_links_and_lists_them_newest_first() {
    let core = Core::start().await;
    let shares = shares(&core);
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    let (alice, mut made) = (sender("alice"), Vec::new());
    for _ in 0..100 {
        made.push(shares.create(&alice, id, new(true)).await.unwrap().0.share_id);
    }
    assert_eq!(shares.create(&alice, id, new(true)).await.unwrap_err().reason, "TOO_MANY_SHARES");
    shares.revoke("alice", id, made[7].parse().unwrap()).await.unwrap();
    made.push(shares.create(&alice, id, new(true)).await.unwrap().0.share_id);
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let page = shares.list("alice", id, before, 30).await.unwrap();
        listed.extend(page.shares);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    made.reverse();
    assert_eq!(listed.iter().map(|share| share.share_id.clone()).collect::<Vec<_>>(), made);
    assert_eq!(listed.iter().filter(|share| share.revoked).count(), 1);
    core.stop().await;
}

#[tokio::test]
async fn an_erased_session_leaves_no_link_behind() {
    let core = Core::start().await;
    let shares = shares(&core);
    let mut client = core.open("alice").await;
    let id: SessionId = client.opened().await.session.unwrap().session_id.parse().unwrap();
    exchange(&core, &mut client, "one", "first").await;
    let alice = sender("alice");
    let (live, key) = shares.create(&alice, id, new(true)).await.unwrap();
    core.sessions.erase(&alice, id).await.unwrap();
    assert_eq!(texts(&shares, &live.share_id, &key).await.unwrap_err().reason, "SHARE_NOT_FOUND");
    assert_eq!(core.place.shares.shares(id, None, 10).await.unwrap(), []);
    assert_eq!(shares.create(&alice, id, new(true)).await.unwrap_err().reason, "SESSION_NOT_FOUND");
    core.stop().await;
}
