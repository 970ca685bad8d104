//! Share links: whoever has the secret of one sees the session, or what it was when the link was made, until the link
//! expires or is revoked. The secret is stored as a keyed hash; whatever is wrong with a link gets one answer.
//!
//! The link comes first and its entry in the session's log second, on creation as on revocation: a crash in between leaves
//! a link that nobody was told of, or one that works no longer, and no entry of it.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chatbox_proto::{
    error_code::ErrorCode,
    ids::{SessionId, ShareId},
    status::Failure,
    v1,
};

use super::{
    SessionError,
    event::wire_time,
    history::{Bounds, HistoryReader},
    room::Change,
    sessions::{PAGE_BYTES, Sessions},
};
use crate::{
    domain::{
        entry::{Sender, Seq},
        time::Timestamp,
    },
    store::{KeyedHash, RequestKey, Share, ShareCreated, ShareRevoked, ShareStore, StoreError},
};

/// Links of one session that are not revoked.
const MAX_SHARES: u32 = 100;

/// A link works at most so long, unless it is to work for ever.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

/// Share links, for the owners of sessions and for whoever has one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shares {
    sessions: Sessions,
    store: Arc<dyn ShareStore>,
}

/// What a new link is to be.
#[derive(Debug, Clone)]
pub struct NewShare {
    /// It follows the session.
    pub live: bool,
    /// When it stops working; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// Idempotency of the call; may be empty.
    pub request_id: String,
}

/// A page of links.
#[derive(Debug)]
pub struct SharePage {
    /// Newest first.
    pub shares: Vec<v1::Share>,
    /// Where the next page goes on.
    pub next: Option<ShareId>,
}

/// What a link shows.
#[derive(Debug)]
pub struct SharedPage {
    /// Name of the session.
    pub name: String,
    /// Oldest first.
    pub messages: Vec<v1::Message>,
    /// Where the next page goes on.
    pub next: Option<Seq>,
}

impl Shares {
    /// On top of sessions.
    #[must_use]
    pub fn new(sessions: Sessions, store: Arc<dyn ShareStore>) -> Self {
        Self { sessions, store }
    }

    /// Makes a link of the caller's session; the secret is told this once.
    ///
    /// # Errors
    /// `NOT_FOUND`, `INVALID_ARGUMENT`, `ALREADY_EXISTS` `REQUEST_ID_REUSED`, `RESOURCE_EXHAUSTED` `TOO_MANY_SHARES`.
    pub async fn create(&self, caller: &Sender, id: SessionId, new: NewShare) -> Result<(v1::Share, String), Failure> {
        let now = Timestamp::now();
        check_expiry(new.expires_at, now)?;
        // The session at its head: what is shown is what is there now, and a destroyed one cannot be read.
        let head = self.sessions.get(&caller.user_id, id).await?.head;
        let (secret, request) = self.secret(&caller.user_id, id, &new);
        let share_id = ShareId::generate();
        let share = Share {
            id: share_id,
            session_id: id,
            secret_hash: self.hash(&secret),
            snapshot: (!new.live).then_some(head),
            created_at: now,
            expires_at: new.expires_at,
            revoked: false,
        };
        let made = self.call(self.store.create_share(share.clone(), request, MAX_SHARES)).await;
        let share = match made.map_err(|error| self.report(&error).outcome_unknown())? {
            ShareCreated::New => {
                let change = Change::Share { id: share_id.to_string(), revoked: false };
                if let Err(failure) = self.sessions.change(&caller.user_id, id, change).await {
                    if failure.code == ErrorCode::NotFound {
                        // Erased meanwhile, maybe after its other links were removed.
                        self.call(self.store.remove_shares(id)).await.map_err(|error| self.report(&error))?;
                    }
                    return Err(failure);
                }
                share
            }
            ShareCreated::Repeated(earlier) => earlier,
            ShareCreated::RequestReused => {
                let text = "this request_id was used with other fields";
                return Err(Failure::new(ErrorCode::AlreadyExists, "REQUEST_ID_REUSED", text));
            }
            ShareCreated::TooMany => {
                let text = format!("a session has at most {MAX_SHARES} links; revoke one first");
                return Err(Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_SHARES", text));
            }
        };
        Ok((wire_share(&share), secret))
    }

    /// A random secret; that of an idempotent call is the same each time, so that a repeat after a lost answer is of use.
    fn secret(&self, caller: &str, id: SessionId, new: &NewShare) -> (String, Option<RequestKey>) {
        if new.request_id.is_empty() {
            return (URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()), None);
        }
        let secret = self.sessions.secret();
        let session = id.as_bytes().as_slice();
        let request = [caller.as_bytes(), session, new.request_id.as_bytes()];
        let expires = new.expires_at.map_or(0, Timestamp::millis).to_be_bytes();
        let key = RequestKey {
            id: secret.hash("create share", &request),
            content: secret.hash("create share content", &[&[u8::from(new.live)], &expires]),
        };
        let halves = [secret.hash("share secret 1", &request), secret.hash("share secret 2", &request)];
        (URL_SAFE_NO_PAD.encode(halves.concat()), Some(key))
    }

    fn hash(&self, secret: &str) -> KeyedHash {
        self.sessions.secret().hash("share secret", &[secret.as_bytes()])
    }

    /// The links of the caller's session, newest first.
    ///
    /// # Errors
    /// `NOT_FOUND`; failures of the store.
    pub async fn list(
        &self,
        caller: &str,
        id: SessionId,
        before: Option<ShareId>,
        limit: u32,
    ) -> Result<SharePage, Failure> {
        self.sessions.owned(caller, id).await?;
        let listed = self.call(self.store.shares(id, before, limit + 1)).await;
        let mut shares = listed.map_err(|error| self.report(&error))?;
        let more = shares.len() > limit as usize;
        shares.truncate(limit as usize);
        let next = shares.last().filter(|_| more).map(|share| share.id);
        Ok(SharePage { shares: shares.iter().map(wire_share).collect(), next })
    }

    /// Makes a link of the caller's session stop working; one that does not is returned unchanged.
    ///
    /// # Errors
    /// `NOT_FOUND` for the session and for the link; failures of the store.
    pub async fn revoke(&self, caller: &str, id: SessionId, share: ShareId) -> Result<v1::Share, Failure> {
        self.sessions.owned(caller, id).await?;
        let revoked = self.call(self.store.revoke_share(id, share)).await;
        match revoked.map_err(|error| self.report(&error).outcome_unknown())? {
            ShareRevoked::Now(share) => {
                let change = Change::Share { id: share.id.to_string(), revoked: true };
                self.sessions.change(caller, id, change).await?;
                Ok(wire_share(&share))
            }
            ShareRevoked::Before(share) => Ok(wire_share(&share)),
            ShareRevoked::Unknown => Err(not_found()),
        }
    }

    /// What a link shows, from after this entry on.
    ///
    /// # Errors
    /// The same `NOT_FOUND` for links that there are not, that need another secret, that have expired or were revoked, and
    /// for those of sessions whose content was destroyed; failures of the store.
    pub async fn shown(&self, id: &str, secret: &str, after: Seq, limit: usize) -> Result<SharedPage, Failure> {
        let given = self.hash(secret);
        let share = match id.parse() {
            Ok(id) => self.call(self.store.share(id)).await.map_err(|error| self.report(&error))?,
            Err(_) => None,
        };
        let share = share.filter(|share| {
            let expired = share.expires_at.is_some_and(|at| at <= Timestamp::now());
            // All of it is looked at, whatever comes out.
            same(&share.secret_hash, &given) & !expired & !share.revoked
        });
        let share = share.ok_or_else(not_found)?;
        let header = self.sessions.header(share.session_id).await?;
        let header = header.filter(|header| !header.wrapped_key.is_empty()).ok_or_else(not_found)?;
        let read = async {
            let log = self.sessions.log(&header)?;
            let state = log.state(&header.derived).await?;
            let bounds = Bounds { messages: limit, bytes: PAGE_BYTES };
            let page = HistoryReader::new(&log).page_after(after, bounds).await?;
            Ok::<_, SessionError>((state, page))
        };
        let (state, page) =
            read.await.map_err(|error| self.sessions.report(&error, "a shared session could not be read"))?;
        if state.erased {
            return Err(not_found());
        }
        let last = page.messages.last().map(|message| message.seq).filter(|_| page.more);
        let shown = |message: &v1::Message| share.snapshot.is_none_or(|head| is_within(message, head));
        let messages: Vec<_> = page.messages.into_iter().filter(shown).map(without_people).collect();
        let next = last.filter(|seq| share.snapshot.is_none_or(|head| *seq < head));
        Ok(SharedPage { name: state.name, messages, next })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, SessionError> {
        match tokio::time::timeout(self.sessions.call_limit(), call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(SessionError::StoreTimeout),
        }
    }

    fn report(&self, error: &SessionError) -> Failure {
        self.sessions.report(error, "share links are not available")
    }
}

fn check_expiry(expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), Failure> {
    let longest = i64::try_from(LONGEST.as_millis()).unwrap_or(i64::MAX);
    match expires_at {
        Some(at) if at <= now || at.millis() > now.millis().saturating_add(longest) => {
            Err(Failure::invalid("expire_time", "must be in the future, and within ten years"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether a message was there in this form when the head was this one.
fn is_within(message: &v1::Message, head: Seq) -> bool {
    message.seq <= head && message.reply.as_ref().is_none_or(|reply| reply.finished_seq <= head)
}

/// A message as strangers see it: in which capacity somebody wrote, and not who.
fn without_people(mut message: v1::Message) -> v1::Message {
    message.client_message_id.clear();
    message.file_ids.clear();
    if let Some(sender) = &mut message.sender {
        sender.user_id.clear();
        sender.display_name.clear();
    }
    if let Some(reply) = &mut message.reply {
        reply.provider_request_id.clear();
        reply.usage = None;
    }
    message
}

fn wire_share(share: &Share) -> v1::Share {
    v1::Share {
        share_id: share.id.to_string(),
        session_id: share.session_id.to_string(),
        live: share.snapshot.is_none(),
        create_time: Some(wire_time(share.created_at)),
        expire_time: share.expires_at.map(wire_time),
        revoked: share.revoked,
    }
}

fn not_found() -> Failure {
    Failure::new(ErrorCode::NotFound, "SHARE_NOT_FOUND", "there is no such link, or it works no longer")
}

/// In a time that does not depend on where they differ.
fn same(one: &KeyedHash, other: &KeyedHash) -> bool {
    one.iter().zip(other).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
}
