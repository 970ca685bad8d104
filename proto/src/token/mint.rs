//! Tokens for development: what `chatbox token` prints.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Serialize;

use super::{Role, Secret};

/// What a minted token says.
#[derive(Debug, Clone)]
pub struct MintClaims {
    /// The subject.
    pub user_id: String,
    /// Name to show; may be empty.
    pub display_name: String,
    /// Its roles.
    pub roles: Vec<Role>,
    /// Its scopes, for a service.
    pub scopes: Vec<String>,
    /// `iss`; empty: none.
    pub issuer: String,
    /// `aud`; empty: none.
    pub audience: String,
    /// `iat`.
    pub issued_at: SystemTime,
    /// How long it is valid.
    pub lifetime: Duration,
}

#[derive(Serialize)]
struct Wire<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    roles: Vec<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    aud: &'a str,
    iat: u64,
    exp: u64,
}

/// Signs a token with a shared secret.
#[must_use]
pub fn mint_hs256(secret: &Secret, claims: &MintClaims) -> String {
    let iat = claims.issued_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let wire = Wire {
        sub: &claims.user_id,
        name: &claims.display_name,
        roles: claims.roles.iter().map(|role| role.name()).collect(),
        scope: claims.scopes.join(" "),
        iss: &claims.issuer,
        aud: &claims.audience,
        iat,
        exp: iat.saturating_add(claims.lifetime.as_secs()),
    };
    let payload = serde_json::to_vec(&wire).expect("strings and numbers serialize");
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256)
        .expect("HMAC signs with a key of any length");
    format!("{message}.{signature}")
}
