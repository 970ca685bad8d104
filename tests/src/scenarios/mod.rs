//! One file for each behaviour.

mod conversation;
mod errors;
mod expiry;
mod identity;
mod ownership;
