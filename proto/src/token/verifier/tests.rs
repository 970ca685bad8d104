use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::UNIX_EPOCH,
};

use async_trait::async_trait;
use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use bytes::Bytes;
use jsonwebtoken::{EncodingKey, jwk::Jwk};

use super::*;
use crate::token::{MintClaims, Role, Secret, mint_hs256};

const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";
const CLAIMS: &str = r#"{"sub":"alice","exp":1800000060}"#;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A pair of keys for one algorithm.
struct Pair {
    algorithm: Algorithm,
    private: EncodingKey,
    kid: &'static str,
    /// The public half, where the library does not make it.
    ed: Vec<u8>,
}

impl Pair {
    fn new(algorithm: Algorithm, kid: &'static str) -> Self {
        let rng = SystemRandom::new();
        let mut ed = Vec::new();
        let private = match algorithm {
            Algorithm::HS256 => EncodingKey::from_secret(SECRET.as_bytes()),
            Algorithm::RS256 => {
                let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
                // A PKCS #8 key is a PKCS #1 one behind a header of 26 bytes.
                EncodingKey::from_rsa_der(&der.as_ref()[26..])
            }
            Algorithm::ES256 => EncodingKey::from_ec_der(
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng).unwrap().as_ref(),
            ),
            Algorithm::EdDSA => {
                let der = Ed25519KeyPair::generate_pkcs8(&rng).unwrap();
                ed = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap().public_key().as_ref().to_vec();
                EncodingKey::from_ed_der(der.as_ref())
            }
        };
        Self { algorithm, private, kid, ed }
    }

    fn library_algorithm(&self) -> jsonwebtoken::Algorithm {
        self.algorithm.name().parse().unwrap()
    }

    fn hmac(secret: &[u8]) -> Self {
        Self { algorithm: Algorithm::HS256, private: EncodingKey::from_secret(secret), kid: "k", ed: Vec::new() }
    }

    fn public(&self) -> String {
        if self.algorithm == Algorithm::EdDSA {
            let x = URL_SAFE_NO_PAD.encode(&self.ed);
            return format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{}","x":"{x}"}}"#, self.kid);
        }
        let mut jwk = Jwk::from_encoding_key(&self.private, self.library_algorithm()).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_string(&jwk).unwrap()
    }

    fn sign(&self, claims: &str) -> String {
        self.sign_with(&format!(r#"{{"alg":"{}","kid":"{}"}}"#, self.algorithm.name(), self.kid), claims)
    }

    fn sign_with(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.private, self.library_algorithm()).unwrap();
        format!("{message}.{signature}")
    }
}

/// A source whose answer a test can change, and that counts.
#[derive(Debug, Default)]
struct Scripted {
    keys: std::sync::Mutex<Vec<String>>,
    broken: std::sync::atomic::AtomicBool,
    fetches: AtomicUsize,
}

impl Scripted {
    fn with(keys: &[String]) -> Arc<Self> {
        let source = Self::default();
        source.publish(keys);
        Arc::new(source)
    }

    fn publish(&self, keys: &[String]) {
        *self.keys.lock().unwrap() = keys.to_vec();
    }
}

#[async_trait]
impl KeySource for Scripted {
    async fn fetch(&self, _limit: usize) -> Result<Bytes, KeySourceError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        if self.broken.load(Ordering::Relaxed) {
            return Err("broken".into());
        }
        Ok(format!(r#"{{"keys":[{}]}}"#, self.keys.lock().unwrap().join(",")).into())
    }
}

fn hs256() -> Verifier {
    let config = TokenConfig { secret: Secret::new(SECRET), ..TokenConfig::default() };
    Verifier::new(&config, None).unwrap()
}

fn asymmetric(algorithm: Algorithm, source: &Arc<Scripted>) -> Verifier {
    let config = TokenConfig { algorithm, ..TokenConfig::default() };
    Verifier::new(&config, Some(Arc::clone(source) as Arc<dyn KeySource>)).unwrap()
}

#[test]
fn a_minted_token_says_what_was_asked_for() {
    let claims = MintClaims {
        user_id: "svc".into(),
        display_name: "A service".into(),
        roles: vec![Role::Service],
        scopes: vec!["generate".into(), "files".into()],
        issuer: String::new(),
        audience: String::new(),
        issued_at: now(),
        lifetime: Duration::from_secs(60),
    };
    let identity = hs256().verify(&mint_hs256(&Secret::new(SECRET), &claims), now()).unwrap();
    assert_eq!((identity.user_id.as_str(), identity.display_name.as_str()), ("svc", "A service"));
    assert!(identity.is_service_with("files"));
    assert_eq!(identity.expires_at, now() + Duration::from_secs(60));
}

#[test]
fn every_changed_character_of_a_token_is_noticed() {
    let token = Pair::new(Algorithm::HS256, "k").sign(CLAIMS);
    let verifier = hs256();
    assert!(verifier.verify(&token, now()).is_ok());
    for index in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verifier.verify(&changed, now()).is_err(), "byte {index}");
    }
}

#[test]
fn what_is_not_a_compact_jws_is_refused() {
    let verifier = hs256();
    let token = Pair::new(Algorithm::HS256, "k").sign(CLAIMS);
    assert_eq!(verifier.verify("", now()), Err(TokenError::Missing));
    assert_eq!(verifier.verify(&"a".repeat(MAX_TOKEN_BYTES + 1), now()), Err(TokenError::TooLong));
    for bad in ["a", "a.b", "a.b.c", "..", &format!("{token}.x"), &format!("{token}="), &token.replace('.', "..")] {
        assert!(verifier.verify(bad, now()).is_err(), "{bad}");
    }
}

#[test]
fn a_token_without_signature_is_refused() {
    let verifier = hs256();
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(CLAIMS));
            assert_eq!(verifier.verify(&token, now()), Err(TokenError::WrongAlgorithm), "{alg}");
        }
    }
    let stripped = Pair::new(Algorithm::HS256, "k").sign(CLAIMS);
    let stripped = &stripped[..=stripped.rfind('.').unwrap()];
    assert_eq!(verifier.verify(stripped, now()), Err(TokenError::BadSignature));
}

#[test]
fn another_secret_and_a_stronger_hmac_are_refused() {
    let verifier = hs256();
    let other = Pair::hmac(&[7; 32]);
    assert_eq!(verifier.verify(&other.sign(CLAIMS), now()), Err(TokenError::BadSignature));
    let pair = Pair::new(Algorithm::HS256, "k");
    assert_eq!(verifier.verify(&pair.sign_with(r#"{"alg":"HS512"}"#, CLAIMS), now()), Err(TokenError::WrongAlgorithm));
}

#[test]
fn critical_extensions_are_refused_and_keys_in_the_header_ignored() {
    let verifier = hs256();
    let pair = Pair::new(Algorithm::HS256, "k");
    let critical = pair.sign_with(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, CLAIMS);
    assert_eq!(verifier.verify(&critical, now()), Err(TokenError::CriticalExtension));
    let attacker = Pair::hmac(&[7; 32]);
    let own_key =
        attacker.sign_with(r#"{"alg":"HS256","jwk":{"kty":"oct","k":"BwcHBw"},"jku":"https://x.test"}"#, CLAIMS);
    assert_eq!(verifier.verify(&own_key, now()), Err(TokenError::BadSignature));
}

#[tokio::test]
async fn each_asymmetric_algorithm_works_and_only_the_pinned_one() {
    let pairs = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(|algorithm| Pair::new(algorithm, "k"));
    // All keys are in the set: only the pinned algorithm decides which is used.
    let source = Scripted::with(
        &pairs.each_ref().map(|pair| pair.public().replace("\"k\"", &format!("\"{}\"", pair.algorithm.name()))),
    );
    for pinned in &pairs {
        let verifier = asymmetric(pinned.algorithm, &source);
        verifier.refresh().await.unwrap();
        for pair in &pairs {
            let header = format!(r#"{{"alg":"{0}","kid":"{0}"}}"#, pair.algorithm.name());
            let result = verifier.verify(&pair.sign_with(&header, CLAIMS), now());
            if pair.algorithm == pinned.algorithm {
                assert_eq!(result.unwrap().user_id, "alice");
            } else {
                assert_eq!(result, Err(TokenError::WrongAlgorithm));
            }
        }
        assert_eq!(
            verifier.verify(&Pair::new(Algorithm::HS256, "k").sign(CLAIMS), now()),
            Err(TokenError::WrongAlgorithm)
        );
    }
}

#[tokio::test]
async fn a_public_key_is_never_an_hmac_secret() {
    let pair = Pair::new(Algorithm::RS256, "k");
    let verifier = asymmetric(Algorithm::RS256, &Scripted::with(&[pair.public()]));
    verifier.refresh().await.unwrap();
    // The classic confusion: HMAC with the public key, under both headers.
    let public = pair.public();
    let confused = Pair::hmac(public.as_bytes());
    assert_eq!(verifier.verify(&confused.sign(CLAIMS), now()), Err(TokenError::WrongAlgorithm));
    let relabelled = confused.sign_with(r#"{"alg":"RS256","kid":"k"}"#, CLAIMS);
    assert_eq!(verifier.verify(&relabelled, now()), Err(TokenError::BadSignature));
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_and_strangers_cannot_hammer_the_issuer() {
    let (old, new) = (Pair::new(Algorithm::EdDSA, "old"), Pair::new(Algorithm::EdDSA, "new"));
    let source = Scripted::with(&[old.public()]);
    let verifier = asymmetric(Algorithm::EdDSA, &source);
    // The first token reads the set.
    assert!(verifier.authenticate(&old.sign(CLAIMS), now()).await.is_ok());
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
    for _ in 0..100 {
        let stranger = Pair::new(Algorithm::EdDSA, "stranger");
        assert_eq!(verifier.authenticate(&stranger.sign(CLAIMS), now()).await, Err(TokenError::UnknownKey));
    }
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
    source.publish(&[old.public(), new.public()]);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(verifier.authenticate(&new.sign(CLAIMS), now()).await.is_ok());
    assert!(verifier.authenticate(&old.sign(CLAIMS), now()).await.is_ok());
    assert_eq!(source.fetches.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_a_new_key_share_one_fetch() {
    let pair = Pair::new(Algorithm::EdDSA, "k");
    let source = Scripted::with(&[pair.public()]);
    let verifier = asymmetric(Algorithm::EdDSA, &source);
    let token = pair.sign(CLAIMS);
    let all = futures_util::future::join_all((0..50).map(|_| verifier.authenticate(&token, now()))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_keys_before_stay_when_a_refresh_fails_and_go_when_they_are_withdrawn() {
    let (first, second) = (Pair::new(Algorithm::EdDSA, "1"), Pair::new(Algorithm::EdDSA, "2"));
    let source = Scripted::with(&[first.public()]);
    let verifier = asymmetric(Algorithm::EdDSA, &source);
    verifier.refresh().await.unwrap();
    source.broken.store(true, Ordering::Relaxed);
    assert!(verifier.refresh().await.is_err());
    source.broken.store(false, Ordering::Relaxed);
    source.publish(&[]);
    assert!(verifier.refresh().await.is_err());
    assert!(verifier.verify(&first.sign(CLAIMS), now()).is_ok());
    source.publish(&[second.public()]);
    let fetches = source.fetches.load(Ordering::Relaxed);
    // The periodic refresh, without anybody asking.
    let waited = tokio::time::timeout(Duration::from_secs(301), verifier.keep_fresh()).await;
    assert!(waited.is_err());
    assert_eq!(source.fetches.load(Ordering::Relaxed), fetches + 1);
    assert_eq!(verifier.verify(&first.sign(CLAIMS), now()), Err(TokenError::UnknownKey));
    assert!(verifier.verify(&second.sign(CLAIMS), now()).is_ok());
}

#[test]
fn an_asymmetric_algorithm_without_keys_and_a_short_secret_do_not_start() {
    let config = TokenConfig { algorithm: Algorithm::RS256, ..TokenConfig::default() };
    assert!(Verifier::new(&config, None).is_err());
    let config = TokenConfig { secret: Secret::new("short"), ..TokenConfig::default() };
    assert!(Verifier::new(&config, None).is_err());
}
