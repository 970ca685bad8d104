//! The one thread that writes. It takes everything that is ready, gives each piece of work a savepoint and a verdict of
//! its own, commits once, and only then answers. There is no timer: the sync in flight is the time in which the next group
//! gathers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    fault::Fault,
    schema::{Checkpoint, checkpoint},
};
use crate::store::{StoreError, StoreErrorKind};

/// Bytes that may wait or be in work. Whoever brings more waits its turn, first come first served.
const QUEUE_BYTES: usize = 32 << 20;
/// What a piece of work weighs at least, for its own memory; with [`QUEUE_BYTES`] it bounds their number to 4,096.
const MIN_WEIGHT: usize = 8 << 10;
const QUEUE_JOBS: usize = QUEUE_BYTES / MIN_WEIGHT;
/// How often the writer lets others run before it takes a group for complete.
const YIELDS: u32 = 8;

/// Pages in the write-ahead log from which on they are moved to the database (16 MiB): what was rewritten meanwhile is
/// moved once.
const CHECKPOINT_PAGES: u64 = 4096;
/// Pages from which on readers are held back for it (64 MiB): readers that overlap without a break would keep it growing.
const FORCE_PAGES: u64 = 4 * CHECKPOINT_PAGES;
/// Size that the write-ahead log's file is cut to when it starts anew: overwriting is cheaper than growing.
pub(super) const WAL_KEPT_BYTES: i64 = 32 << 20;

/// What becomes of the writes of one piece of work.
pub(super) enum Verdict<T> {
    /// They are part of the group.
    Keep(T),
    /// They are undone; this is an answer, not a failure.
    Undo(T),
}

/// The way to the writer thread. Work is accepted while there is one.
#[derive(Debug)]
pub(super) struct Writer {
    /// Taken by `close`; the thread ends when it has worked off what was sent.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    room: Arc<Semaphore>,
}

/// A piece of work with its room in the queue, held until it was answered.
struct Job {
    work: Box<dyn Work>,
    _room: OwnedSemaphorePermit,
}

impl Writer {
    pub(super) fn new() -> (Self, Jobs) {
        let (tx, rx) = mpsc::channel(QUEUE_JOBS);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        (Self { queue: Mutex::new(Some(tx)), room }, Jobs(rx))
    }

    /// Runs `work` in a group and answers after the group's commit. `bytes` is what it carries. Dropping the future
    /// before the work is in the queue leaves nothing; afterwards the work is done all the same.
    pub(super) async fn submit<T, F>(&self, operation: &'static str, bytes: usize, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<Verdict<T>, Fault> + Send + 'static,
    {
        let closed = || StoreError::bare(StoreErrorKind::Unavailable, operation);
        let weight = u32::try_from(bytes.clamp(MIN_WEIGHT, QUEUE_BYTES)).expect("the queue is smaller than 4 GiB");
        let room = Arc::clone(&self.room).acquire_many_owned(weight).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let work = Box::new(Pending { operation, work: Some(work), result: None, answer });
        self.send(Job { work, _room: room }).ok_or_else(closed)?;
        // Without an answer the thread is gone: nobody knows how far it came.
        answered.await.unwrap_or_else(|_| Err(StoreError::bare(StoreErrorKind::OutcomeUnknown, operation)))
    }

    fn send(&self, job: Job) -> Option<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Never full: the room of every job in it was acquired before.
        queue.as_ref()?.try_send(job).ok()
    }

    /// Accepts nothing more. What waits for room fails; what has been sent is finished.
    pub(super) fn close(&self) {
        self.room.close();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What the writer thread sees of a piece of work.
trait Work: Send {
    /// Does it and keeps the result; whether its writes stay.
    fn run(&mut self, db: &Connection) -> Stays;
    /// Tells the caller: the result, or the failure of the whole group.
    fn answer(self: Box<Self>, group: Result<(), Fault>);
}

/// Whether writes stay.
enum Stays {
    Yes,
    No,
    /// It failed, which may have ended the transaction.
    Failed(Fault),
}

struct Pending<T, F> {
    operation: &'static str,
    work: Option<F>,
    result: Option<Result<T, Fault>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Work for Pending<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<Verdict<T>, Fault> + Send,
{
    fn run(&mut self, db: &Connection) -> Stays {
        let Some(work) = self.work.take() else { return Stays::No };
        // The closure is consumed and its writes are undone: nothing half-done is seen again.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(db))).unwrap_or(Err(Fault::Panicked));
        let (result, stays) = match outcome {
            Ok(Verdict::Keep(value)) => (Ok(value), Stays::Yes),
            Ok(Verdict::Undo(value)) => (Ok(value), Stays::No),
            Err(fault) => (Err(fault.clone()), Stays::Failed(fault)),
        };
        self.result = Some(result);
        stays
    }

    fn answer(self: Box<Self>, group: Result<(), Fault>) {
        let result = match (self.result, group) {
            // Its own failure says more than the group's.
            (Some(Err(fault)), _) | (_, Err(fault)) => Err(fault),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(Fault::Misuse("work was not run")),
        };
        // A caller that has gone away does not want to know.
        let _ = self.answer.send(result.map_err(|fault| fault.during(self.operation)));
    }
}

/// Work that was accepted, for the thread.
#[derive(Debug)]
pub(super) struct Jobs(mpsc::Receiver<Job>);

impl Jobs {
    /// Takes all that is ready. Callers that the last group answered are about to bring their next work: when there were
    /// several, they are given the processor a few times, so that one sync serves all instead of half of them. That takes
    /// microseconds where a sync takes hundreds.
    fn gather(&mut self, group: &mut Vec<Job>, max_group: usize, answered: usize) {
        let mut patience = if answered > 1 { YIELDS } else { 0 };
        while group.len() < max_group {
            match self.0.try_recv() {
                Ok(job) => group.push(job),
                Err(_) if patience > 0 => {
                    patience -= 1;
                    std::thread::yield_now();
                }
                Err(_) => return,
            }
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job(..)")
    }
}

/// The thread's own state.
#[derive(Debug)]
pub(super) struct WriterThread {
    pub(super) db: Connection,
    /// Readers hold it shared for the time of one read.
    pub(super) readers: Arc<RwLock<()>>,
    /// Pieces of work in one commit at most.
    pub(super) max_group: usize,
    /// Commits that reached the disk.
    pub(super) commits: Arc<AtomicU64>,
    /// A commit failed and may have left a commit mark behind the log's end, where a restart would find it. The next
    /// commit overwrites it; until then nothing is answered.
    pub(super) unsettled: bool,
}

impl WriterThread {
    /// Until the queue is closed and empty.
    pub(super) fn run(mut self, mut jobs: Jobs) {
        let mut answered = 0;
        while let Some(first) = jobs.0.blocking_recv() {
            let mut group = vec![first];
            jobs.gather(&mut group, self.max_group, answered);
            answered = group.len();
            let outcome = self.commit(&mut group);
            for job in group {
                job.work.answer(outcome.clone());
            }
            self.maintain();
        }
    }

    fn commit(&mut self, group: &mut [Job]) -> Result<(), Fault> {
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let ran = self.run_all(group);
        if let Err(fault) = ran {
            self.roll_back();
            return Err(fault);
        }
        let Err(error) = self.execute("COMMIT") else {
            self.unsettled = false;
            self.commits.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        self.roll_back();
        self.unsettled = true;
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed to commit");
        let settled = self.settle();
        // A full disk is noticed before the commit mark is written, so that one is certain either way.
        if settled.is_ok() || error.kind() == StoreErrorKind::Full {
            return Err(error);
        }
        match error {
            Fault::Sqlite(error) => Err(Fault::Unsettled(error)),
            other @ (Fault::Unsettled(_) | Fault::Misuse(_) | Fault::Panicked) => Err(other),
        }
    }

    fn run_all(&mut self, group: &mut [Job]) -> Result<(), Fault> {
        if self.unsettled {
            self.overwrite()?;
        }
        for job in group {
            self.execute("SAVEPOINT job")?;
            let stays = job.work.run(&self.db);
            if !matches!(stays, Stays::Yes) {
                // Some errors end the whole transaction, and with it what others of the group wrote.
                if let Stays::Failed(fault) = stays
                    && self.db.is_autocommit()
                {
                    return Err(fault);
                }
                self.execute("ROLLBACK TO job")?;
            }
            self.execute("RELEASE job")?;
        }
        Ok(())
    }

    /// One commit that overwrites what a failed one may have left: after it, that one is certainly not written.
    fn settle(&mut self) -> Result<(), Fault> {
        self.execute("BEGIN IMMEDIATE")?;
        let outcome = self.overwrite().and_then(|()| self.execute("COMMIT"));
        match outcome {
            Ok(()) => self.unsettled = false,
            Err(_) => self.roll_back(),
        }
        outcome
    }

    /// The frames of the log are chained by checksums: a new first one breaks the chain to what stood behind it.
    fn overwrite(&self) -> Result<(), Fault> {
        self.execute("UPDATE settled SET times = times + 1")
    }

    fn execute(&self, sql: &str) -> Result<(), Fault> {
        self.db.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn roll_back(&self) {
        if !self.db.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed to roll back");
        }
    }

    /// Keeps the write-ahead log bounded. After the answers, so that nobody waits for it who need not.
    fn maintain(&self) {
        if let Err(error) = self.checkpoint() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store failed to checkpoint");
        }
    }

    fn checkpoint(&self) -> Result<(), Fault> {
        let pages = checkpoint(&self.db, Checkpoint::Measure)?;
        if pages >= FORCE_PAGES {
            let _no_reader = self.readers.write().unwrap_or_else(PoisonError::into_inner);
            checkpoint(&self.db, Checkpoint::Truncate)?;
        } else if pages >= CHECKPOINT_PAGES {
            checkpoint(&self.db, Checkpoint::Passive)?;
        }
        Ok(())
    }
}
