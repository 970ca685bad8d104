//! What no log may hold.

use std::{
    io::Write,
    sync::{Mutex, MutexGuard},
};

use chatbox_proto::token::{MintClaims, Role, Secret, mint_hs256};
use tracing_subscriber::{Layer as _, fmt::MakeWriter, layer::SubscriberExt as _};

use super::*;

const MARKER: &str = "MARKERinTOKENorTEXT";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

struct Line<'a>(MutexGuard<'a, Vec<u8>>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.0.lock().unwrap())
    }
}

/// A valid token that can be recognised: its name claim in the payload, and itself.
fn marked_token() -> String {
    let claims = MintClaims {
        user_id: "alice".into(),
        display_name: MARKER.into(),
        roles: vec![Role::User],
        scopes: Vec::new(),
        issuer: String::new(),
        audience: String::new(),
        issued_at: std::time::SystemTime::now(),
        lifetime: Duration::from_secs(60),
    };
    mint_hs256(&Secret::new(crate::testing::SECRET), &claims)
}

#[tokio::test]
async fn tokens_queries_and_text_reach_no_log() {
    let log = Log::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(log.clone()).with_ansi(false);
    let lines = lines.with_filter(crate::telemetry::filter("trace").unwrap());
    let subscriber = tracing_subscriber::registry().with(lines);
    let guard = tracing::subscriber::set_default(subscriber);

    let edge = Running::start().await;
    let good = marked_token();
    let forged = format!("{good}x");
    for token in [good.as_str(), &forged, MARKER] {
        edge.get(&format!("/ws?token={token}")).send().await.unwrap();
        edge.get(&format!("/api/v1/sessions?pageToken={token}")).bearer_auth(token).send().await.unwrap();
        edge.get(&format!("/nothing/{token}")).send().await.unwrap();
        let (bearer, subprotocol) = (format!("Bearer {token}"), format!("chatbox.v1.json, bearer.{token}"));
        let _ = edge.socket(&[("authorization", &bearer)]).await;
        let _ = edge.socket(&[("sec-websocket-protocol", &subprotocol)]).await;
        let (mut socket, _) = edge.socket(&[("origin", &format!("http://{}", edge.address))]).await.unwrap();
        socket.send(Message::text(format!(r#"{{"open":{{"token":"{token}"}}}}"#))).await.unwrap();
        for text in [format!(r#"{{"send":{{"clientMessageId":"{MARKER}","text":"{MARKER}"}}}}"#), MARKER.to_owned()] {
            let _ = socket.send(Message::text(text)).await;
        }
        let _ = tokio::time::timeout(Duration::from_millis(200), socket.next()).await;
    }
    edge.stop().await;

    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("token refused") && text.contains("socket open"), "{text}");
    for secret in [MARKER, &good, "eyJ"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}
