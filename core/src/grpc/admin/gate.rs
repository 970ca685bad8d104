//! What every call of an admin passes before it acts: who calls, how often, why; and the record of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chatbox_proto::{error_code::ErrorCode, ids::SessionId, status::Failure, token::Identity};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::{
    domain::entry::{Sender, SenderRole},
    grpc::{
        auth::{self, Authenticator},
        convert,
    },
    session::{
        Sessions,
        audit::{AuditTrail, Intent},
    },
};

/// Bytes of the reason that an admin gives.
const MAX_REASON: usize = 500;

/// Admins whose calls are counted; beyond that those who have called the least lately are forgotten.
const MAX_COUNTED: usize = 1_000;

/// Why an admin does something: 1 to 500 bytes.
pub(in crate::grpc) fn reason(field: &'static str, text: &str) -> Result<(), Failure> {
    if text.trim().is_empty() || text.len() > MAX_REASON {
        return Err(Failure::invalid(field, "1 to 500 bytes: why, for the audit trail"));
    }
    Ok(())
}

/// The admin as a participant of a session.
pub(in crate::grpc) fn participant(identity: &Identity) -> Sender {
    Sender { role: SenderRole::Admin, user_id: identity.user_id.clone(), display_name: identity.display_name.clone() }
}

/// Calls per admin: so many a minute on average, as many at once.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct CallRate {
    per_minute: f64,
    callers: Arc<Mutex<HashMap<String, (f64, Instant)>>>,
}

impl CallRate {
    pub(in crate::grpc) fn new(per_minute: u32) -> Self {
        Self { per_minute: f64::from(per_minute), callers: Arc::default() }
    }

    /// Takes one call, or says how long to wait.
    fn take(&self, user_id: &str) -> Result<(), Failure> {
        let now = Instant::now();
        let filled = |(left, at): (f64, Instant)| {
            (left + now.duration_since(at).as_secs_f64() / 60.0 * self.per_minute).min(self.per_minute)
        };
        let mut callers = self.callers();
        if callers.len() >= MAX_COUNTED && !callers.contains_key(user_id) {
            // Whoever may make all their calls at once again is as good as unknown.
            callers.retain(|_, state| filled(*state) < self.per_minute);
            let fullest = callers.iter().max_by(|a, b| filled(*a.1).total_cmp(&filled(*b.1)));
            if let Some(fullest) = fullest.map(|(id, _)| id.clone()).filter(|_| callers.len() >= MAX_COUNTED) {
                callers.remove(&fullest);
            }
        }
        let left = callers.get(user_id).copied().map_or(self.per_minute, filled);
        if left < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - left) * 60.0 / self.per_minute);
            let failure = Failure::new(ErrorCode::ResourceExhausted, "TOO_MANY_CALLS", "too many calls of this admin");
            return Err(failure.retry_after(wait.max(Duration::from_millis(1))));
        }
        callers.insert(user_id.to_owned(), (left - 1.0, now));
        Ok(())
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<String, (f64, Instant)>> {
        // Only map operations run under this lock.
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct Gate {
    pub(in crate::grpc) authenticator: Authenticator,
    pub(in crate::grpc) audit: AuditTrail,
    pub(in crate::grpc) sessions: Sessions,
    pub(in crate::grpc) rate: CallRate,
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) identity: Identity,
    pub(super) sender: Sender,
}

impl Gate {
    /// A person of the team, not too often.
    pub(super) async fn admin(&self, metadata: &MetadataMap) -> Result<Admin, Failure> {
        let identity = self.authenticator.caller(metadata).await?;
        auth::admin(&identity)?;
        self.rate.take(&identity.user_id)?;
        self.sessions.team_is_there();
        let sender = participant(&identity);
        Ok(Admin { identity, sender })
    }

    /// Writes down what the admin is about to do.
    pub(super) async fn record(
        &self,
        admin: &Admin,
        action: &'static str,
        session_id: Option<SessionId>,
        why: &str,
    ) -> Result<(), Failure> {
        reason("reason", why)?;
        let actor = admin.identity.user_id.as_str();
        self.audit.record(Intent { actor, action, session_id, user_id: "", reason: why }).await.map(|_| ())
    }

    /// An admin opens the stream of somebody else's session. No record without a reason, no stream without a record.
    pub(in crate::grpc) async fn open_stream(
        &self,
        identity: &Identity,
        session_id: SessionId,
        why: &str,
    ) -> Result<Sender, Failure> {
        auth::admin(identity)?;
        self.rate.take(&identity.user_id)?;
        reason("open.reason", why)?;
        let actor = identity.user_id.as_str();
        let intent = Intent { actor, action: "Chat", session_id: Some(session_id), user_id: "", reason: why };
        self.audit.record(intent).await?;
        Ok(participant(identity))
    }
}

/// A request id of an idempotent call.
pub(super) fn request_id(text: &str) -> Result<(), Failure> {
    convert::printable("request_id", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_to_five_hundred_bytes() {
        for bad in ["", "  ", &"x".repeat(501)] {
            assert_eq!(reason("reason", bad).unwrap_err().violations[0].0, "reason");
        }
        reason("reason", &"x".repeat(500)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_admin_calls_so_often_a_minute_and_others_have_their_own() {
        let rate = CallRate::new(60);
        for _ in 0..60 {
            rate.take("ann").unwrap();
        }
        let refused = rate.take("ann").unwrap_err();
        assert_eq!((refused.reason.as_ref(), refused.retry_after), ("TOO_MANY_CALLS", Some(Duration::from_secs(1))));
        rate.take("bob").unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        rate.take("ann").unwrap();
        rate.take("ann").unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_thousand_admins_are_remembered() {
        let rate = CallRate::new(10);
        for n in 0..3_000 {
            rate.take(&n.to_string()).unwrap();
        }
        assert_eq!(rate.callers().len(), MAX_COUNTED);
    }
}
