//! Rooms, resume and replies over a real store and a provider that says what the test tells it to.

mod bounds;
mod budgets;
mod conversation;
mod erasure;
mod faults;
pub(crate) mod fixture;
mod handoff;
mod life;
mod outages;
mod replies;
mod resume;
pub(super) mod shared;
mod shares;
mod two_cores;
mod two_cores_orphans;
mod two_cores_random;
mod writes;
