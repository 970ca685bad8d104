//! What this room hears from the rooms of the same session in other cores, and what it tells them. All of it is a hint:
//! entries are applied only where they follow the head, and a gap, a mark of loss or a doubt is settled by the store.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{Room, attach};
use crate::{
    bus::{Delivery, Subscription},
    domain::entry::{EntryKind, Sender, Seq},
    session::link::{Asked, Hint, Presence, Question, Said, Told, piece},
    store::{BootId, LogDocument},
};

/// Who is attached elsewhere is forgotten unless it is said again within this time.
const PRESENCE_LAPSES: Duration = Duration::from_secs(30);

/// Who is attached here is said again this often.
const PRESENCE_REFRESH: Duration = Duration::from_secs(10);

/// Cores whose participants a room knows; those of others are not shown.
const MAX_CORES: usize = 64;

/// What other cores have said about those attached there.
#[derive(Default)]
pub(super) struct Peers {
    cores: HashMap<BootId, (Vec<Sender>, Instant)>,
    typing: BTreeMap<String, (Sender, Instant)>,
    /// When who is attached here is said again.
    next_refresh: Option<Instant>,
}

impl Peers {
    pub(super) fn is_quiet(&self) -> bool {
        self.cores.is_empty() && self.typing.is_empty() && self.next_refresh.is_none()
    }

    pub(super) fn online(&self) -> impl Iterator<Item = &Sender> {
        self.cores.values().flat_map(|(online, _)| online)
    }
}

/// The next delivery. Waits for ever when there is nobody to listen to. Cancel-safe.
pub(super) async fn next_delivery(subscription: &mut Option<Subscription>) -> Option<Delivery> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

impl Room {
    pub(super) fn delivered(&mut self, delivery: Option<Delivery>) {
        match delivery {
            Some(Delivery::Message(payload)) => match self.link.open(&payload) {
                Some(Hint::Document(document)) => self.document(&document),
                Some(Hint::Said(said)) => self.said(said),
                None => tracing::debug!(session.id = %self.log.id, "a hint could not be read"),
            },
            Some(Delivery::Request(payload, answer)) => {
                if let Some(asked) = self.link.asked(&payload, answer) {
                    self.asked(asked);
                }
            }
            Some(Delivery::Lost) => self.lost(),
            // The bus is closed: this core is leaving.
            None => self.subscription = None,
        }
    }

    /// Until the head has been compared with the store, nothing here is said to be current.
    fn lost(&mut self) {
        self.stale_since = Some(Instant::now());
        if self.subscribers.is_waiting() {
            self.writes.wants_tail = true;
        }
        self.distrust_remote();
        self.shared.compare_heads_now();
        self.publish_presence(true);
    }

    /// Entries of another core: applied if they follow the head, read from the store if something is missing before them.
    fn document(&mut self, document: &LogDocument) {
        let head = self.state.head;
        if document.first_seq > head + 1 {
            self.writes.wants_tail = true;
            return;
        }
        if document.first_seq <= head {
            return;
        }
        match self.log.open_document(document) {
            Ok(entries) => {
                self.apply_all(&entries);
                let starts = entries.iter().any(|entry| matches!(entry.fact.kind, EntryKind::ReplyStarted(_)));
                self.follow(starts);
                self.retry_opens();
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, session.id = %self.log.id, "published entries could not be read");
                self.writes.wants_tail = true;
            }
        }
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Head(head) => {
                if head > self.state.head {
                    self.writes.wants_tail = true;
                }
            }
            Said::Delta(delta) => self.remote_delta(delta),
            Said::Typing { sender, active } => self.peer_typing(sender, active),
            Said::Presence(presence) => self.peer_presence(presence),
        }
    }

    fn asked(&mut self, asked: Asked) {
        let (question, number, answer) = asked.into_parts();
        let (Question::Text { message_id, .. } | Question::Stop { message_id }) = question;
        // Whoever does not run it says nothing: somebody else may.
        let Some(reply) = self.reply.as_mut().filter(|reply| reply.id == message_id) else { return };
        let told = match question {
            Question::Text { from, .. } => piece(&reply.text, from),
            Question::Stop { .. } => {
                reply.cancel();
                Told::Stopping
            }
        };
        self.link.tell(number, answer, told);
    }

    fn peer_typing(&mut self, sender: Sender, active: bool) {
        let typing = &mut self.peers.typing;
        if active {
            typing.insert(sender.user_id.clone(), (sender.clone(), Instant::now() + attach::TYPING_LAPSES));
        } else {
            typing.remove(&sender.user_id);
        }
        while typing.len() > MAX_CORES {
            typing.pop_first();
        }
        self.subscribers.broadcast(&attach::typing(&sender, active));
    }

    fn peer_presence(&mut self, presence: Presence) {
        let Presence { core, online, read, asks } = presence;
        let known = self.peers.cores.get(&core).map(|(online, _)| online);
        let mut changed = known.map_or(!online.is_empty(), |known| *known != online);
        if online.is_empty() {
            self.peers.cores.remove(&core);
        } else if known.is_some() || self.peers.cores.len() < MAX_CORES {
            let mut online = online;
            online.truncate(attach::MAX_SUBSCRIBERS);
            self.peers.cores.insert(core, (online, Instant::now() + PRESENCE_LAPSES));
        }
        for (user_id, seq) in read {
            if seq > self.state.head || self.read_marks.len() >= MARKS && !self.read_marks.contains_key(&user_id) {
                continue;
            }
            let mark = self.read_marks.entry(user_id).or_default();
            changed |= seq > *mark;
            *mark = seq.max(*mark);
        }
        if changed {
            self.broadcast_presence(None);
        }
        if asks {
            self.publish_presence(false);
        }
    }

    /// Tells the others who is attached here.
    pub(super) fn publish_presence(&mut self, asks: bool) {
        if self.subscription.is_none() {
            return;
        }
        let online = self.subscribers.senders();
        if online.is_empty() && self.peers.next_refresh.is_none() && !asks {
            return;
        }
        self.peers.next_refresh = (!online.is_empty()).then(|| Instant::now() + PRESENCE_REFRESH);
        let read: Vec<(String, Seq)> = self.read_marks.iter().map(|(user, seq)| (user.clone(), *seq)).collect();
        let core = self.shared.boot_id;
        self.link.publish(&Said::Presence(Presence { core, online, read, asks }));
    }

    /// Says again who is here, and forgets who has not been heard of.
    pub(super) fn tick_peers(&mut self, now: Instant) {
        if self.peers.next_refresh.is_some_and(|at| at <= now) {
            self.publish_presence(false);
        }
        let before = self.peers.cores.len();
        self.peers.cores.retain(|_, (_, until)| *until > now);
        if self.peers.cores.len() != before {
            self.broadcast_presence(None);
        }
        let lapsed: Vec<Sender> =
            self.peers.typing.values().filter(|(_, until)| *until <= now).map(|(sender, _)| sender.clone()).collect();
        for sender in lapsed {
            self.peers.typing.remove(&sender.user_id);
            self.subscribers.broadcast(&attach::typing(&sender, false));
        }
    }
}

/// Read marks that a room keeps, as many as the store does.
const MARKS: usize = crate::store::MAX_READ_MARKS as usize;
