//! The WebSocket side. [`upgrade`] checks the handshake; [`connection`] is one task that polls three parts side by side: the
//! reader (socket to frames), the session (what a frame means now; pure state) and the writer (events to socket). None
//! waits for another: a core that takes no frames does not stop events, and a client that takes no events does not stop its
//! own `stop`. [`link`] ties the connection to core and outlives a core's stream: [`reopen`] brings another one up while
//! the socket stays. Nothing here survives the connection.

mod attach;
mod close;
mod connection;
mod deadlines;
pub mod echo;
mod frame;
mod link;
pub mod probe;
mod reader;
mod reopen;
mod session;
mod socket;
mod unanswered;
pub(crate) mod upgrade;
mod writer;
