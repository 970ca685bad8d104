//! Rooms, resume and replies over a real store and a provider that says what the test tells it to.

mod faults;
pub(crate) mod fixture;
mod outages;
mod replies;
mod resume;
mod writes;
