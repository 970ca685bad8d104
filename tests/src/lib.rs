//! Scenarios against real processes and real servers.
//!
//! [`harness`] holds what scenarios are written with; it knows the contract and the command lines of the binaries, not the
//! insides of core and edge. `scenarios` holds one file for each behaviour. [`checker`] loads the product while it fails, and
//! proves from what clients saw and the store holds that nothing acknowledged was lost.

#![expect(clippy::wildcard_enum_match_arm, reason = "who waits for one kind of event passes over all others")]

pub mod checker;
pub mod harness;
pub mod properties;

#[cfg(test)]
mod scenarios;
