//! One file for each behaviour.

mod bad_input;
mod conversation;
mod dev;
mod errors;
mod expiry;
mod foreign_clients;
mod generation_faults;
mod generation_panic;
mod generation_stop;
mod generation_text;
mod headers;
mod identity;
mod lifecycle;
mod long_replies;
mod model_page;
mod ownership;
mod processes;
mod races;
mod real_model;
mod resume;
mod resume_crash;
mod resume_slow;
mod samples;
mod tls;
mod transcript;
mod websocket_cases;
