//! Figures.
use crate::domain::entry::ReplyFinished;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::time::Duration;
/// Figures.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "x")]
pub struct Metrics {
    pub sessions_live: Gauge,
    pub subscribers: Gauge,
    pub replies_running: Gauge,
    pub deltas: Counter,
}
#[expect(missing_docs, reason = "x")]
impl Metrics {
    pub fn appended(&self, _outcome: &'static str) {}
    pub fn first_text(&self, _model: &str, _after: Duration) {}
    pub fn reply_finished(&self, _f: &ReplyFinished, _ran: Option<Duration>) {}
    pub fn grpc_request(&self, _m: &'static str, _c: &'static str) {}
}
