//! The decorator: the real store, and before and after its calls what was asked for.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use chatbox_core::{
    domain::entry::{EntryKind, Seq},
    seal::{DataKey, KeyRing},
    store::{
        ActiveSession, Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument,
        MessageKey, NewSession, ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError, StoreErrorKind,
    },
};
use chatbox_proto::ids::{MessageId, SessionId};
use rustix::process::{Signal, getpid, kill_process};

use super::{
    Call, Failpoint, Lie, Side,
    lie::{changed, second_end, wrong_state},
};

/// Appends of all sessions before a lie begins that needs a past.
const HONEST: u64 = 12;

/// What a [`FaultyStore`] does to its calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Orders {
    /// Dies there.
    pub failpoint: Option<Failpoint>,
    /// Says what is not so.
    pub lie: Option<Lie>,
    /// Loses folded states that go with appends, as the contract of a store allows: the next opener repairs them.
    pub forgetful: bool,
}

/// A store that dies, lies or forgets.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn SessionStore>,
    ring: KeyRing,
    orders: Orders,
    calls: AtomicU64,
    appends: AtomicU64,
    past: Mutex<Past>,
}

/// What a lie has to remember.
#[derive(Debug, Default)]
struct Past {
    /// Sessions whose appends are not written any more.
    unwritten: HashSet<SessionId>,
    /// The folded states as they were first.
    first: HashMap<SessionId, Derived>,
}

impl FaultyStore {
    /// Around a store whose sessions are sealed with this ring.
    #[must_use]
    pub fn new(inner: Arc<dyn SessionStore>, ring: KeyRing, orders: Orders) -> Self {
        let (calls, appends) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { inner, ring, orders, calls, appends, past: Mutex::default() }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Guards plain data and is never held over an await.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call on its first side.
    fn enter(&self, call: Call) -> u64 {
        if self.orders.failpoint.is_none_or(|failpoint| failpoint.call != call) {
            return 0;
        }
        let nth = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.reach(call, Side::Before, nth);
        nth
    }

    /// Dies if this is where to die.
    fn reach(&self, call: Call, side: Side, nth: u64) {
        if self.orders.failpoint == Some(Failpoint { call, side, nth }) {
            tracing::error!(call = call.name(), ?side, nth, "failpoint");
            // Nothing of this process runs after it: no destructor, no flush.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// A write between its two sides.
    async fn write<T>(
        &self,
        call: Call,
        write: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let nth = self.enter(call);
        let result = write.await;
        self.reach(call, Side::After, nth);
        result
    }

    async fn key(&self, id: SessionId) -> Result<DataKey, StoreError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| StoreError::new(StoreErrorKind::Internal, "lie", source);
        let header = self.inner.session(id).await?.ok_or_else(|| failed("no such session".into()))?;
        self.ring.unwrap(id, &header.wrapped_key).map_err(|error| failed(error.into()))
    }

    /// The append as this store writes it, and what it writes behind it; `None`: nothing.
    async fn told(&self, append: Append) -> Result<Option<(Append, Option<Append>)>, StoreError> {
        let count = self.appends.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(lie) = self.orders.lie else { return Ok(Some((self.forgetful(append), None))) };
        let failed =
            |error: anyhow::Error| StoreError::new(StoreErrorKind::Internal, "lie", error.into_boxed_dyn_error());
        let past = count > HONEST;
        Ok(Some(match lie {
            Lie::AckUnwritten => {
                let mut known = self.past();
                if past {
                    known.unwritten.insert(append.session_id);
                }
                if known.unwritten.contains(&append.session_id) {
                    return Ok(None);
                }
                (append, None)
            }
            Lie::ChangedText if past => {
                let key = self.key(append.session_id).await?;
                let change = |kind: &mut EntryKind| {
                    if let EntryKind::Message(message) = kind {
                        message.text.push('!');
                    }
                };
                (changed(append, &key, change).map_err(failed)?, None)
            }
            Lie::DroppedAnswer => {
                let key = self.key(append.session_id).await?;
                let change = |kind: &mut EntryKind| {
                    if let EntryKind::ReplyStarted(start) = kind {
                        start.answers.truncate(1);
                    }
                };
                (changed(append, &key, change).map_err(failed)?, None)
            }
            Lie::SecondEnd if past => {
                let key = self.key(append.session_id).await?;
                let again = second_end(&append, &key).map_err(failed)?;
                (append, again)
            }
            Lie::LostRepeat => (Append { messages: Vec::new(), ..append }, None),
            Lie::StaleState => {
                let key = self.key(append.session_id).await?;
                (wrong_state(append, &key).map_err(failed)?, None)
            }
            Lie::ChangedText | Lie::SecondEnd | Lie::Reverse | Lie::Double | Lie::Gap | Lie::LostCheckpoint => {
                (append, None)
            }
        }))
    }

    /// Most folded states are lost.
    fn forgetful(&self, append: Append) -> Append {
        let first = self.past().first.get(&append.session_id).cloned();
        match first.filter(|_| self.orders.forgetful && !append.expected_head.is_multiple_of(3)) {
            // One that is older than what is there changes nothing.
            Some(derived) => Append { derived, ..append },
            None => append,
        }
    }
}

#[async_trait]
impl SessionStore for FaultyStore {
    async fn create_session(&self, new: NewSession) -> Result<Created, StoreError> {
        self.past().first.insert(new.id, new.derived.clone());
        self.write(Call::CreateSession, self.inner.create_session(new)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Header>, StoreError> {
        self.inner.session(id).await
    }

    async fn active_session(&self, owner: &str) -> Result<Option<Header>, StoreError> {
        self.inner.active_session(owner).await
    }

    async fn list_sessions(&self, query: SessionQuery) -> Result<Vec<Header>, StoreError> {
        self.inner.list_sessions(query).await
    }

    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let head = append.expected_head + u64::from(append.count);
        let Some((append, behind)) = self.told(append).await? else { return Ok(Appended::Done(head)) };
        let appended = self.write(Call::Append, self.inner.append(append)).await?;
        if let (Appended::Done(_), Some(behind)) = (appended, behind) {
            self.inner.append(behind).await?;
        }
        Ok(appended)
    }

    async fn find_append(&self, session_id: SessionId, append_id: AppendId) -> Result<Option<Seq>, StoreError> {
        self.inner.find_append(session_id, append_id).await
    }

    async fn find_message(&self, session_id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, StoreError> {
        self.inner.find_message(session_id, key).await
    }

    async fn head(&self, session_id: SessionId) -> Result<Seq, StoreError> {
        self.inner.head(session_id).await
    }

    async fn heads(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        self.inner.heads(sessions).await
    }

    async fn read_after(&self, session_id: SessionId, after: Seq, limit: u32) -> Result<Vec<LogDocument>, StoreError> {
        let documents = self.inner.read_after(session_id, after, limit).await?;
        Ok(match self.orders.lie {
            Some(lie) => lie.read(documents),
            None => documents,
        })
    }

    async fn read_before(
        &self,
        session_id: SessionId,
        before: Seq,
        limit: u32,
    ) -> Result<Vec<LogDocument>, StoreError> {
        self.inner.read_before(session_id, before, limit).await
    }

    async fn replace_derived(
        &self,
        session_id: SessionId,
        expected: Seq,
        derived: Derived,
    ) -> Result<bool, StoreError> {
        self.write(Call::ReplaceDerived, self.inner.replace_derived(session_id, expected, derived)).await
    }

    async fn active_sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<ActiveSession>, StoreError> {
        self.inner.active_sessions(after, limit).await
    }

    async fn unfinished_sessions(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        self.inner.unfinished_sessions(after, limit).await
    }

    async fn reply_rows(&self, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, StoreError> {
        self.inner.reply_rows(after, limit).await
    }

    async fn replace_wrapped_key(
        &self,
        session_id: SessionId,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.inner.replace_wrapped_key(session_id, expected, new).await
    }

    async fn erase_session(&self, session_id: SessionId, fence: Seq) -> Result<bool, StoreError> {
        self.write(Call::EraseSession, self.inner.erase_session(session_id, fence)).await
    }

    async fn remove_reply(&self, message_id: MessageId) -> Result<(), StoreError> {
        self.inner.remove_reply(message_id).await
    }

    async fn wrapped_keys(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Vec<u8>)>, StoreError> {
        self.inner.wrapped_keys(after, limit).await
    }

    async fn replace_installation_value(
        &self,
        name: &str,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.inner.replace_installation_value(name, expected, new).await
    }

    async fn reply_row(&self, session_id: SessionId) -> Result<Option<ReplyRow>, StoreError> {
        self.inner.reply_row(session_id).await
    }

    async fn renew_reply(
        &self,
        message_id: MessageId,
        boot_id: BootId,
        expected: u64,
        checkpoint: Vec<u8>,
    ) -> Result<bool, StoreError> {
        if self.orders.lie == Some(Lie::LostCheckpoint) {
            return Ok(true);
        }
        self.write(Call::RenewReply, self.inner.renew_reply(message_id, boot_id, expected, checkpoint)).await
    }

    async fn mark_read(&self, session_id: SessionId, user_id: &str, seq: Seq) -> Result<(), StoreError> {
        self.write(Call::MarkRead, self.inner.mark_read(session_id, user_id, seq)).await
    }

    async fn read_marks(&self, session_id: SessionId) -> Result<Vec<(String, Seq)>, StoreError> {
        self.inner.read_marks(session_id).await
    }

    async fn installation_value(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.installation_value(name).await
    }

    async fn init_installation_value(&self, name: &str, value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        self.write(Call::InitInstallationValue, self.inner.init_installation_value(name, value)).await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
