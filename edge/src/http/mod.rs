//! The HTTP side: one file per family of routes, each a thin forward to core. Errors are bodies of `ErrorResponse`, made in
//! one place.

pub(crate) mod admin;
pub(crate) mod bare;
mod call;
pub(crate) mod error;
pub(crate) mod health;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod observe;
pub(crate) mod pages;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod shares;
