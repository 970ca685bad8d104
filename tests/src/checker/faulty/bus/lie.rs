//! Lies of a bus: what one can do that has no keys, which must change nothing, and what only who has the session's key can
//! say, which must be found.

use std::str::FromStr;

use anyhow::{Context as _, Result};

use crate::checker::proof::Class;

/// What a bus delivers that was not published so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusLie {
    /// Everything twice.
    Double,
    /// Of two payloads the later one first.
    Swapped,
    /// Everything once more, when it is long over.
    Late,
    /// Every second payload is lost, and nobody says so.
    Lost,
    /// What was published in another session as well.
    Foreign,
    /// A document in the place of another one.
    Moved,
    /// Bits change on the way.
    Broken,
    /// Marks of loss where nothing was lost.
    Marked,
    /// Questions reach nobody.
    Mute,
    /// Answers to older questions.
    StaleAnswer,
    /// A head that the log does not have, under its seal.
    FarHead,
    /// Another text of a message, under its seal.
    ChangedText,
    /// An entry behind the head that nobody wrote, under its seal.
    Invented,
    /// Another text of a piece of a reply, under its seal.
    ChangedDelta,
    /// A piece of a reply is left out, and those after it close the gap, under their seals.
    ClosedGap,
}

impl BusLie {
    /// Those that must change nothing: the store is the truth.
    pub const HARMLESS: [Self; 11] = [
        Self::Double,
        Self::Swapped,
        Self::Late,
        Self::Lost,
        Self::Foreign,
        Self::Moved,
        Self::Broken,
        Self::Marked,
        Self::Mute,
        Self::StaleAnswer,
        Self::FarHead,
    ];

    /// Those that stand for a receiving side which takes what is not so: under a right seal there is nothing to see by.
    pub const FORGED: [Self; 4] = [Self::ChangedText, Self::Invented, Self::ChangedDelta, Self::ClosedGap];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Double => "double",
            Self::Swapped => "swapped",
            Self::Late => "late",
            Self::Lost => "lost",
            Self::Foreign => "foreign",
            Self::Moved => "moved",
            Self::Broken => "broken",
            Self::Marked => "marked",
            Self::Mute => "mute",
            Self::StaleAnswer => "stale_answer",
            Self::FarHead => "far_head",
            Self::ChangedText => "changed_text",
            Self::Invented => "invented",
            Self::ChangedDelta => "changed_delta",
            Self::ClosedGap => "closed_gap",
        }
    }

    /// What the proof must find; it may find more, since one lie leads to another. Nothing for a harmless one.
    #[must_use]
    pub const fn found_as(self) -> &'static [Class] {
        match self {
            Self::ChangedText | Self::Invented => &[Class::EntryDiffers],
            Self::ChangedDelta | Self::ClosedGap => &[Class::PieceDiffers],
            Self::Double
            | Self::Swapped
            | Self::Late
            | Self::Lost
            | Self::Foreign
            | Self::Moved
            | Self::Broken
            | Self::Marked
            | Self::Mute
            | Self::StaleAnswer
            | Self::FarHead => &[],
        }
    }

    /// Cores cannot ask each other: a stop through one of them ends a reply of another with its checkpoint.
    #[must_use]
    pub const fn hinders_questions(self) -> bool {
        matches!(self, Self::Mute | Self::StaleAnswer)
    }
}

impl FromStr for BusLie {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = Self::HARMLESS.into_iter().chain(Self::FORGED);
        all.find(|lie| lie.name() == text).with_context(|| format!("{text}: not a lie of a bus"))
    }
}
