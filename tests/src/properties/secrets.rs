//! What was sealed or signed: nothing else opens, and nothing that opens breaks a rule.

use std::{
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use chatbox_core::seal::{DataKey, Field, KeyRing, TokenSealer};
use chatbox_proto::{
    ids::{MessageId, SessionId},
    token::{Algorithm, Identity, KeySource, KeySourceError, Secret, TokenConfig, Verifier, from_authorization},
};
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use crate::harness::token::now;

const SESSION: SessionId = SessionId::from_bytes([7; 16]);
static RING: LazyLock<KeyRing> = LazyLock::new(|| {
    let key = KeyRing::generate_key();
    KeyRing::from_config("k1", [("k1", key.as_str())]).expect("a key of our own making")
});
static WRAPPED: LazyLock<(DataKey, Vec<u8>)> = LazyLock::new(|| RING.new_data_key(SESSION));
static PAGES: LazyLock<TokenSealer> = LazyLock::new(|| RING.page_token_sealer());

/// Stored payloads and wrapped keys: the bytes as they are, and sealed and then changed at a place that they choose.
pub fn sealed(data: &[u8]) {
    let (key, wrapped) = &*WRAPPED;
    let (at, text) =
        data.split_first_chunk::<2>().map_or((0, data), |(at, rest)| (u16::from_be_bytes(*at).into(), rest));
    let place = place(at);
    assert!(key.open(place, data).is_err(), "nobody else can seal");
    assert!(RING.unwrap(SESSION, data).is_err(), "nobody else can wrap");
    let sealed = key.seal(place, text);
    assert_eq!(key.open(place, &sealed).expect("our own"), text);
    for changed in changes(&sealed, at) {
        assert!(key.open(place, &changed).is_err(), "a changed payload opens");
    }
    for changed in changes(wrapped, at) {
        assert!(RING.unwrap(SESSION, &changed).is_err(), "a changed key opens");
    }
    let other = Field::State { session: SessionId::from_bytes([8; 16]), applied_seq: at as u64 };
    assert!(key.open(other, &sealed).is_err(), "a payload opens in another place");
}

fn place(number: usize) -> Field {
    match number % 3 {
        0 => Field::Log { session: SESSION, first_seq: number as u64, count: 1 },
        1 => Field::State { session: SESSION, applied_seq: number as u64 },
        _ => Field::Checkpoint { session: SESSION, message_id: MessageId::from_bytes([9; 16]) },
    }
}

/// One bit flipped, cut short there, and a byte more there.
fn changes(bytes: &[u8], at: usize) -> [Vec<u8>; 3] {
    let index = at % bytes.len();
    let mut flipped = bytes.to_vec();
    flipped[index] ^= 1 << (at / bytes.len() % 8);
    let mut longer = bytes.to_vec();
    longer.insert(index, bytes[index]);
    [flipped, bytes[..index].to_vec(), longer]
}

/// Page tokens: any text, and our own under other parameters or changed.
pub fn page_token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert_eq!(PAGES.open(b"sessions", &text), None, "nobody else can make one");
    let (at, rest) = data.split_first().map_or((0, data), |(at, rest)| (usize::from(*at), rest));
    let (scope, position) = rest.split_at(at.min(rest.len()));
    let token = PAGES.seal(scope, position);
    assert_eq!(PAGES.open(scope, &token), (token.len() <= 4096).then(|| position.to_vec()));
    assert_eq!(PAGES.open(&[scope, b"x"].concat(), &token), None, "a token of another list");
    for changed in changes(token.as_bytes(), at) {
        assert_eq!(PAGES.open(scope, &String::from_utf8_lossy(&changed)), None, "a changed token opens");
    }
}

const SECRET: &[u8] = b"a secret that the fuzzer has not got";
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let secret = Secret::new(String::from_utf8_lossy(SECRET));
    Verifier::new(&TokenConfig { secret, ..TokenConfig::default() }, None).expect("a secret of 32 bytes")
});

/// Bearer tokens: the bytes as a token, as the claims and as the header of a signed one, and as a key set.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let now = SystemTime::now();
    assert!(VERIFIER.verify(&text, now).is_err(), "nobody else can sign");
    if let Ok(token) = from_authorization(&text) {
        assert!(!token.is_empty() && VERIFIER.verify(token, now).is_err());
    }
    let claims = signed(br#"{"alg":"HS256"}"#, data);
    if let Ok(identity) = VERIFIER.verify(&claims, now) {
        acceptable(&identity, now);
        for changed in changes(claims.as_bytes(), data.len()) {
            assert!(VERIFIER.verify(&String::from_utf8_lossy(&changed), now).is_err(), "a changed token is taken");
        }
    }
    let good = json!({"sub": "alice", "exp": self::now() + 3_600}).to_string();
    if VERIFIER.verify(&signed(data, good.as_bytes()), now).is_ok() {
        // What the verifier skips may hold anything, bytes that are no text included.
        let header: Value = serde_json::from_str(&text).expect("the verifier has read it");
        assert_eq!(header["alg"], "HS256");
        assert!(header["crit"].is_null(), "an extension that nobody knows");
    }
    key_set(data, &text);
}

fn signed(header: &[u8], payload: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    format!("{message}.{}", signature.expect("HMAC signs"))
}

fn acceptable(identity: &Identity, now: SystemTime) {
    let id = &identity.user_id;
    assert!((1..=255).contains(&id.len()) && id.trim() == id && !id.chars().any(char::is_control), "{id:?}");
    let name = &identity.display_name;
    assert!(name.chars().count() <= 100 && !name.chars().any(char::is_control), "{name:?}");
    assert!(identity.scopes.len() <= 32 && identity.scopes.iter().all(|scope| (1..=64).contains(&scope.len())));
    assert!(identity.expires_at > now);
}

#[derive(Debug)]
struct Fixed(Bytes);

#[async_trait::async_trait]
impl KeySource for Fixed {
    async fn fetch(&self, _limit: usize) -> Result<Bytes, KeySourceError> {
        Ok(self.0.clone())
    }
}

/// A key set that somebody else serves; no token of ours fits its keys.
fn key_set(data: &[u8], token: &str) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    if data.first() != Some(&b'{') {
        return;
    }
    for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let source = Arc::new(Fixed(Bytes::copy_from_slice(data)));
        let config = TokenConfig { algorithm, ..TokenConfig::default() };
        let verifier = Verifier::new(&config, Some(source)).expect("there is a source");
        let _ = RUNTIME.with(|runtime| runtime.block_on(verifier.refresh()));
        let header = json!({"alg": algorithm.name()}).to_string();
        for token in [signed(header.as_bytes(), data), token.to_owned()] {
            assert!(verifier.verify(&token, SystemTime::now()).is_err());
        }
    }
}
