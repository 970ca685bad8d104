//! The gRPC surface: identity, form, translation. Every method is: who calls, convert, call, convert. tonic's types stay
//! in here.

mod accept;
mod admin;
mod auth;
mod chat;
mod convert;
mod core;
mod details;
mod generate;
mod limits;
mod page;
mod server;
mod shares;
mod trace;

use chatbox_proto::{status::Failure, v1::ChatRequest};
use prost::Message as _;

use crate::domain::entry::{Sender, SenderRole};

pub use self::{
    core::FrameLimits,
    generate::GenerateLimits,
    page::PageSizes,
    server::{GrpcLimits, GrpcServer, Health, ServeError, Services},
};

/// Whether a `Chat` stream would take this frame from a visitor, or what it would answer: everything that is decided about a
/// stranger's bytes before a session sees them.
///
/// # Errors
/// What is wrong with the frame, naming the field.
pub fn check_frame(bytes: &[u8], max_text: usize) -> Result<(), Failure> {
    let visitor = Sender { role: SenderRole::User, user_id: "visitor".to_owned(), display_name: String::new() };
    let request = ChatRequest::decode(bytes).map_err(|_| Failure::invalid("frame", "is not a ChatRequest"))?;
    convert::frame(request, Some(&visitor), max_text).map(|_| ())
}
