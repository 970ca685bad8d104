//! Who calls: the verified bearer token of each call, and what its roles allow.

use std::{sync::Arc, time::SystemTime};

use chatbox_proto::{
    error_code::ErrorCode,
    status::Failure,
    token::{Identity, Role, TokenError, Verifier, from_authorization},
};
use tonic::metadata::MetadataMap;

use crate::{
    domain::entry::{Sender, SenderRole},
    llm::registry::Models,
};

/// As for a model that there is not.
pub(super) const UNKNOWN_MODEL: &str = "must be the id of a model from ListModels";

/// Verifies the token of each call. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Authenticator {
    verifier: Arc<Verifier>,
}

impl Authenticator {
    pub(super) fn new(verifier: Arc<Verifier>) -> Self {
        Self { verifier }
    }

    /// The caller of a request.
    pub(super) async fn caller(&self, metadata: &MetadataMap) -> Result<Identity, Failure> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.ok_or(TokenError::Missing).and_then(from_authorization);
        match token {
            Ok(token) => self.token(token).await,
            Err(error) => Err(refused(&error)),
        }
    }

    /// The caller a token speaks for.
    pub(super) async fn token(&self, token: &str) -> Result<Identity, Failure> {
        self.verifier.authenticate(token, SystemTime::now()).await.map_err(|error| refused(&error))
    }
}

/// One text for all: the difference is in the log only.
fn refused(error: &TokenError) -> Failure {
    tracing::debug!(%error, "token refused");
    Failure::unauthenticated()
}

/// A caller who may have sessions, as the session layer knows them.
pub(super) fn session_caller(identity: &Identity) -> Result<Sender, Failure> {
    let allowed = identity.roles.contains_any(&[Role::User, Role::ChatAdmin, Role::Admin])
        || identity.is_service_with("sessions");
    if !allowed {
        return Err(denied("sessions need the role user, or the role service with the scope sessions"));
    }
    Ok(Sender {
        role: SenderRole::User,
        user_id: identity.user_id.clone(),
        display_name: identity.display_name.clone(),
    })
}

/// Whether a caller may choose this model. For the others it is as if there were none.
pub(super) fn may_choose(identity: &Identity, models: &Models, id: &str) -> Result<(), Failure> {
    match models.get(id) {
        Some(model) if !model.info.is_for(identity.roles) => Err(Failure::invalid("model", UNKNOWN_MODEL)),
        Some(_) | None => Ok(()),
    }
}

/// That there is such a model, and that the caller may choose it.
pub(super) fn must_choose(identity: &Identity, models: &Models, field: &'static str, id: &str) -> Result<(), Failure> {
    match models.get(id) {
        Some(model) if model.info.is_for(identity.roles) => Ok(()),
        Some(_) | None => Err(Failure::invalid(field, UNKNOWN_MODEL)),
    }
}

/// Whether the bearer token of a call is this secret.
pub(super) fn bears(metadata: &MetadataMap, secret: &str) -> bool {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    header.and_then(|header| from_authorization(header).ok()).is_some_and(|token| token == secret)
}

/// A service with a scope.
pub(super) fn service(identity: &Identity, scope: &'static str) -> Result<(), Failure> {
    if identity.is_service_with(scope) { Ok(()) } else { Err(denied("this needs the role service and its scope")) }
}

/// A person of the team.
pub(super) fn admin(identity: &Identity) -> Result<(), Failure> {
    if identity.roles.contains_any(&[Role::ChatAdmin, Role::Admin]) {
        Ok(())
    } else {
        Err(denied("this needs the role chat_admin or admin"))
    }
}

/// Who runs the installation, not only its conversations.
pub(super) fn operator(identity: &Identity) -> Result<(), Failure> {
    if identity.roles.contains_any(&[Role::Admin]) { Ok(()) } else { Err(denied("this needs the role admin")) }
}

fn denied(message: &'static str) -> Failure {
    Failure::new(ErrorCode::PermissionDenied, "PERMISSION_DENIED", message)
}
