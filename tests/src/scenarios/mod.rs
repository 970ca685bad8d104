//! One file for each behaviour.

mod conversation;
mod generation_faults;
mod generation_panic;
mod generation_stop;
mod generation_text;
mod resume;
mod resume_crash;
mod transcript;
