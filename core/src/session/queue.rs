//! Those who wait for a person, as every core sees them: places and estimates for the visitors, drawn up from the store's
//! index; and whether anybody of the team is there. A change is announced on the bus, and every core looks again by itself
//! all the while, so that a lost word costs seconds.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use chatbox_proto::{ids::SessionId, v1};
use tokio::{sync::Notify, time::Instant};

use super::{directory::Directory, error::SessionError};
use crate::{
    bus::{Bus, Delivery, Subscription},
    store::{HandoffRow, HandoffStore},
};

/// Places that are told; who is further back learns theirs when it comes.
const PLACES: u32 = 1_000;
/// Between two looks when nothing was announced.
const EVERY: Duration = Duration::from_secs(2);
/// What many changes at once amount to is found out by one look.
const SOON: Duration = Duration::from_millis(50);
/// The team counts as there for so long after the last sign of one of them.
const TEAM_STAYS: Duration = Duration::from_secs(120);
/// A sign is passed on to the other cores this often at most.
const TEAM_TOLD: Duration = Duration::from_secs(20);
/// Departures that estimates are made of, and how many it takes.
const DEPARTURES: usize = 20;
const ENOUGH: usize = 3;
/// Estimates are in whole minutes: they are no better than that.
const MINUTE: u64 = 60;

const TOPIC: &str = "team";

/// What is said on the topic.
mod word {
    pub(super) const QUEUE_CHANGED: u8 = 1;
    pub(super) const TEAM_IS_THERE: u8 = 2;
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) position: u32,
    /// Absent while too little is known.
    pub(super) estimate: Option<Duration>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct HelpQueue {
    handoffs: Arc<dyn HandoffStore>,
    bus: Arc<dyn Bus>,
    changed: Notify,
    view: Mutex<View>,
}

#[derive(Debug, Default)]
struct View {
    places: HashMap<SessionId, Place>,
    /// When somebody left the queue, oldest first.
    left: VecDeque<Instant>,
    team_seen: Option<Instant>,
    team_told: Option<Instant>,
}

impl View {
    /// Takes over what the store has; returns those whose place is another one now, and those who left.
    fn update(&mut self, rows: &[HandoffRow], now: Instant) -> Vec<(SessionId, Option<Place>)> {
        let before = std::mem::take(&mut self.places);
        let there: std::collections::HashSet<SessionId> = rows.iter().map(|row| row.session_id).collect();
        for _ in before.keys().filter(|id| !there.contains(*id)) {
            self.left.push_back(now);
        }
        while self.left.len() > DEPARTURES {
            self.left.pop_front();
        }
        let pace = self.pace(now);
        for (position, row) in (1..).zip(rows) {
            let estimate = pace.map(|pace| whole_minutes(pace * position));
            self.places.insert(row.session_id, Place { position, estimate });
        }
        let moved = self.places.iter().filter(|(id, place)| before.get(*id) != Some(*place));
        let mut news: Vec<_> = moved.map(|(id, place)| (*id, Some(*place))).collect();
        news.extend(before.keys().filter(|id| !there.contains(*id)).map(|id| (*id, None)));
        news
    }

    /// Time per departure, over those that are remembered.
    fn pace(&self, now: Instant) -> Option<Duration> {
        let first = self.left.front().filter(|_| self.left.len() >= ENOUGH)?;
        Some((now - *first) / u32::try_from(self.left.len()).unwrap_or(u32::MAX))
    }
}

fn whole_minutes(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().div_ceil(MINUTE).max(1) * MINUTE)
}

impl HelpQueue {
    pub(super) fn new(handoffs: Arc<dyn HandoffStore>, bus: Arc<dyn Bus>) -> Self {
        Self { handoffs, bus, changed: Notify::new(), view: Mutex::default() }
    }

    /// Adds place and estimate to a session that waits.
    pub(super) fn complete(&self, id: SessionId, session: &mut v1::Session) {
        if let Some(help) = &mut session.help
            && help.state() == v1::HelpState::Requested
            && let Some(place) = self.view().places.get(&id)
        {
            help.position = place.position;
            help.estimated_wait = place.estimate.map(Into::into);
        }
    }

    /// The store's rows have changed.
    pub(super) fn announce(&self) {
        self.changed.notify_one();
        self.say(word::QUEUE_CHANGED);
    }

    /// Somebody of the team has shown up.
    pub(super) fn team_is_there(&self) {
        let now = Instant::now();
        let mut view = self.view();
        view.team_seen = Some(now);
        if view.team_told.is_none_or(|at| now - at >= TEAM_TOLD) {
            view.team_told = Some(now);
            drop(view);
            self.say(word::TEAM_IS_THERE);
        }
    }

    /// Whether anybody of the team has shown up lately, in any core.
    pub(super) fn is_team_there(&self) -> bool {
        self.view().team_seen.is_some_and(|at| at.elapsed() < TEAM_STAYS)
    }

    fn say(&self, word: u8) {
        if self.bus.has_peers() {
            self.bus.publish(TOPIC, Bytes::copy_from_slice(&[word]));
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // Only map operations run under this lock.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws up the queue again and again, and tells the live rooms what is new, until it is dropped.
    pub(super) async fn run(&self, directory: &Directory) {
        let mut words = if self.bus.has_peers() { Some(self.bus.subscribe(TOPIC).await) } else { None };
        loop {
            if let Err(error) = self.look(directory).await {
                directory.shared.count(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, "the queue could not be read");
            }
            let next = Instant::now() + EVERY;
            loop {
                tokio::select! {
                    () = self.changed.notified() => break,
                    () = tokio::time::sleep_until(next) => break,
                    word = next_word(&mut words) => match word {
                        Some(word::TEAM_IS_THERE) => self.view().team_seen = Some(Instant::now()),
                        Some(_) | None => break,
                    },
                }
            }
            tokio::time::sleep(SOON).await;
        }
    }

    async fn look(&self, directory: &Directory) -> Result<(), SessionError> {
        let limit = directory.shared.limits.store_call;
        let call = tokio::time::timeout(limit, self.handoffs.waiting(PLACES));
        let rows = call.await.map_err(|_| SessionError::StoreTimeout)??;
        let news = self.view().update(&rows, Instant::now());
        for (id, place) in news {
            if let Some(room) = directory.live(id) {
                room.hint_place(place);
            }
        }
        Ok(())
    }
}

/// The next word; `None` for a mark of loss. Waits for ever when there is nobody to listen to. Cancel-safe.
async fn next_word(words: &mut Option<Subscription>) -> Option<u8> {
    let Some(subscription) = words else { return std::future::pending().await };
    match subscription.next().await {
        Some(Delivery::Message(payload)) => Some(payload.first().copied().unwrap_or_default()),
        Some(Delivery::Request(..)) => Some(0),
        Some(Delivery::Lost) => None,
        None => {
            *words = None;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::time::Timestamp, store::Stage};

    fn rows(ids: &[SessionId]) -> Vec<HandoffRow> {
        let stage = Stage::Waiting { since: Timestamp::from_millis(1) };
        ids.iter().map(|id| HandoffRow { session_id: *id, stage, mark: 1 }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_moves_up_is_told_and_nobody_else() {
        let ids = [SessionId::generate(), SessionId::generate(), SessionId::generate()];
        let mut view = View::default();
        assert_eq!(view.update(&rows(&ids), Instant::now()).len(), 3);
        assert_eq!(view.update(&rows(&ids), Instant::now()), []);
        let mut news = view.update(&rows(&[ids[0], ids[2]]), Instant::now());
        news.sort_unstable_by_key(|(_, place)| place.map(|place| place.position));
        assert_eq!(news, [(ids[1], None), (ids[2], Some(Place { position: 2, estimate: None }))]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_estimate_is_the_pace_of_those_who_left_and_absent_until_enough_did() {
        let ids: Vec<SessionId> = (0..8).map(|_| SessionId::generate()).collect();
        let mut view = View::default();
        view.update(&rows(&ids), Instant::now());
        for gone in 1..=3 {
            tokio::time::advance(Duration::from_secs(90)).await;
            assert!(view.places.values().all(|place| place.estimate.is_none()));
            view.update(&rows(&ids[gone..]), Instant::now());
        }
        // Three in 180 s since the first of them: one a minute.
        assert_eq!(view.places[&ids[3]], Place { position: 1, estimate: Some(Duration::from_secs(60)) });
        assert_eq!(view.places[&ids[7]], Place { position: 5, estimate: Some(Duration::from_secs(300)) });
        for n in 0..100 {
            view.update(&rows(&ids[n % 2..]), Instant::now());
        }
        assert_eq!(view.left.len(), DEPARTURES);
    }

    #[tokio::test(start_paused = true)]
    async fn the_team_is_gone_a_while_after_the_last_sign_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let options = crate::store::sqlite::SqliteOptions::default();
        let store = crate::store::sqlite::SqliteStore::open_in(folder.path(), &options).unwrap();
        let queue = HelpQueue::new(Arc::new(store), Arc::new(crate::bus::local::LocalBus::alone()));
        assert!(!queue.is_team_there());
        queue.team_is_there();
        tokio::time::advance(TEAM_STAYS - Duration::from_secs(1)).await;
        assert!(queue.is_team_there());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!queue.is_team_there());
    }
}
