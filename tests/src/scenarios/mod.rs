//! One file for each behaviour.

mod conversation;
