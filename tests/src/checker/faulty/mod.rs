//! Stores that die at a point of the test's choosing, and stores that lie. They stand between the sessions and the real store
//! in `faulty-core`, which is core with this decorator and nothing else changed; the product itself has no such hook.

mod lie;
mod store;

use std::{fmt, str::FromStr};

use anyhow::{Context as _, bail};

pub use lie::Lie;
pub use store::{FaultyStore, Orders};

/// The variable that names a failpoint: `append:before:3`.
pub const ABORT: &str = "FAULTY_ABORT";

/// The variable that names a lie.
pub const LIE: &str = "FAULTY_LIE";

/// The variable that makes a store forget folded states.
pub const FORGETFUL: &str = "FAULTY_FORGETFUL";

/// A call that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `create_session`
    CreateSession,
    /// `append`
    Append,
    /// `replace_derived`
    ReplaceDerived,
    /// `renew_reply`
    RenewReply,
    /// `mark_read`
    MarkRead,
    /// `init_installation_value`
    InitInstallationValue,
    /// `erase_session`
    EraseSession,
}

impl Call {
    /// Every call of a store that writes something while sessions are served or erased.
    pub const ALL: [Self; 7] = [
        Self::CreateSession,
        Self::Append,
        Self::ReplaceDerived,
        Self::RenewReply,
        Self::MarkRead,
        Self::InitInstallationValue,
        Self::EraseSession,
    ];

    /// Its name in the store's trait.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateSession => "create_session",
            Self::Append => "append",
            Self::ReplaceDerived => "replace_derived",
            Self::RenewReply => "renew_reply",
            Self::MarkRead => "mark_read",
            Self::InitInstallationValue => "init_installation_value",
            Self::EraseSession => "erase_session",
        }
    }
}

/// On which side of the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nothing is written.
    Before,
    /// It is written, and nobody knows.
    After,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// Where a process dies, as if by `kill -9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failpoint {
    /// At which call.
    pub call: Call,
    /// On which side of it.
    pub side: Side,
    /// At the how manieth, from 1.
    pub nth: u64,
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.call.name(), self.side.name(), self.nth)
    }
}

impl FromStr for Failpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let [call, side, nth] = text.split(':').collect::<Vec<_>>()[..] else { bail!("{text}: not call:side:nth") };
        Ok(Self {
            call: Call::ALL.into_iter().find(|known| known.name() == call).with_context(|| call.to_owned())?,
            side: Side::ALL.into_iter().find(|known| known.name() == side).with_context(|| side.to_owned())?,
            nth: nth.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_and_a_lie_are_what_their_text_says() {
        for call in Call::ALL {
            for side in Side::ALL {
                let failpoint = Failpoint { call, side, nth: 3 };
                assert_eq!(failpoint.to_string().parse::<Failpoint>().unwrap(), failpoint);
            }
        }
        for lie in Lie::ALL {
            assert_eq!(lie.name().parse::<Lie>().unwrap(), lie);
        }
        assert!("append".parse::<Failpoint>().is_err() && "truth".parse::<Lie>().is_err());
    }
}
