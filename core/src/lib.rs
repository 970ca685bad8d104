//! Core of Chatbox: sessions and their log, generation, storage, and the `ChatCore` gRPC service.
//!
//! Imports go downward only: `main → app → grpc → session → {llm, store, seal} → domain → chatbox_proto`.

pub mod domain;
pub mod grpc;
pub mod llm;
pub mod metrics;
pub mod seal;
pub mod session;
pub mod store;
