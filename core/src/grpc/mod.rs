//! The gRPC surface: identity, form, translation. Every method is: who calls, convert, call, convert. tonic's types stay
//! in here.

mod admin;
mod auth;
mod chat;
mod convert;
mod core;
mod details;
mod page;
mod server;

pub use self::server::{GrpcLimits, GrpcServer, Health, ServeError, Services};
