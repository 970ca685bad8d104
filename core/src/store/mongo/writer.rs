//! The one task that appends. It takes everything that is ready, inserts it with one unordered write, and each document
//! has its own verdict. There is no timer and one write in flight: its sync is the time in which the next group gathers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mongodb::{
    bson::{Document, RawDocumentBuf, doc},
    error::{ErrorKind, InsertManyError},
    results::InsertManyResult,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{error::Elapsed, timeout},
};

use super::{
    companions::Companions,
    connection::Connection,
    document::{self, binary, number},
    ends::Ends,
    fault::{Access, Fault},
    schema,
};
use crate::store::{Append, AppendId, StoreErrorKind};

/// Bytes that may wait or be in work. Whoever brings more waits its turn, first come first served.
const QUEUE_BYTES: usize = 32 << 20;
/// What an append weighs at least, for its own memory; with [`QUEUE_BYTES`] it bounds their number to 4,096.
const MIN_WEIGHT: usize = 8 << 10;
const QUEUE_APPENDS: usize = QUEUE_BYTES / MIN_WEIGHT;
/// Documents in one write at most; and bytes, well below the 48 MB of one message to the server.
const GROUP_DOCUMENTS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
/// How often the writer lets others run before it takes a group for complete.
const YIELDS: u32 = 8;
/// Appends without a verdict whose companions are kept until somebody finds out; beyond that they are lost, as in a crash.
const PARKED: usize = 1024;

/// What became of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It is held by a majority.
    Done,
    /// It was not written: something unique in it exists already.
    Duplicate,
}

/// The way to the task. Appends are accepted while there is one.
#[derive(Debug)]
pub(super) struct Writer {
    /// Taken by `close`; the task ends when it has worked off what was sent.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    room: Arc<Semaphore>,
    parked: Arc<Parked>,
}

/// An append on its way, with its room in the queue, held until it was answered.
#[derive(Debug)]
struct Job {
    append: Arc<Append>,
    document: RawDocumentBuf,
    answer: oneshot::Sender<Result<Written, Fault>>,
    _room: OwnedSemaphorePermit,
}

/// Appends whose outcome is unknown.
#[derive(Debug, Default)]
struct Parked(Mutex<HashMap<AppendId, Arc<Append>>>);

impl Parked {
    fn put(&self, append: Arc<Append>) {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.len() >= PARKED {
            parked.clear();
        }
        parked.insert(append.append_id, append);
    }
}

impl Writer {
    pub(super) fn new(connection: Connection, ends: Arc<Ends>, companions: Companions) -> (Self, WriterTask) {
        let (tx, jobs) = mpsc::channel(QUEUE_APPENDS);
        let parked = Arc::new(Parked::default());
        let task = WriterTask { jobs, connection, ends, companions, parked: Arc::clone(&parked) };
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        (Self { queue: Mutex::new(Some(tx)), room, parked }, task)
    }

    /// Writes the document in a group. Dropping the future before it is in the queue leaves nothing; afterwards it is
    /// written all the same, companions too.
    pub(super) async fn submit(&self, append: Arc<Append>, document: RawDocumentBuf) -> Result<Written, Fault> {
        let weight = document.as_bytes().len() + append.derived.state.len();
        let weight = u32::try_from(weight.clamp(MIN_WEIGHT, QUEUE_BYTES)).expect("the queue is smaller than 4 GiB");
        let room = Arc::clone(&self.room).acquire_many_owned(weight).await.map_err(|_| Fault::Closed)?;
        let (answer, answered) = oneshot::channel();
        self.send(Job { append, document, answer, _room: room }).ok_or(Fault::Closed)?;
        // Without an answer the task was cut: nobody knows how far it came.
        answered.await.unwrap_or(Err(Fault::TimedOut))
    }

    fn send(&self, job: Job) -> Option<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Never full: the room of every job in it was acquired before.
        queue.as_ref()?.try_send(job).ok()
    }

    /// The append with this id, if nobody knew whether it was written.
    pub(super) fn take_parked(&self, id: AppendId) -> Option<Arc<Append>> {
        self.parked.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    /// Accepts nothing more. What waits for room fails; what has been sent is finished.
    pub(super) fn close(&self) {
        self.room.close();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The task's own state.
#[derive(Debug)]
pub(super) struct WriterTask {
    jobs: mpsc::Receiver<Job>,
    connection: Connection,
    ends: Arc<Ends>,
    companions: Companions,
    parked: Arc<Parked>,
}

impl WriterTask {
    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        let mut answered = 0;
        while let Some(first) = self.jobs.recv().await {
            let group = self.gather(first, answered).await;
            answered = group.len();
            self.write(group).await;
        }
        self.companions.close();
    }

    /// Takes all that is ready. Callers that the last group answered are about to bring their next append: when there were
    /// several, they are let run a few times, so that one write serves all instead of half of them.
    async fn gather(&mut self, first: Job, answered: usize) -> Vec<Job> {
        let mut bytes = first.document.as_bytes().len();
        let mut group = vec![first];
        let mut patience = if answered > 1 { YIELDS } else { 0 };
        while group.len() < GROUP_DOCUMENTS && bytes < GROUP_BYTES {
            match self.jobs.try_recv() {
                Ok(job) => {
                    bytes += job.document.as_bytes().len();
                    group.push(job);
                }
                Err(_) if patience > 0 => {
                    patience -= 1;
                    tokio::task::yield_now().await;
                }
                Err(_) => break,
            }
        }
        group
    }

    async fn write(&self, group: Vec<Job>) {
        let insert = self.connection.log.insert_many(group.iter().map(|job| &job.document)).ordered(false);
        let limited = timeout(self.connection.limit, insert.into_future());
        let (outcome, ()) = tokio::join!(limited, self.announce(&group));
        let verdicts = verdicts(group.len(), outcome);
        for (job, verdict) in group.into_iter().zip(verdicts) {
            let append = job.append;
            match &verdict {
                Ok(Written::Done) => {
                    self.ends.raise(append.session_id, append.expected_head + u64::from(append.count));
                    // Before the answer, so that whoever has it reads the companions.
                    self.companions.follow(&append).await;
                }
                Ok(Written::Duplicate) => {}
                Err(fault) if fault.kind(Access::Write) == StoreErrorKind::OutcomeUnknown => self.parked.put(append),
                Err(_) => {}
            }
            // A caller that has gone away does not want to know.
            let _ = job.answer.send(verdict);
        }
    }

    /// Beside the documents: sessions that somebody has to look after are found after a crash, although the folded state
    /// that says so is written later.
    async fn announce(&self, group: &[Job]) {
        let updates: Vec<Document> = group.iter().filter_map(|job| announcement(&job.append)).collect();
        if updates.is_empty() {
            return;
        }
        let command = doc! {
            "update": schema::SESSIONS,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
        };
        let update = timeout(self.connection.limit, self.connection.database.run_command(command).into_future());
        // The folded state, which says the same, is written next and tried again; only a crash before it would be missed.
        if !matches!(update.await, Ok(Ok(_))) {
            tracing::debug!("sessions could not be marked as unfinished ahead");
        }
    }
}

/// Marks the session, unless somebody has moved it on.
fn announcement(append: &Append) -> Option<Document> {
    append.derived.unfinished.then(|| {
        let session = binary(append.session_id.as_bytes());
        doc! {
            "q": { "_id": session, "applied": { "$lte": number(append.expected_head) } },
            "u": document::announced(append),
        }
    })
}

fn verdicts(
    count: usize,
    outcome: Result<mongodb::error::Result<InsertManyResult>, Elapsed>,
) -> Vec<Result<Written, Fault>> {
    let error = match outcome {
        Ok(Ok(_)) => return vec![Ok(Written::Done); count],
        Ok(Err(error)) => error,
        Err(_) => return vec![Err(Fault::TimedOut); count],
    };
    let ErrorKind::InsertMany(InsertManyError { write_errors, write_concern_error, .. }) = &*error.kind else {
        return vec![Err(Fault::from(error)); count];
    };
    // Those that are not named were written; whether a majority has them is said for all of them together.
    let rest = write_concern_error.as_ref().map_or(Ok(Written::Done), |error| Err(Fault::write_concern(error)));
    let mut verdicts = vec![rest; count];
    for error in write_errors.iter().flatten() {
        if let Some(verdict) = verdicts.get_mut(error.index) {
            let fault = Fault::write_error(error.code);
            *verdict = if fault.is_duplicate() { Ok(Written::Duplicate) } else { Err(fault) };
        }
    }
    verdicts
}
