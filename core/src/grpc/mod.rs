//! The gRPC surface: identity, form, translation. Every method is: who calls, convert, call, convert. tonic's types stay
//! in here.

mod accept;
mod admin;
mod auth;
mod chat;
mod convert;
mod core;
mod details;
mod limits;
mod page;
mod server;
mod trace;

pub use self::{
    core::FrameLimits,
    page::PageSizes,
    server::{GrpcLimits, GrpcServer, Health, ServeError, Services},
};
