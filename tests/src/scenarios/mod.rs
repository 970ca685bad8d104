//! One file for each behaviour.

mod conversation;
mod dev;
mod foreign_clients;
mod generation_faults;
mod generation_panic;
mod generation_stop;
mod generation_text;
mod identity;
mod lifecycle;
mod model_page;
mod provider_faults;
mod real_model;
mod resume;
mod resume_crash;
mod resume_slow;
mod samples;
mod transcript;
