//! Reads that are not older than what was acknowledged before they began, by whichever core.
//!
//! A small write that a majority has in its journals shows that the primary is one, after the call began; whoever then reads
//! what a majority had at that time sees all that was acknowledged before, on this primary or the next. MongoDB's own
//! linearizable reads do the same with a write that nobody asks the journal for, so that each waits for the journal's
//! interval of 100 ms. All who wait at the same time share one write.

use std::sync::{Mutex, PoisonError};

use mongodb::{
    Collection,
    bson::{Document, Timestamp, doc},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{connection::Connection, fault::Fault, schema};

/// Reads that may wait for one write; whoever brings more waits its turn.
const QUEUE: usize = 1024;
/// Documents that are written to, so that cores seldom meet at one.
const PLACES: u8 = 16;

type Waiting = oneshot::Sender<Result<Timestamp, Fault>>;

/// The way to the task.
#[derive(Debug)]
pub(super) struct Barrier(Mutex<Option<mpsc::Sender<Waiting>>>);

impl Barrier {
    pub(super) fn new(connection: &Connection) -> (Self, BarrierTask) {
        let (tx, waiting) = mpsc::channel(QUEUE);
        let place = i32::from(rand::random::<u8>() % PLACES);
        let places = connection.database.collection(schema::BARRIERS);
        (Self(Mutex::new(Some(tx))), BarrierTask { waiting, connection: connection.clone(), places, place })
    }

    /// A time at which everything that was acknowledged before this call had happened.
    pub(super) async fn pass(&self) -> Result<Timestamp, Fault> {
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (answer, answered) = oneshot::channel();
        queue.ok_or(Fault::Closed)?.send(answer).await.map_err(|_| Fault::Closed)?;
        answered.await.unwrap_or(Err(Fault::Closed))
    }

    /// Accepts nothing more.
    pub(super) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The task's own state.
#[derive(Debug)]
pub(super) struct BarrierTask {
    waiting: mpsc::Receiver<Waiting>,
    connection: Connection,
    places: Collection<Document>,
    place: i32,
}

impl BarrierTask {
    /// Until nobody can ask any more.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::new();
        // Whoever comes while a write is under way waits for the next one, which begins after it came.
        while self.waiting.recv_many(&mut waiting, QUEUE).await > 0 {
            let outcome = timeout(self.connection.limit, self.write()).await.unwrap_or(Err(Fault::TimedOut));
            for answer in waiting.drain(..) {
                // Whoever waited may have gone away.
                let _ = answer.send(outcome.clone());
            }
        }
    }

    async fn write(&self) -> Result<Timestamp, Fault> {
        let mut session = self.connection.causal().await?;
        let (place, count) = (doc! { "_id": self.place }, doc! { "$inc": { "count": 1_i64 } });
        self.places.update_one(place, count).upsert(true).session(&mut session).await?;
        session.operation_time().ok_or(Fault::Misuse("a server that tells no time"))
    }
}
