//! Live sessions: the one place where entries are decided and appended.
//!
//! [`Sessions`] is what the layer above calls. Each live session is owned by one `room` task; the `directory` finds or
//! opens it. The room is the only writer of its session in this process; across processes the log decides. Nothing here
//! knows of tonic, of SQL or of a provider's wire format.

pub mod alerts;
pub mod audit;
mod budgets;
mod context;
mod directory;
mod erasure;
mod error;
pub mod event;
mod history;
mod holds;
mod idle;
mod link;
mod listing;
mod log;
mod naming;
mod queue;
pub mod register;
mod reply;
mod room;
pub mod rotation;
mod sessions;
mod shares;
mod subscriber;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
pub mod watch;

pub use self::{
    directory::{Directory, Parts, Phase, SessionLimits},
    error::SessionError,
    listing::SessionPage,
    naming::{MAX_NAME, NamedBy, NamingLimits},
    room::{Act, Attach, Frame, RoomHandle, SubscriberId},
    sessions::{MessagePage, OpenSession, Sessions},
    shares::{NewShare, SharePage, SharedPage, Shares},
    subscriber::{Closed, Queue, QueueLimits, QueueStream},
};
