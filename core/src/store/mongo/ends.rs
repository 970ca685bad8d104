//! Ends of logs that this process knows of.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use chatbox_proto::ids::SessionId;

use crate::domain::entry::Seq;

/// Sessions per generation. Two generations are kept: what was not used during one is forgotten with it.
const GENERATION: usize = 32_768;

/// For each session the largest number that is known to be the end of a durable document, 0 for a session that exists.
/// A document's end stays one for ever, so that what is here is never wrong, only behind.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<SessionId, Seq>,
    old: HashMap<SessionId, Seq>,
}

impl Ends {
    pub(super) fn get(&self, id: SessionId) -> Option<Seq> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.young.get(&id).or_else(|| known.old.get(&id)).copied()
    }

    pub(super) fn raise(&self, id: SessionId, end: Seq) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.young.len() >= GENERATION && !known.young.contains_key(&id) {
            known.old = std::mem::take(&mut known.young);
        }
        let before = known.young.get(&id).or_else(|| known.old.get(&id)).copied();
        known.young.insert(id, before.unwrap_or(0).max(end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_only_rise_and_their_number_is_bounded() {
        let ends = Ends::default();
        let id = SessionId::generate();
        assert_eq!(ends.get(id), None);
        ends.raise(id, 5);
        ends.raise(id, 3);
        assert_eq!(ends.get(id), Some(5));
        for _ in 0..GENERATION {
            ends.raise(SessionId::generate(), 1);
        }
        ends.raise(id, 1);
        assert_eq!(ends.get(id), Some(5), "carried over into the next generation");
        for _ in 0..3 * GENERATION {
            ends.raise(SessionId::generate(), 1);
        }
        assert_eq!(ends.get(id), None);
        let known = ends.0.lock().unwrap();
        assert!(known.young.len() + known.old.len() <= 2 * GENERATION);
    }
}
