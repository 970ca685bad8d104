//! One file for each behaviour.

mod conversation;
mod dev;
mod foreign_clients;
mod generation_faults;
mod generation_panic;
mod identity;
mod lifecycle;
mod provider_faults;
mod real_model;
mod samples;
mod transcript;
