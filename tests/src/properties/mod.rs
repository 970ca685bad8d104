//! What must hold for any bytes that a stranger sends, each property as a plain function that panics when it does not. The
//! fuzz targets in `tests/fuzz` call the same functions as the tests here, which run on their corpus and on mutations of it.

mod frames;
mod secrets;
mod streams;
mod values;

pub use self::{
    frames::{client_frame, server_event},
    secrets::{page_token, sealed, token},
    streams::{chunks, sse},
    values::values,
};

/// Holds for any bytes, or panics.
pub type Property = fn(&[u8]);

/// Every property with its name, which is that of its fuzz target and of the folder of its corpus.
pub const ALL: [(&str, Property); 8] = [
    ("chunks", chunks),
    ("client_frame", client_frame),
    ("page_token", page_token),
    ("sealed", sealed),
    ("server_event", server_event),
    ("sse", sse),
    ("token", token),
    ("values", values),
];

#[cfg(test)]
mod tests;
