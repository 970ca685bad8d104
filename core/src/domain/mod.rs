//! What a conversation is, without I/O and without clocks: entries, the state they fold into, and the decisions that may
//! be appended. Everything here is pure, so that every rule can be tested with values alone.

pub mod decide;
pub mod entry;
pub mod handoff;
pub mod life;
pub mod session;
pub mod time;
