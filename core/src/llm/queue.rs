//! How many replies a provider generates at once, and who is next. Users take turns, so that one with many sessions does not
//! make the others wait; when the queue is full, it is the one with the most who loses a place.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ProviderError;

/// How many may run and wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLimits {
    /// Replies at once.
    pub running: usize,
    /// Replies that wait for a place; more are refused.
    pub waiting: usize,
    /// Longest wait for a place.
    pub wait: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { running: 2_000, waiting: 1_000, wait: Duration::from_secs(30) }
    }
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    place: oneshot::Sender<Place>,
}

#[derive(Debug, Default)]
struct Inner {
    running: usize,
    /// In the order of their turns; each is in `waiters` with at least one.
    turns: VecDeque<String>,
    waiters: HashMap<String, VecDeque<Waiter>>,
    waiting: usize,
    next_id: u64,
    refused: u64,
    waits: u64,
    waited: Duration,
}

impl Inner {
    /// The next in turn leaves the queue.
    fn pop(&mut self) -> Option<Waiter> {
        let user = self.turns.pop_front()?;
        let waiters = self.waiters.get_mut(&user)?;
        let waiter = waiters.pop_front();
        if waiters.is_empty() {
            self.waiters.remove(&user);
        } else {
            self.turns.push_back(user);
        }
        self.waiting -= usize::from(waiter.is_some());
        waiter
    }

    /// Takes a waiter out of the queue: it gave up, or lost its place.
    fn remove(&mut self, user: &str, which: impl Fn(&VecDeque<Waiter>) -> Option<usize>) {
        let Some(waiters) = self.waiters.get_mut(user) else { return };
        let Some(index) = which(waiters) else { return };
        waiters.remove(index);
        self.waiting -= 1;
        if waiters.is_empty() {
            self.waiters.remove(user);
            self.turns.retain(|other| other != user);
        }
    }

    /// Makes room for one more of this user, at the cost of whoever has clearly more.
    fn make_room(&mut self, user: &str) -> bool {
        let own = self.waiters.get(user).map_or(0, VecDeque::len);
        let most = self.waiters.iter().max_by_key(|(_, waiters)| waiters.len());
        let Some((heaviest, _)) = most.filter(|(_, waiters)| waiters.len() > own + 1) else { return false };
        let heaviest = heaviest.clone();
        // Its newest: the one that has waited least.
        self.remove(&heaviest, |waiters| waiters.len().checked_sub(1));
        true
    }
}

/// How a queue is just now, and what has been so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueLoad {
    /// Places that are taken.
    pub running: usize,
    /// Who waits for one.
    pub waiting: usize,
    /// How many found no room.
    pub refused: u64,
    /// How many have waited, whatever for.
    pub waits: u64,
    /// How long, all together.
    pub waited: Duration,
}

/// The places of one provider. A clone shares them.
#[derive(Debug, Clone)]
pub struct Queue {
    limits: QueueLimits,
    /// Guards plain data and is never held over an await.
    inner: Arc<Mutex<Inner>>,
}

impl Queue {
    /// Empty.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self { limits, inner: Arc::default() }
    }

    /// Waits for a place. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`ProviderError::QueueFull`], also when somebody else needed the room more; [`ProviderError::Timeout`] after the
    /// longest wait.
    pub async fn enter(&self, user: &str) -> Result<Place, ProviderError> {
        let (waiting, place) = match self.join(user)? {
            Joined::Placed(place) => return Ok(place),
            Joined::Waits(waiting, place) => (waiting, place),
        };
        // A wait that is given up counts, too: `waiting` is dropped then.
        let result = tokio::time::timeout(self.limits.wait, place).await;
        // Before the result is looked at: a place that arrives now goes on to the next with its receiver.
        drop(waiting);
        match result {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(ProviderError::QueueFull),
            Err(_) => Err(ProviderError::Timeout("queue")),
        }
    }

    /// How it is just now, and what has been so far.
    #[must_use]
    pub fn load(&self) -> QueueLoad {
        let Inner { running, waiting, refused, waits, waited, .. } = *self.lock();
        QueueLoad { running, waiting, refused, waits, waited }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, user: &str) -> Result<Joined, ProviderError> {
        let mut inner = self.lock();
        if inner.running < self.limits.running {
            inner.running += 1;
            return Ok(Joined::Placed(Place { queue: Some(self.clone()) }));
        }
        if inner.waiting >= self.limits.waiting {
            inner.refused += 1;
            if !inner.make_room(user) {
                return Err(ProviderError::QueueFull);
            }
        }
        let (sender, place) = oneshot::channel();
        let id = inner.next_id;
        inner.next_id += 1;
        inner.waiting += 1;
        if !inner.waiters.contains_key(user) {
            inner.turns.push_back(user.to_owned());
        }
        inner.waiters.entry(user.to_owned()).or_default().push_back(Waiter { id, place: sender });
        drop(inner);
        let waiting = Waiting { queue: self.clone(), user: user.to_owned(), id, since: Instant::now() };
        Ok(Joined::Waits(waiting, place))
    }

    /// Hands a place to the next in turn, or takes it back.
    fn release(&self) {
        loop {
            let next = {
                let mut inner = self.lock();
                let next = inner.pop();
                if next.is_none() {
                    inner.running -= 1;
                }
                next
            };
            let Some(waiter) = next else { return };
            match waiter.place.send(Place { queue: Some(self.clone()) }) {
                Ok(()) => return,
                // It gave up just now. Its place must not be released by being dropped: the loop does that.
                Err(mut place) => place.queue = None,
            }
        }
    }
}

enum Joined {
    Placed(Place),
    Waits(Waiting, oneshot::Receiver<Place>),
}

/// A place; it goes to the next when it is dropped.
#[derive(Debug)]
pub struct Place {
    queue: Option<Queue>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.release();
        }
    }
}

/// Somebody in the queue; leaves it when dropped.
struct Waiting {
    queue: Queue,
    user: String,
    id: u64,
    since: Instant,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.waits += 1;
        inner.waited += self.since.elapsed();
        inner.remove(&self.user, |waiters| waiters.iter().position(|waiter| waiter.id == self.id));
    }
}

#[cfg(test)]
mod tests;
