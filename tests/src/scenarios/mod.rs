//! One file for each behaviour.

mod bad_input;
mod conversation;
mod dev;
mod errors;
mod expiry;
mod foreign_clients;
mod generation_faults;
mod generation_panic;
mod headers;
mod identity;
mod lifecycle;
mod ownership;
mod provider_faults;
mod races;
mod real_model;
mod samples;
mod transcript;
