//! Tokens: good ones of every algorithm, and those that an attacker would try.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

/// PKCS #8 of a 2048-bit RSA key: so many bytes of outer sequence, version, algorithm and octet string come before the
/// PKCS #1 key, which is what the signer takes.
const RSA_2048_PKCS8_PREFIX: usize = 26;

/// What comes before the 32 bytes of an Ed25519 key in PKCS #8 version 1, the form that the key set is made from. What
/// `rcgen` writes is version 2, as long up to the key but with the public key after it.
const ED25519_PKCS8_V1: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Signs tokens with one key.
#[derive(Debug, Clone)]
pub struct Minter {
    algorithm: Algorithm,
    kid: Option<String>,
    key: EncodingKey,
}

impl Minter {
    /// Signs with a shared secret.
    #[must_use]
    pub fn hs256(secret: &str) -> Self {
        Self { algorithm: Algorithm::HS256, kid: None, key: EncodingKey::from_secret(secret.as_bytes()) }
    }

    /// Signs with a new key pair for RS256, ES256 or `EdDSA`, named `kid`.
    ///
    /// # Errors
    /// For another algorithm.
    pub fn generate(algorithm: Algorithm, kid: &str) -> Result<Self> {
        let kind = match algorithm {
            Algorithm::RS256 => &PKCS_RSA_SHA256,
            Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::EdDSA => &PKCS_ED25519,
            other => anyhow::bail!("{other:?} is not used here"),
        };
        let der = KeyPair::generate_for(kind)?.serialize_der();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der[RSA_2048_PKCS8_PREFIX..]),
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_ed_der(&[&ED25519_PKCS8_V1, &der[16..48]].concat()),
        };
        Ok(Self { algorithm, kid: Some(kid.to_owned()), key })
    }

    /// The public half as an entry of a key set.
    ///
    /// # Errors
    /// When the key cannot be written so.
    pub fn jwk(&self) -> Result<Value> {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm)?;
        jwk.common.key_id.clone_from(&self.kid);
        Ok(serde_json::to_value(jwk)?)
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub fn mint(&self, claims: &Value) -> Result<String> {
        self.mint_with(claims, |_| {})
    }

    /// A token with these claims and a changed header.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub fn mint_with(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid.clone_from(&self.kid);
        change(&mut header);
        jsonwebtoken::encode(&header, claims, &self.key).context("signing a token")
    }

    /// Tokens that must all be refused in the same way, each with what is wrong with it. `good` are claims that would be
    /// accepted.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn attacks(&self, good: &Value) -> Result<Vec<(&'static str, String)>> {
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            claims
        };
        let without = |name: &str| {
            let mut claims = good.clone();
            claims.as_object_mut().and_then(|claims| claims.remove(name));
            claims
        };
        let now = now();
        let valid = self.mint(good)?;
        let (signed, signature) = valid.rsplit_once('.').context("three parts")?;
        let (_, payload) = signed.split_once('.').context("three parts")?;
        let unsigned = |header: Value, signature: &str| format!("{}.{payload}.{signature}", encode(&header));
        let stranger = match self.algorithm {
            Algorithm::HS256 => Self::hs256("a secret of somebody else, long enough"),
            other => Self::generate(other, self.kid.as_deref().unwrap_or_default())?,
        };
        let public = self.jwk()?.to_string();
        let mut attacks = vec![
            ("no signature, alg none", unsigned(json!({"alg": "none", "typ": "JWT"}), "")),
            ("signature kept, alg None", unsigned(json!({"alg": "None"}), signature)),
            ("signature left out", format!("{signed}.")),
            (
                "signature of other claims",
                format!("{}.{signature}", swap_payload(signed, &with("sub", json!("mallory")))?),
            ),
            ("signed by another key", stranger.mint(good)?),
            ("signed with the public key as a secret", Self::hs256(&public).mint(good)?),
            ("signed with an empty secret", Self::hs256("").mint(good)?),
            ("expired", self.mint(&with("exp", json!(now - 3_600)))?),
            ("without an expiry", self.mint(&without("exp"))?),
            ("expiry is text", self.mint(&with("exp", json!("tomorrow")))?),
            ("expiry is beyond time", self.mint(&with("exp", json!(1.0e30)))?),
            ("not valid yet", self.mint(&with("nbf", json!(now + 3_600)))?),
            ("without a subject", self.mint(&without("sub"))?),
            ("an empty subject", self.mint(&with("sub", json!("")))?),
            ("a subject with a line break", self.mint(&with("sub", json!("alice\nadmin")))?),
            ("a subject of 256 bytes", self.mint(&with("sub", json!("a".repeat(256))))?),
            (
                "critical extensions",
                format!("{}.{payload}.{signature}", encode(&json!({"alg": self.algorithm, "crit": ["x"]}))),
            ),
            ("not base64", format!("{signed}.!!!")),
            ("two parts", signed.to_owned()),
            ("four parts", format!("{valid}.{signature}")),
            ("nothing", String::new()),
            ("not a token", "open sesame".to_owned()),
            ("too long", self.mint(&with("padding", json!("x".repeat(9_000))))?),
        ];
        for name in ["iss", "aud"] {
            if good.get(name).is_some() {
                attacks.push(("another issuer or audience", self.mint(&with(name, json!("elsewhere")))?));
                attacks.push(("no issuer or audience", self.mint(&without(name))?));
            }
        }
        if self.kid.is_some() {
            attacks.push((
                "an unknown key id",
                self.mint_with(good, |header| header.kid = Some("../../etc/passwd".to_owned()))?,
            ));
            let own = Jwk::from_encoding_key(&stranger.key, stranger.algorithm)?;
            attacks.push(("brings its own key", stranger.mint_with(good, |header| header.jwk = Some(own))?));
        }
        Ok(attacks)
    }
}

/// Claims that are accepted for an hour.
#[must_use]
pub fn claims(sub: &str, role: &str) -> Value {
    json!({"sub": sub, "roles": [role], "iat": now(), "exp": now() + 3_600})
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn swap_payload(signed: &str, claims: &Value) -> Result<String> {
    let (header, _) = signed.split_once('.').context("three parts")?;
    Ok(format!("{header}.{}", encode(claims)))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    fn minters() -> Vec<Minter> {
        let mut all = vec![Minter::hs256("0123456789abcdef0123456789abcdef")];
        for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
            all.push(Minter::generate(algorithm, "k1").unwrap());
        }
        all
    }

    fn accepts(minter: &Minter, token: &str) -> bool {
        let jwk: Jwk = serde_json::from_value(minter.jwk().unwrap()).unwrap();
        let key = DecodingKey::from_jwk(&jwk).unwrap();
        let mut validation = Validation::new(minter.algorithm);
        validation.validate_aud = false;
        decode::<Value>(token, &key, &validation).is_ok()
    }

    #[test]
    fn a_minted_token_fits_the_published_key() {
        for minter in minters() {
            let token = minter.mint(&claims("alice", "user")).unwrap();
            assert!(accepts(&minter, &token), "{:?}", minter.algorithm);
        }
    }

    #[test]
    fn no_private_part_of_a_key_pair_is_published() {
        for minter in &minters()[1..] {
            let jwk = minter.jwk().unwrap();
            assert!(jwk.get("d").is_none() && jwk["kid"] == "k1", "{jwk}");
        }
    }

    #[test]
    fn forged_and_expired_tokens_are_not_accepted_by_a_plain_verifier() {
        for minter in minters() {
            let attacks = minter.attacks(&claims("alice", "user")).unwrap();
            for name in
                ["no signature, alg none", "signature left out", "signed by another key", "expired", "two parts"]
            {
                let (_, token) = attacks.iter().find(|(attack, _)| *attack == name).unwrap();
                assert!(!accepts(&minter, token), "{name} with {:?}", minter.algorithm);
            }
        }
    }
}
