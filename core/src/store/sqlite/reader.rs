//! The threads that read, each with a connection of its own. A read sees every commit that was answered before it began.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::fault::Fault;
use crate::store::{StoreError, StoreErrorKind};

/// Threads that read. Reads are short; two keep one long list from holding up the rest.
pub(super) const READERS: usize = 2;
/// Reads that may wait or be in work. Whoever brings more waits its turn.
const QUEUE_READS: usize = 256;

/// The way to the reader threads. Reads are accepted while there is one.
#[derive(Debug)]
pub(super) struct Readers {
    queue: Mutex<Option<mpsc::Sender<Read>>>,
    room: Arc<Semaphore>,
}

struct Read {
    run: Box<dyn FnOnce(&Connection) + Send>,
    _room: OwnedSemaphorePermit,
}

/// Reads that were accepted, shared by the threads: whoever is free takes the next.
#[derive(Debug, Clone)]
pub(super) struct Reads(Arc<Mutex<mpsc::Receiver<Read>>>);

impl Readers {
    pub(super) fn new() -> (Self, Reads) {
        let (tx, rx) = mpsc::channel(QUEUE_READS);
        let room = Arc::new(Semaphore::new(QUEUE_READS));
        (Self { queue: Mutex::new(Some(tx)), room }, Reads(Arc::new(Mutex::new(rx))))
    }

    pub(super) async fn submit<T, F>(&self, operation: &'static str, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let failed = || StoreError::bare(StoreErrorKind::Unavailable, operation);
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| failed())?;
        let (answer, answered) = oneshot::channel::<Result<T, StoreError>>();
        let run = move |db: &Connection| {
            if answer.is_closed() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(|| read(db))).unwrap_or(Err(Fault::Panicked));
            // A caller that has gone away does not want to know.
            let _ = answer.send(result.map_err(|fault| fault.during(operation)));
        };
        self.send(Read { run: Box::new(run), _room: room }).ok_or_else(failed)?;
        answered.await.unwrap_or_else(|_| Err(failed()))
    }

    fn send(&self, read: Read) -> Option<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        // Never full: the room of every read in it was acquired before.
        queue.as_ref()?.try_send(read).ok()
    }

    /// Accepts nothing more. What waits for room fails; what has been sent is finished.
    pub(super) fn close(&self) {
        self.room.close();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Until the queue is closed and empty.
#[expect(clippy::needless_pass_by_value, reason = "the thread owns its connection and closes it at its end")]
pub(super) fn run(db: Connection, reads: Reads, gate: Arc<RwLock<()>>) {
    loop {
        // Held while waiting: the other threads queue up for it instead of for the channel.
        let next = reads.0.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(read) = next else { return };
        let _reading = gate.read().unwrap_or_else(PoisonError::into_inner);
        (read.run)(&db);
    }
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Read(..)")
    }
}
