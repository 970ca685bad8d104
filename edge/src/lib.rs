//! The edge: what browsers talk to. It checks the token, the Origin and the limits, adds the security headers, serves the
//! pages, and translates WebSocket frames and HTTP calls to gRPC. It knows core only through [`core_api::CoreApi`] and keeps
//! no state that outlives a connection.

pub mod app;
mod auth;
mod client;
pub mod config;
pub mod core_api;
mod headers;
mod http;
mod keys;
mod limits;
mod metrics;
mod origin;
mod router;
mod state;
mod tasks;
pub mod telemetry;
mod ws;

pub use app::App;
pub use config::Config;
pub use http::pages::is_built as page_is_built;
#[doc(hidden)]
pub use ws::{echo, probe};

#[cfg(test)]
mod testing;
