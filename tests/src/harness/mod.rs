//! What scenarios are written with.
//!
//! The product: [`stack`] (core and edge in this process), [`pair`] (the two binaries), [`cores`] (several cores on one database), [`dev`] (the real `chatbox dev`).
//! Servers: [`provider`] (a server that follows a script, for OpenAI, Anthropic and Dify), [`llmock`],
//! [`llama`] (a real model), [`mongod`] (replica sets), [`jwks`] (a key set), [`proxy`] (a network that misbehaves). Clients: [`client`] over
//! [`ws`] in both encodings and over [`grpc`], [`http`], foreign ones in [`programs`]. Around them: [`process`], [`tools`], [`ports`], [`token`],
//! [`contract`] (every call that there is), [`history`], [`transcript`], [`metrics`], [`served`], [`wait`].
//!
//! Nothing here sleeps and hopes: a wait names its condition and its limit, and a server that has to be slow waits at a
//! [`gate`] that the test opens. Everything that is started ends when its value is dropped.

pub mod client;
pub mod collector;
pub mod contract;
pub mod cores;
pub mod dev;
pub mod gate;
pub mod generate;
pub mod grpc;
pub mod history;
pub mod http;
pub mod jwks;
pub mod llama;
pub mod llmock;
pub mod metrics;
pub mod mongod;
pub mod pair;
pub mod ports;
pub mod process;
pub mod programs;
pub mod provider;
pub mod proxy;
pub mod raw_h2;
pub mod served;
pub mod smtp;
pub mod stack;
pub mod token;
pub mod tools;
pub mod transcript;
pub mod wait;
pub mod ws;
