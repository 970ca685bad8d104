//! Lies of a store, each of which breaks one promise.

use std::str::FromStr;

use anyhow::{Context as _, Result};
use chatbox_core::{
    domain::{
        entry::{EntryKind, Fact},
        session::SessionState,
    },
    seal::{DataKey, Field},
    store::{Append, LogDocument},
};

use crate::checker::proof::Class;

/// What a store says that is not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Appends are confirmed and not written, from some point on.
    AckUnwritten,
    /// Replays go backwards.
    Reverse,
    /// Replays hold a document twice.
    Double,
    /// Replays leave a document out.
    Gap,
    /// A reply ends twice.
    SecondEnd,
    /// What is stored is not what was said.
    ChangedText,
    /// Message keys are forgotten.
    LostRepeat,
    /// A reply does not name all that it answers.
    DroppedAnswer,
    /// Checkpoints are confirmed and not written.
    LostCheckpoint,
    /// The folded state is not that of the entries.
    StaleState,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::AckUnwritten,
        Self::Reverse,
        Self::Double,
        Self::Gap,
        Self::SecondEnd,
        Self::ChangedText,
        Self::LostRepeat,
        Self::DroppedAnswer,
        Self::LostCheckpoint,
        Self::StaleState,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckUnwritten => "ack_unwritten",
            Self::Reverse => "reverse",
            Self::Double => "double",
            Self::Gap => "gap",
            Self::SecondEnd => "second_end",
            Self::ChangedText => "changed_text",
            Self::LostRepeat => "lost_repeat",
            Self::DroppedAnswer => "dropped_answer",
            Self::LostCheckpoint => "lost_checkpoint",
            Self::StaleState => "stale_state",
        }
    }

    /// What the proof must find; it may find more, since one lie leads to another.
    #[must_use]
    pub const fn found_as(self) -> &'static [Class] {
        match self {
            Self::AckUnwritten => &[Class::AckedLost],
            Self::Reverse => &[Class::EntryMissed, Class::EntryRepeated],
            Self::Double => &[Class::EntryRepeated],
            Self::Gap => &[Class::EntryMissed],
            Self::SecondEnd => &[Class::EndedTwice],
            Self::ChangedText => &[Class::AckDiffers, Class::EntryDiffers, Class::Invented],
            Self::LostRepeat => &[Class::StoredTwice, Class::RepeatDiffers, Class::RepeatNotNamed],
            Self::DroppedAnswer => &[Class::Unanswered],
            Self::LostCheckpoint => &[Class::CheckpointLost],
            Self::StaleState => &[Class::ViewDiffers],
        }
    }

    /// Documents as this store reads them.
    pub(super) fn read(self, mut documents: Vec<LogDocument>) -> Vec<LogDocument> {
        if documents.len() < 2 {
            return documents;
        }
        match self {
            Self::Reverse => documents.reverse(),
            Self::Double => {
                let again = documents[0].clone();
                documents.insert(0, again);
            }
            Self::Gap => {
                documents.remove(0);
            }
            Self::AckUnwritten
            | Self::SecondEnd
            | Self::ChangedText
            | Self::LostRepeat
            | Self::DroppedAnswer
            | Self::LostCheckpoint
            | Self::StaleState => {}
        }
        documents
    }
}

impl FromStr for Lie {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|lie| lie.name() == text).with_context(|| format!("{text}: not a lie"))
    }
}

fn place(append: &Append) -> Field {
    Field::Log { session: append.session_id, first_seq: append.expected_head + 1, count: append.count }
}

fn facts(append: &Append, key: &DataKey) -> Result<Vec<Fact>> {
    Ok(serde_json::from_slice(&key.open(place(append), &append.sealed)?)?)
}

/// Changes the entries of an append under its seal.
pub(super) fn changed(mut append: Append, key: &DataKey, change: impl FnMut(&mut EntryKind)) -> Result<Append> {
    let mut facts = facts(&append, key)?;
    facts.iter_mut().map(|fact| &mut fact.kind).for_each(change);
    append.sealed = key.seal(place(&append), &serde_json::to_vec(&facts)?);
    Ok(append)
}

/// The end of a reply in an append once more, behind it.
pub(super) fn second_end(append: &Append, key: &DataKey) -> Result<Option<Append>> {
    let facts = facts(append, key)?;
    let Some(end) = facts.into_iter().find(|fact| matches!(fact.kind, EntryKind::ReplyFinished(_))) else {
        return Ok(None);
    };
    let mut again = Append {
        append_id: rand::random(),
        expected_head: append.expected_head + u64::from(append.count),
        count: 1,
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        reply_started: None,
        reply_finished: None,
        ..append.clone()
    };
    again.sealed = key.seal(place(&again), &serde_json::to_vec(&[end])?);
    Ok(Some(again))
}

/// The folded state with another number of messages, under its seal.
pub(super) fn wrong_state(mut append: Append, key: &DataKey) -> Result<Append> {
    let place = Field::State { session: append.session_id, applied_seq: append.derived.applied_seq };
    let mut state: SessionState = serde_json::from_slice(&key.open(place, &append.derived.state)?)?;
    state.message_count += 1;
    append.derived.state = key.seal(place, &serde_json::to_vec(&state)?);
    Ok(append)
}
