//! What accompanies appends: folded states, slots, rows of replies. Written after the append was answered, in groups, of
//! which one is in flight; of one session only the latest counts. Everything here may be lost by a crash and is made good
//! by whoever opens the session; until then it is written in the order in which it was brought.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatbox_proto::ids::{MessageId, SessionId};
use mongodb::bson::{Document, doc};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    connection::Connection,
    document::{self, binary, number},
    fault::Fault,
    schema, slots,
};
use crate::{
    domain::entry::Seq,
    store::{Append, AppendId, Derived, ReplyRow},
};

/// Pieces that may wait; whoever brings more waits.
const QUEUE: usize = 4096;
const GROUP: usize = 1024;
/// Tries of a group, and the first pause between them, which doubles: about three seconds in all.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// One thing to be written.
#[derive(Debug)]
enum Piece {
    /// Replaces an older state.
    Derived(SessionId, Derived),
    /// Unless it was taken after this entry, which is an end.
    FreeSlot(SessionId, Seq),
    /// A mark that this append made ahead, for nothing; it stays until the folded state has come this far.
    Withdraw(SessionId, AppendId, Seq),
    ReplyStarted(ReplyRow),
    ReplyFinished(MessageId),
    /// Answered when all before it is written.
    Settled(oneshot::Sender<()>),
}

/// The way to the task. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Companions {
    /// Taken by `close`.
    queue: Arc<Mutex<Option<mpsc::Sender<Piece>>>>,
    /// Pieces that were brought and are not worked off.
    pending: Arc<AtomicU64>,
}

impl Companions {
    pub(super) fn new(connection: Connection) -> (Self, CompanionTask) {
        let (tx, pieces) = mpsc::channel(QUEUE);
        let pending = Arc::new(AtomicU64::new(0));
        let task = CompanionTask { pieces, connection, pending: Arc::clone(&pending) };
        (Self { queue: Arc::new(Mutex::new(Some(tx))), pending }, task)
    }

    /// Writes what accompanies this append, which is durable.
    pub(super) async fn follow(&self, append: &Append) {
        if append.ends_session {
            self.free_slot(append.session_id, append.expected_head + 1).await;
        }
        if let Some(id) = append.reply_finished {
            self.put(Piece::ReplyFinished(id)).await;
        }
        if let Some(row) = &append.reply_started {
            self.put(Piece::ReplyStarted(row.clone())).await;
        }
        self.put(Piece::Derived(append.session_id, append.derived.clone())).await;
    }

    /// Frees the slot of a session whose end is in its log, in the document that begins there.
    pub(super) async fn free_slot(&self, id: SessionId, end: Seq) {
        self.put(Piece::FreeSlot(id, end)).await;
    }

    /// Takes back what was marked ahead for an append that was not written. `rival` is the last entry of whoever has its
    /// place, 0 for nobody.
    pub(super) async fn withdraw(&self, append: &Append, rival: Seq) {
        if append.derived.unfinished {
            self.put(Piece::Withdraw(append.session_id, append.append_id, rival)).await;
        }
    }

    /// Waits until everything that was brought before is written, or given up. So each process reads what it wrote.
    pub(super) async fn settled(&self) -> Result<(), Fault> {
        if self.pending.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        self.put(Piece::Settled(answer)).await;
        answered.await.map_err(|_| Fault::Closed)
    }

    async fn put(&self, piece: Piece) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(queue) = queue else { return };
        self.pending.fetch_add(1, Ordering::AcqRel);
        if queue.send(piece).await.is_err() {
            self.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Accepts nothing more; what was brought is finished.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The task's own state.
#[derive(Debug)]
pub(super) struct CompanionTask {
    pieces: mpsc::Receiver<Piece>,
    connection: Connection,
    pending: Arc<AtomicU64>,
}

impl CompanionTask {
    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        let mut pieces = Vec::with_capacity(GROUP);
        while self.pieces.recv_many(&mut pieces, GROUP).await > 0 {
            let count = pieces.len() as u64;
            let mut group = Group::default();
            let waiting: Vec<_> = pieces.drain(..).filter_map(|piece| group.add(piece)).collect();
            self.write(&group).await;
            self.pending.fetch_sub(count, Ordering::AcqRel);
            for answer in waiting {
                // Whoever waited may have gone away.
                let _ = answer.send(());
            }
        }
    }

    async fn write(&self, group: &Group) {
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            let Err(fault) = self.try_once(group).await else { return };
            if attempt == TRIES {
                tracing::warn!(error = &fault as &dyn std::error::Error, "what accompanies appends was not written");
                return;
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Every piece can be written twice.
    async fn try_once(&self, group: &Group) -> Result<(), Fault> {
        let (sessions, started, finished) = tokio::join!(
            self.run_all("update", schema::SESSIONS, "updates", group.session_updates()),
            self.run_all("update", schema::REPLIES, "updates", group.started_rows()),
            self.run_all("delete", schema::REPLIES, "deletes", group.finished_rows()),
        );
        sessions.and(started).and(finished)
    }

    async fn run_all(
        &self,
        command: &'static str,
        collection: &str,
        field: &'static str,
        statements: Vec<Document>,
    ) -> Result<(), Fault> {
        if statements.is_empty() {
            return Ok(());
        }
        let mut document = Document::new();
        document.insert(command, collection);
        document.insert(field, statements);
        document.insert("ordered", false);
        document.insert("writeConcern", doc! { "w": "majority", "j": true });
        let run = timeout(self.connection.limit, self.connection.database.run_command(document).into_future());
        let reply = run.await.map_err(|_| Fault::TimedOut)??;
        if let Ok(errors) = reply.get_array("writeErrors") {
            let code = errors.first().and_then(|error| error.as_document()?.get_i32("code").ok()).unwrap_or(0);
            return Err(Fault::write_error(code));
        }
        Ok(())
    }
}

/// Pieces that go together: of each session and each reply the latest.
#[derive(Debug, Default)]
struct Group {
    derived: HashMap<SessionId, Derived>,
    freed: Vec<(SessionId, Seq)>,
    withdrawn: Vec<(SessionId, AppendId, Seq)>,
    /// `None`: it has finished.
    replies: BTreeMap<MessageId, Option<ReplyRow>>,
}

impl Group {
    fn add(&mut self, piece: Piece) -> Option<oneshot::Sender<()>> {
        match piece {
            Piece::Derived(id, derived) => {
                let newest = self.derived.entry(id).or_insert_with(|| derived.clone());
                if newest.applied_seq < derived.applied_seq {
                    *newest = derived;
                }
            }
            Piece::FreeSlot(id, end) => self.freed.push((id, end)),
            Piece::Withdraw(id, append, rival) => self.withdrawn.push((id, append, rival)),
            Piece::ReplyStarted(row) => {
                self.replies.insert(row.message_id, Some(row));
            }
            Piece::ReplyFinished(id) => {
                self.replies.insert(id, None);
            }
            Piece::Settled(answer) => return Some(answer),
        }
        None
    }

    fn session_updates(&self) -> Vec<Document> {
        let mut updates = Vec::new();
        for (id, end) in &self.freed {
            updates.push(doc! { "q": slots::ended_at(*id, *end), "u": slots::freed() });
        }
        for (id, derived) in &self.derived {
            updates.push(doc! {
                "q": { "_id": binary(id.as_bytes()), "applied": { "$lt": number(derived.applied_seq) } },
                "u": document::replacement(*id, derived),
            });
        }
        for (id, append, rival) in &self.withdrawn {
            updates.push(doc! {
                "q": { "_id": binary(id.as_bytes()), "intent.append": binary(append) },
                "u": document::withdrawal(*rival),
            });
        }
        updates
    }

    fn started_rows(&self) -> Vec<Document> {
        let rows = self.replies.values().flatten();
        rows.map(|row| {
            let fields = doc! {
                "session": binary(row.session_id.as_bytes()),
                "started": number(row.started_seq),
                "boot": binary(&row.boot_id),
                "renewals": number(row.renewals),
                "checkpoint": binary(&row.checkpoint),
            };
            doc! {
                "q": { "_id": binary(row.message_id.as_bytes()) },
                "u": { "$setOnInsert": fields },
                "upsert": true,
            }
        })
        .collect()
    }

    fn finished_rows(&self) -> Vec<Document> {
        let finished = self.replies.iter().filter(|(_, row)| row.is_none());
        finished.map(|(id, _)| doc! { "q": { "_id": binary(id.as_bytes()) }, "limit": 1 }).collect()
    }
}
