//! One file or folder for each subcommand. Only `dev` knows core and edge; the others are clients.

pub(crate) mod dev;
pub(crate) mod token;
