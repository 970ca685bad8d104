//! One file for each behaviour.

mod conversation;
mod dev;
mod errors;
mod expiry;
mod foreign_clients;
mod generation_faults;
mod generation_panic;
mod identity;
mod lifecycle;
mod ownership;
mod provider_faults;
mod real_model;
mod samples;
mod transcript;
