//! The `dify` provider: the chat-messages API of an application, streamed.
//!
//! The application decides which model answers, how, and how long: name and output limit of a model mean nothing here. It
//! goes on with an answer when nobody reads it, so a reply that ends early is stopped by a call of its own (`stop`).
//!
//! `request` and `wire` are the format and pure; `client` is the transport.

mod client;
mod request;
mod stop;
mod wire;

pub use client::{Dify, DifySettings};

#[cfg(test)]
mod conformance;
