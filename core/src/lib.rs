//! Core of Chatbox: sessions and their log, generation, storage, and the `ChatCore` gRPC service.
//!
//! Imports go downward only: `main → app → grpc → session → {llm, store, bus, seal, limits, budget} → domain → chatbox_proto`.

pub mod app;
pub mod budget;
pub mod bus;
pub mod config;
pub mod domain;
pub mod grpc;
mod keys;
pub mod limits;
pub mod llm;
pub mod metrics;
mod operators;
pub mod seal;
pub mod session;
pub mod store;
pub mod telemetry;
