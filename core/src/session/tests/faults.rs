//! A store that hangs, fails or answers too late where a test says so, and lets paused time stand still while it works.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use chatbox_proto::ids::{MessageId, SessionId};

use super::fixture::Core;
use crate::store::{
    ActiveSession, Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument, MessageKey,
    NewSession, ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError, StoreErrorKind,
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Nothing happens, and it fails.
    Fail(StoreErrorKind),
    /// It happens, and fails all the same.
    DoneAndFail(StoreErrorKind),
    /// Nothing happens, and there is no answer.
    Hang,
    /// It happens, and there is no answer.
    DoneAndHang,
    /// It happens once it is [released](Faults::release).
    Held,
}

#[derive(Debug)]
struct Plan {
    skip: u32,
    times: u32,
    fault: Fault,
}

/// What is going to go wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    plans: Mutex<HashMap<&'static str, Plan>>,
    /// So many of the next appends find a rival in their place that is gone when it is looked for.
    conflicts: AtomicU32,
    /// How many entries each read backwards asked for.
    read_before: Mutex<Vec<u32>>,
    released: tokio::sync::watch::Sender<bool>,
}

impl Faults {
    /// What is held goes on, and nothing is held any more.
    pub(super) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Of the calls of this method from now on the first `skip` pass, then so many go wrong.
    pub(super) fn plan(&self, method: &'static str, skip: u32, times: u32, fault: Fault) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).insert(method, Plan { skip, times, fault });
    }

    /// So many of the next appends conflict.
    pub(super) fn conflict(&self, times: u32) {
        self.conflicts.store(times, Ordering::Relaxed);
    }

    /// Everything works again.
    pub(super) fn clear(&self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many entries each read backwards has asked for since the last time.
    pub(super) fn take_read_before(&self) -> Vec<u32> {
        std::mem::take(&mut self.read_before.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn next(&self, method: &str) -> Option<Fault> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.get_mut(method)?;
        if plan.skip > 0 {
            plan.skip -= 1;
            return None;
        }
        plan.times = plan.times.checked_sub(1)?;
        Some(plan.fault)
    }

    async fn run<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self.next(method) {
            None => still(call).await,
            Some(Fault::Fail(kind)) => Err(StoreError::bare(kind, method)),
            Some(Fault::DoneAndFail(kind)) => {
                still(call).await?;
                Err(StoreError::bare(kind, method))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::DoneAndHang) => {
                still(call).await?;
                std::future::pending().await
            }
            Some(Fault::Held) => {
                let _ = self.released.subscribe().wait_for(|released| *released).await;
                still(call).await
            }
        }
    }
}

/// Paused time runs on by itself when all tasks wait, also for a thread of the store: it stands still while blocking work
/// is under way, so there is some for as long as the call takes.
async fn still<T>(call: impl Future<Output = T>) -> T {
    let (done, called) = std::sync::mpsc::sync_channel::<()>(1);
    let standing = tokio::task::spawn_blocking(move || {
        let _ = called.recv();
    });
    let result = call.await;
    drop(done);
    standing.await.unwrap();
    result
}

#[derive(Debug)]
struct FaultyStore {
    inner: Arc<dyn SessionStore>,
    faults: Arc<Faults>,
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        #[async_trait::async_trait]
        impl SessionStore for FaultyStore {
            fn is_shared(&self) -> bool {
                self.inner.is_shared()
            }
            async fn read_before(&self, id: SessionId, before: u64, limit: u32) -> Result<Vec<LogDocument>, StoreError> {
                self.faults.read_before.lock().unwrap_or_else(PoisonError::into_inner).push(limit);
                self.faults.run("read_before", self.inner.read_before(id, before, limit)).await
            }
            async fn append(&self, append: Append) -> Result<Appended, StoreError> {
                let conflicts = &self.faults.conflicts;
                if conflicts.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    return Ok(Appended::Conflict);
                }
                self.faults.run("append", self.inner.append(append)).await
            }
            async fn close(&self) {
                still(self.inner.close()).await;
            }
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
                self.faults.run(stringify!($name), self.inner.$name($($arg),*)).await
            })*
        }
    };
}

pass! {
    create_session(new: NewSession) -> Created;
    session(id: SessionId) -> Option<Header>;
    active_session(owner: &str) -> Option<Header>;
    list_sessions(query: SessionQuery) -> Vec<Header>;
    find_append(session_id: SessionId, append_id: AppendId) -> Option<u64>;
    find_message(session_id: SessionId, key: KeyedHash) -> Option<MessageKey>;
    head(session_id: SessionId) -> u64;
    heads(sessions: &[SessionId]) -> Vec<(SessionId, u64)>;
    read_after(session_id: SessionId, after: u64, limit: u32) -> Vec<LogDocument>;
    replace_derived(session_id: SessionId, expected: u64, derived: Derived) -> bool;
    active_sessions(after: Option<SessionId>, limit: u32) -> Vec<ActiveSession>;
    unfinished_sessions(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, u64)>;
    reply_rows(after: Option<MessageId>, limit: u32) -> Vec<ReplyLease>;
    replace_wrapped_key(session_id: SessionId, expected: Vec<u8>, new: Vec<u8>) -> bool;
    erase_session(session_id: SessionId, fence: u64) -> bool;
    remove_reply(message_id: MessageId) -> ();
    wrapped_keys(after: Option<SessionId>, limit: u32) -> Vec<(SessionId, Vec<u8>)>;
    replace_installation_value(name: &str, expected: Vec<u8>, new: Vec<u8>) -> bool;
    reply_row(session_id: SessionId) -> Option<ReplyRow>;
    renew_reply(message_id: MessageId, boot_id: BootId, expected: u64, checkpoint: Vec<u8>) -> bool;
    mark_read(session_id: SessionId, user_id: &str, seq: u64) -> ();
    read_marks(session_id: SessionId) -> Vec<(String, u64)>;
    installation_value(name: &str) -> Option<Vec<u8>>;
    init_installation_value(name: &str, value: Vec<u8>) -> Vec<u8>;
    ping() -> ();
}

/// A core on such a store.
pub(super) async fn faulty() -> (Core, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let decorate = |inner| Arc::new(FaultyStore { inner, faults: faults.clone() }) as Arc<dyn SessionStore>;
    let core = Core::start_with(decorate).await;
    (core, faults)
}
