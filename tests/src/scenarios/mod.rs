//! One file for each behaviour.

mod conversation;
mod generation_faults;
mod generation_panic;
mod transcript;
