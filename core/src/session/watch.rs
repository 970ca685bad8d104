//! What admins watch: the sessions that wait for a person or are held by one, first as they are, then as they change.

use std::{collections::HashMap, time::Duration};

use chatbox_proto::{ids::SessionId, status::Failure, v1};
use tokio::{sync::mpsc, time::Instant};

use super::{error::SessionError, sessions::Sessions};
use crate::store::{HandoffRow, Stage};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Sessions that one watcher is shown: of those that wait the longest, and of those that are held.
const SHOWN: u32 = 1_000;

/// Something a watcher is told.
#[derive(Debug)]
pub enum Watched {
    /// A session is new here or has changed: once more when it has left.
    Session(Box<v1::Session>),
    /// Everything up to now was told.
    CaughtUp,
    /// Nothing has happened.
    Heartbeat,
}

/// A session as it was told last.
struct Told {
    row: HandoffRow,
    session: v1::Session,
}

impl Sessions {
    /// Tells `watcher` until it is gone. A slow one is waited for and then told how things are by then: nothing piles up.
    pub async fn watch(&self, heartbeat: Duration, watcher: mpsc::Sender<Result<Watched, Failure>>) {
        let mut told: HashMap<SessionId, Told> = HashMap::new();
        let mut caught_up = false;
        let mut last = Instant::now();
        loop {
            match self.news(&mut told).await {
                Ok(news) => {
                    if !news.is_empty() {
                        last = Instant::now();
                    }
                    for session in news {
                        if watcher.send(Ok(Watched::Session(Box::new(session)))).await.is_err() {
                            return;
                        }
                    }
                    if !caught_up && watcher.send(Ok(Watched::CaughtUp)).await.is_err() {
                        return;
                    }
                    caught_up = true;
                }
                Err(failure) => {
                    let _ = watcher.send(Err(failure)).await;
                    return;
                }
            }
            self.team_is_there();
            if last.elapsed() >= heartbeat {
                last = Instant::now();
                if watcher.send(Ok(Watched::Heartbeat)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = watcher.closed() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// The sessions that are not as they were told.
    async fn news(&self, told: &mut HashMap<SessionId, Told>) -> Result<Vec<v1::Session>, Failure> {
        let rows = self.rows().await.map_err(|error| self.report(&error, "the queue could not be read"))?;
        let mut news = Vec::new();
        let gone: Vec<SessionId> =
            told.keys().filter(|id| rows.iter().all(|row| row.session_id != **id)).copied().collect();
        for id in gone {
            told.remove(&id);
            // One that is erased by now is not told of.
            news.extend(self.inspect(id).await.ok());
        }
        for row in rows {
            let known = told.get(&row.session_id);
            let stays = known.is_some_and(|known| known.row == row && !self.has_moved(row.session_id, &known.session));
            if stays {
                continue;
            }
            let Ok(session) = self.inspect(row.session_id).await else { continue };
            if known.is_none_or(|known| known.session != session) {
                news.push(session.clone());
            }
            told.insert(row.session_id, Told { row, session });
        }
        Ok(news)
    }

    /// Whether its place in the queue is another one than that.
    fn has_moved(&self, id: SessionId, session: &v1::Session) -> bool {
        let mut now = session.clone();
        self.complete(id, &mut now);
        now.help != session.help
    }

    /// Those that wait, longest first, then those that are held.
    async fn rows(&self) -> Result<Vec<HandoffRow>, SessionError> {
        let handoffs = self.handoffs();
        let limit = self.call_limit();
        let bounded =
            |call| async move { tokio::time::timeout(limit, call).await.map_err(|_| SessionError::StoreTimeout) };
        let mut rows = bounded(handoffs.waiting(SHOWN)).await??;
        let all = bounded(handoffs.handoffs(None, 2 * SHOWN)).await??;
        rows.extend(all.into_iter().filter(|row| row.stage == Stage::Held).take(SHOWN as usize));
        Ok(rows)
    }
}
