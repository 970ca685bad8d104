//! One file or folder for each subcommand. Only `dev` knows core and edge; the others are clients.

pub(crate) mod admin;
pub(crate) mod chat;
pub(crate) mod dev;
pub(crate) mod models;
pub(crate) mod sessions;
pub(crate) mod token;
