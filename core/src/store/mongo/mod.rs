//! The store for several cores: a MongoDB replica set.
//!
//! Everything here knows MongoDB and nothing of what is inside the sealed bytes. How the contract is kept without
//! transactions:
//!
//! - **One append is one document** with its numbers, its message keys and whether it ends the session; a document is all or
//!   nothing. Three unique keys decide races: the append's id (`_id`), its place (session, first number), and each message
//!   key (session, key). An append is only tried at a head that is the end of a durable document, or 0 for a session that
//!   exists. Documents are never changed or removed, so an end stays an end, and what follows it can begin at one place only:
//!   whoever gets it has appended at the head, and the numbers have no gaps.
//! - **Acknowledged is what a majority has in its journals.** Nothing else is ever read, and from the primary alone. Reads of
//!   heads and of what decides wait for a `barrier`, after which they see all that was acknowledged before they began, by
//!   whichever core: no head ever steps back, failover or not.
//! - **A duplicate is not interpreted.** The place, the id and the keys are read again after a barrier, which a majority has
//!   only when it has the rival. When nothing is found there any more, the append is tried again.
//! - **An unknown outcome is resolved for good** by a stand-in: [`find_append`](SessionStore::find_append) puts a document
//!   with the attempt's id in its place. Whether it is the attempt or the stand-in that is there, a majority has it, `_id` is
//!   unique, and the other one can only fail, on this primary or the next, however late it arrives: also out of our own
//!   queue, out of a stopped server's socket, or tried again by the driver.
//! - **A slot is free when the end is in the log.** The header's field is a copy that follows; whoever needs a slot, or
//!   reads a header that holds one, looks into the log, and mends the header. An append that brings a session back claims a
//!   slot first, under its own id: the claim holds if that append is in the log, and is void when a stand-in is (`slots`).
//! - **Companions follow** the answer in one task's order; reads in this process that could miss them wait for it. Only
//!   that a session needs looking after is written beside the append, so that a crash in between does not hide it.

mod audit;
mod barrier;
mod budgets;
mod companions;
mod connection;
mod document;
mod ends;
mod fault;
mod handoff;
mod log;
mod marks;
mod outbox;
mod reading;
mod replies;
mod schema;
mod sessions;
mod shares;
mod slots;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chatbox_proto::{
    ids::{MessageId, SessionId},
    token::Secret,
};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    barrier::Barrier,
    companions::Companions,
    connection::Connection,
    ends::Ends,
    fault::{Access, Fault},
    reading::Level,
    writer::Writer,
};
use super::{
    ActiveSession, Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument, MessageKey,
    NewSession, ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError, StoreErrorKind,
};
use crate::domain::entry::Seq;

/// How a [`MongoStore`] behaves.
#[derive(Debug, Clone)]
pub struct MongoOptions {
    /// `mongodb://…`, with a database or without.
    pub uri: Secret,
    /// Time for one call of the trait.
    pub call_timeout: Duration,
    /// Connections to each server at most.
    pub pool_size: u32,
}

/// Sessions and their logs in a MongoDB replica set.
#[derive(Debug)]
pub struct MongoStore {
    shared: Shared,
    tasks: TaskTracker,
    /// Cuts the tasks that do not come to their end.
    cut: CancellationToken,
    closed: AtomicBool,
}

/// What the parts work with.
#[derive(Debug)]
struct Shared {
    connection: Connection,
    writer: Writer,
    companions: Companions,
    barrier: Barrier,
    ends: Arc<Ends>,
}

impl MongoStore {
    /// Connects, checks that the servers can keep the promises, and brings the database to the current version. Dropping
    /// the store without [`close`](SessionStore::close) lets its tasks finish what was accepted.
    ///
    /// # Errors
    /// `Refused` for what will not get better by waiting: a bad URI, a server that stands alone, a database of a newer
    /// version. No error shows the URI.
    pub async fn open(options: &MongoOptions) -> Result<Self, StoreError> {
        let connect = async {
            let connection = Connection::new(options).await?;
            connection.check().await?;
            schema::migrate(&connection).await?;
            Ok(connection)
        };
        // Several calls, each with a limit of its own; nothing of it matters when it is cut.
        let connection = timeout(options.call_timeout * 4, connect).await.unwrap_or(Err(Fault::TimedOut));
        let connection = connection.map_err(|fault: Fault| fault.during("open", Access::Read))?;
        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let ends = Arc::new(Ends::default());
        let (companions, companion_task) = Companions::new(connection.clone());
        let (writer, writer_task) = Writer::new(connection.clone(), Arc::clone(&ends), companions.clone());
        tasks.spawn(cut.clone().run_until_cancelled_owned(writer_task.run()));
        tasks.spawn(cut.clone().run_until_cancelled_owned(companion_task.run()));
        let (barrier, barrier_task) = Barrier::new(&connection);
        tasks.spawn(cut.clone().run_until_cancelled_owned(barrier_task.run()));
        let shared = Shared { connection, writer, companions, barrier, ends };
        Ok(Self { shared, tasks, cut, closed: AtomicBool::new(false) })
    }

    /// A call with its limit, when the store is open.
    async fn call<T>(
        &self,
        operation: &'static str,
        access: Access,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.shared.connection.limit;
        self.call_until(deadline, operation, access, work).await
    }

    async fn call_until<T>(
        &self,
        deadline: Instant,
        operation: &'static str,
        access: Access,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::bare(StoreErrorKind::Unavailable, operation));
        }
        match timeout_at(deadline, work).await {
            Ok(result) => result.map_err(|fault| fault.during(operation, access)),
            Err(_) => Err(StoreError::bare(access.unclear(), operation)),
        }
    }

    /// Like [`call`](Self::call), when what this process wrote before is there to be read.
    async fn settled<T>(
        &self,
        operation: &'static str,
        access: Access,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.shared.connection.limit;
        self.call_until(deadline, operation, Access::Read, self.shared.companions.settled()).await?;
        self.call_until(deadline, operation, access, work).await
    }
}

#[async_trait]
impl SessionStore for MongoStore {
    async fn create_session(&self, new: NewSession) -> Result<Created, StoreError> {
        self.settled("create_session", Access::Write, sessions::create(&self.shared, new)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Header>, StoreError> {
        self.settled("session", Access::Read, sessions::by_id(&self.shared, id, Level::Current)).await
    }

    async fn active_session(&self, owner: &str) -> Result<Option<Header>, StoreError> {
        self.settled("active_session", Access::Read, sessions::active(&self.shared, owner)).await
    }

    async fn list_sessions(&self, query: SessionQuery) -> Result<Vec<Header>, StoreError> {
        self.settled("list_sessions", Access::Read, sessions::list(&self.shared, query)).await
    }

    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let deadline = Instant::now() + self.shared.connection.limit;
        // Until here nothing can have been written.
        if !self.call_until(deadline, "append", Access::Read, log::fits(&self.shared, &append)).await? {
            return Ok(Appended::Conflict);
        }
        let Some(rule) = append.takes_slot else {
            return self.call_until(deadline, "append", Access::Write, log::append(&self.shared, append)).await;
        };
        // What this leaves behind without the append is void, and freed by whoever needs the slot.
        if !self.call_until(deadline, "append", Access::Read, slots::claim(&self.shared, &append, rule)).await? {
            return Ok(Appended::NoSlot);
        }
        let (id, claim) = (append.session_id, append.append_id);
        let appended = self.call_until(deadline, "append", Access::Write, log::append(&self.shared, append)).await?;
        if appended == Appended::Conflict {
            self.call_until(deadline, "append", Access::Read, slots::release(&self.shared, id, claim)).await?;
        }
        Ok(appended)
    }

    async fn find_append(&self, session_id: SessionId, append_id: AppendId) -> Result<Option<Seq>, StoreError> {
        self.call("find_append", Access::Read, log::find_append(&self.shared, session_id, append_id)).await
    }

    async fn find_message(&self, session_id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, StoreError> {
        self.call("find_message", Access::Read, log::find_message(&self.shared, session_id, key)).await
    }

    async fn head(&self, session_id: SessionId) -> Result<Seq, StoreError> {
        self.call("head", Access::Read, log::head(&self.shared, session_id)).await
    }

    async fn heads(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        self.call("heads", Access::Read, log::heads(&self.shared, sessions)).await
    }

    async fn read_after(&self, session_id: SessionId, after: Seq, limit: u32) -> Result<Vec<LogDocument>, StoreError> {
        self.call("read_after", Access::Read, log::read_after(&self.shared, session_id, after, limit)).await
    }

    async fn read_before(
        &self,
        session_id: SessionId,
        before: Seq,
        limit: u32,
    ) -> Result<Vec<LogDocument>, StoreError> {
        self.call("read_before", Access::Read, log::read_before(&self.shared, session_id, before, limit)).await
    }

    async fn replace_derived(
        &self,
        session_id: SessionId,
        expected: Seq,
        derived: Derived,
    ) -> Result<bool, StoreError> {
        let replace = sessions::replace_expected(&self.shared, session_id, expected, &derived);
        self.settled("replace_derived", Access::Write, replace).await
    }

    async fn active_sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<ActiveSession>, StoreError> {
        self.settled("active_sessions", Access::Read, sessions::active_sessions(&self.shared, after, limit)).await
    }

    async fn unfinished_sessions(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        self.settled("unfinished_sessions", Access::Read, sessions::unfinished(&self.shared, after, limit)).await
    }

    async fn reply_row(&self, session_id: SessionId) -> Result<Option<ReplyRow>, StoreError> {
        self.settled("reply_row", Access::Read, replies::latest(&self.shared, session_id)).await
    }

    async fn reply_rows(&self, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, StoreError> {
        self.settled("reply_rows", Access::Read, replies::leases(&self.shared, after, limit)).await
    }

    async fn renew_reply(
        &self,
        message_id: MessageId,
        boot_id: BootId,
        expected: u64,
        checkpoint: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let renew = replies::renew(&self.shared, message_id, boot_id, expected, &checkpoint);
        self.settled("renew_reply", Access::Write, renew).await
    }

    async fn replace_wrapped_key(
        &self,
        session_id: SessionId,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let replace = sessions::replace_key(&self.shared, session_id, &expected, &new);
        self.call("replace_wrapped_key", Access::Write, replace).await
    }

    async fn erase_session(&self, session_id: SessionId, fence: Seq) -> Result<bool, StoreError> {
        self.settled("erase_session", Access::Write, sessions::erase(&self.shared, session_id, fence)).await
    }

    async fn remove_reply(&self, message_id: MessageId) -> Result<(), StoreError> {
        self.settled("remove_reply", Access::Write, replies::remove(&self.shared, message_id)).await
    }

    async fn wrapped_keys(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Vec<u8>)>, StoreError> {
        self.call("wrapped_keys", Access::Read, sessions::keys(&self.shared, after, limit)).await
    }

    async fn mark_read(&self, session_id: SessionId, user_id: &str, seq: Seq) -> Result<(), StoreError> {
        self.call("mark_read", Access::Write, marks::mark_read(&self.shared, session_id, user_id, seq)).await
    }

    async fn read_marks(&self, session_id: SessionId) -> Result<Vec<(String, Seq)>, StoreError> {
        self.call("read_marks", Access::Read, marks::read_marks(&self.shared, session_id)).await
    }

    async fn installation_value(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.call("installation_value", Access::Read, marks::value(&self.shared, name)).await
    }

    async fn init_installation_value(&self, name: &str, value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let init = marks::init_value(&self.shared, name, &value);
        self.call("init_installation_value", Access::Write, init).await
    }

    async fn replace_installation_value(
        &self,
        name: &str,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let replace = marks::replace_value(&self.shared, name, &expected, &new);
        self.call("replace_installation_value", Access::Write, replace).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // With a small write, which the primary answers only while a majority follows it.
        let ask = async { marks::value(&self.shared, "").await.map(drop) };
        self.call("ping", Access::Read, ask).await
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // The tasks end one after the other: the one that appends has companions to bring until then.
        self.shared.writer.close();
        self.shared.barrier.close();
        self.tasks.close();
        // One write may be in flight and one group behind it; without a server nothing more would come of it.
        if timeout(self.shared.connection.limit * 2, self.tasks.wait()).await.is_err() {
            tracing::warn!("the store was closed with work left");
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}
