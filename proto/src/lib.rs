//! The contract of Chatbox: `chatbox.v1` as generated code, canonical JSON, ids, the error table and token verification.
//!
//! Everybody may use this crate; it uses nothing of the project. It does no I/O, with one exception: [`spans::Exporter`],
//! which every process has, talks to the collector of the operator. Whoever fetches a key set does so through
//! [`token::KeySource`].

pub mod codec;
pub mod error_code;
pub mod ids;
pub mod json;
pub mod peek;
pub mod settings;
pub mod spans;
pub mod status;
pub mod time;
pub mod token;
pub mod trace;

/// Messages of `chatbox.v1`, generated from `proto/chatbox/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
#[rustfmt::skip]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/chatbox.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/chatbox.v1.serde.rs"));

    /// Client and server of `ChatCore`.
    pub mod core {
        include!(concat!(env!("OUT_DIR"), "/chatbox.v1.ChatCore.rs"));
    }

    /// Client and server of `ChatAdmin`.
    pub mod admin {
        include!(concat!(env!("OUT_DIR"), "/chatbox.v1.ChatAdmin.rs"));
    }
}

/// The encoded `FileDescriptorSet` of `chatbox.v1` and what it imports, for reflection and for tests that walk the
/// contract.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chatbox.v1.binpb"));
