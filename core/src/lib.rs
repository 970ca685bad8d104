//! Core of Chatbox: sessions and their log, generation, storage, and the `ChatCore` gRPC service.
//!
//! Imports go downward only: `main → app → grpc → {session, generate} → {llm, store, bus, notify, seal} → domain →
//! chatbox_proto`.

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod generate;
pub mod grpc;
mod keys;
pub mod llm;
pub mod metrics;
pub mod notify;
mod operators;
pub mod seal;
pub mod session;
pub mod store;
pub mod telemetry;
