//! The embedded store: one file, one owner process, one thread that writes in groups, a few that read.
//!
//! Everything here knows SQLite and nothing of what is inside the sealed bytes. Writes go `mod → writer thread →
//! {sessions, log, replies, marks}` and are answered after the group's commit is synced; reads go through the reader
//! threads, except those whose answer has to be final, which queue up behind the writes they ask about.

mod audit;
mod budgets;
mod column;
mod fault;
mod handoff;
mod lock;
mod log;
mod marks;
mod outbox;
mod reader;
mod replies;
mod schema;
mod sessions;
mod shares;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    convert::Infallible,
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use chatbox_proto::ids::{MessageId, SessionId};
use tokio::sync::mpsc;

use self::{
    reader::Readers,
    schema::Synchronous,
    writer::{Verdict, Writer, WriterThread},
};
use super::{
    ActiveSession, Append, AppendId, Appended, BootId, Created, Derived, Header, KeyedHash, LogDocument, MessageKey,
    NewSession, ReplyLease, ReplyRow, SessionQuery, SessionStore, StoreError, StoreErrorKind,
};
use crate::domain::entry::Seq;

/// How a [`SqliteStore`] behaves.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Pieces of work that one commit may hold, 1 to 4,096. One is the reference that grouping is measured against.
    pub max_group: usize,
    /// Size that the database may grow to; writes beyond it fail as [`StoreErrorKind::Full`].
    pub max_bytes: Option<u64>,
    synchronous: Synchronous,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { max_group: 1024, max_bytes: None, synchronous: Synchronous::Full }
    }
}

/// Sessions and their logs in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
    commits: Arc<AtomicU64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Ends when the last thread has let go of the file. Nothing is ever sent.
    ended: tokio::sync::Mutex<mpsc::Receiver<Infallible>>,
}

impl SqliteStore {
    /// Opens the file, or makes it, with its folder, for this user only; blocks while it does. Dropping the store without
    /// [`close`](SessionStore::close) lets the threads finish what was accepted and release the file by themselves.
    ///
    /// # Errors
    /// `Refused` when somebody has it open, it was made by a newer version, or is no database of ours.
    pub fn open(path: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        let (path, lock) = lock::claim(path)?;
        let lock = Arc::new(lock);
        let (alive, ended) = mpsc::channel(1);
        let gate = Arc::new(RwLock::new(()));
        let commits = Arc::new(AtomicU64::new(0));
        let (writer, jobs) = Writer::new();
        let (readers, reads) = Readers::new();

        let thread = WriterThread {
            db: schema::open_writer(&path, options.synchronous, options.max_bytes)?,
            readers: Arc::clone(&gate),
            max_group: options.max_group.max(1),
            commits: Arc::clone(&commits),
            unsettled: false,
        };
        let connections = (0..reader::READERS).map(|_| schema::open_reader(&path)).collect::<Result<Vec<_>, _>>()?;

        let held = (Arc::clone(&lock), alive.clone());
        let mut threads = vec![start("store-writer", held, move || thread.run(jobs))?];
        for db in connections {
            let (reads, gate) = (reads.clone(), Arc::clone(&gate));
            let held = (Arc::clone(&lock), alive.clone());
            threads.push(start("store-reader", held, move || reader::run(db, reads, gate))?);
        }
        Ok(Self { writer, readers, commits, threads: Mutex::new(threads), ended: tokio::sync::Mutex::new(ended) })
    }

    /// [`open`](Self::open)s `chatbox.db` in a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(folder: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        Self::open(&folder.join("chatbox.db"), options)
    }

    /// Commits since it was opened, each with all that was ready at its time: how well writes are grouped.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

/// A thread that keeps `held` until its connection is closed.
fn start<H: Send + 'static>(
    name: &str,
    held: H,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    let body = move || {
        run();
        drop(held);
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error: io::Error| StoreError::new(StoreErrorKind::Unavailable, "open", error))
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn create_session(&self, new: NewSession) -> Result<Created, StoreError> {
        let bytes = new.wrapped_key.len() + new.derived.state.len();
        self.writer.submit("create_session", bytes, move |db| sessions::create(db, new)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Header>, StoreError> {
        self.readers.submit("session", move |db| sessions::by_id(db, id)).await
    }

    async fn active_session(&self, owner: &str) -> Result<Option<Header>, StoreError> {
        let owner = owner.to_owned();
        self.readers.submit("active_session", move |db| sessions::active(db, &owner)).await
    }

    async fn list_sessions(&self, query: SessionQuery) -> Result<Vec<Header>, StoreError> {
        self.readers.submit("list_sessions", move |db| sessions::list(db, &query)).await
    }

    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let bytes = append.sealed.len()
            + append.derived.state.len()
            + append.messages.len() * size_of::<MessageKey>()
            + append.reply_started.as_ref().map_or(0, |row| row.checkpoint.len());
        self.writer.submit("append", bytes, move |db| log::append(db, &append)).await
    }

    async fn find_append(&self, session_id: SessionId, append_id: AppendId) -> Result<Option<Seq>, StoreError> {
        let find = move |db: &_| log::find_append(db, session_id, append_id).map(Verdict::Undo);
        self.writer.submit("find_append", 0, find).await
    }

    async fn find_message(&self, session_id: SessionId, key: KeyedHash) -> Result<Option<MessageKey>, StoreError> {
        self.readers.submit("find_message", move |db| log::find_message(db, session_id, key)).await
    }

    async fn head(&self, session_id: SessionId) -> Result<Seq, StoreError> {
        self.readers.submit("head", move |db| log::head(db, session_id)).await
    }

    async fn heads(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        let sessions = sessions.to_vec();
        self.readers.submit("heads", move |db| log::heads(db, &sessions)).await
    }

    async fn read_after(&self, session_id: SessionId, after: Seq, limit: u32) -> Result<Vec<LogDocument>, StoreError> {
        self.readers.submit("read_after", move |db| log::read_after(db, session_id, after, limit)).await
    }

    async fn read_before(
        &self,
        session_id: SessionId,
        before: Seq,
        limit: u32,
    ) -> Result<Vec<LogDocument>, StoreError> {
        self.readers.submit("read_before", move |db| log::read_before(db, session_id, before, limit)).await
    }

    async fn replace_derived(
        &self,
        session_id: SessionId,
        expected: Seq,
        derived: Derived,
    ) -> Result<bool, StoreError> {
        let bytes = derived.state.len();
        let replace = move |db: &_| sessions::replace_expected(db, session_id, expected, &derived);
        self.writer.submit("replace_derived", bytes, replace).await
    }

    async fn active_sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<ActiveSession>, StoreError> {
        self.readers.submit("active_sessions", move |db| sessions::active_sessions(db, after, limit)).await
    }

    async fn unfinished_sessions(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Seq)>, StoreError> {
        self.readers.submit("unfinished_sessions", move |db| sessions::unfinished(db, after, limit)).await
    }

    async fn reply_row(&self, session_id: SessionId) -> Result<Option<ReplyRow>, StoreError> {
        self.readers.submit("reply_row", move |db| replies::latest(db, session_id)).await
    }

    async fn reply_rows(&self, after: Option<MessageId>, limit: u32) -> Result<Vec<ReplyLease>, StoreError> {
        self.readers.submit("reply_rows", move |db| replies::leases(db, after, limit)).await
    }

    async fn renew_reply(
        &self,
        message_id: MessageId,
        boot_id: BootId,
        expected: u64,
        checkpoint: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let bytes = checkpoint.len();
        let renew = move |db: &_| replies::renew(db, message_id, boot_id, expected, &checkpoint);
        self.writer.submit("renew_reply", bytes, renew).await
    }

    async fn replace_wrapped_key(
        &self,
        session_id: SessionId,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let bytes = expected.len() + new.len();
        let replace = move |db: &_| sessions::replace_key(db, session_id, &expected, &new);
        self.writer.submit("replace_wrapped_key", bytes, replace).await
    }

    async fn erase_session(&self, session_id: SessionId, fence: Seq) -> Result<bool, StoreError> {
        self.writer.submit("erase_session", 0, move |db| sessions::erase(db, session_id, fence)).await
    }

    async fn remove_reply(&self, message_id: MessageId) -> Result<(), StoreError> {
        self.writer.submit("remove_reply", 0, move |db| replies::remove(db, message_id).map(Verdict::Keep)).await
    }

    async fn wrapped_keys(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<(SessionId, Vec<u8>)>, StoreError> {
        self.readers.submit("wrapped_keys", move |db| sessions::keys(db, after, limit)).await
    }

    async fn mark_read(&self, session_id: SessionId, user_id: &str, seq: Seq) -> Result<(), StoreError> {
        let user_id = user_id.to_owned();
        self.writer.submit("mark_read", user_id.len(), move |db| marks::mark_read(db, session_id, &user_id, seq)).await
    }

    async fn read_marks(&self, session_id: SessionId) -> Result<Vec<(String, Seq)>, StoreError> {
        self.readers.submit("read_marks", move |db| marks::read_marks(db, session_id)).await
    }

    async fn installation_value(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let name = name.to_owned();
        self.readers.submit("installation_value", move |db| marks::value(db, &name)).await
    }

    async fn init_installation_value(&self, name: &str, value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let (name, bytes) = (name.to_owned(), value.len());
        self.writer.submit("init_installation_value", bytes, move |db| marks::init_value(db, &name, &value)).await
    }

    async fn replace_installation_value(
        &self,
        name: &str,
        expected: Vec<u8>,
        new: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let (name, bytes) = (name.to_owned(), expected.len() + new.len());
        let replace = move |db: &_| marks::replace_value(db, &name, &expected, &new);
        self.writer.submit("replace_installation_value", bytes, replace).await
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // The writer takes the write lock for it; the reader reads from the file.
        self.writer.submit("ping", 0, |_| Ok(Verdict::Undo(()))).await?;
        self.readers.submit("ping", |db| marks::value(db, "").map(drop)).await
    }

    async fn close(&self) {
        self.writer.close();
        self.readers.close();
        // Nothing is ever received: this waits for the last thread to have closed its connection. Cancel-safe, so that a
        // second call waits as the first one did.
        while self.ended.lock().await.recv().await.is_some() {}
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // It has nothing left to do but to return.
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}
