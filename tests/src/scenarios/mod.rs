//! One file for each behaviour.

mod conversation;
mod generation_faults;
mod transcript;
