//! Tokens that must be refused, in one and the same way on both transports, and what is kept from logs.

use std::collections::BTreeSet;

use chatbox_proto::{
    token::{Algorithm, Secret},
    v1::{CreateSessionRequest, ListModelsRequest, chat_request::Open},
};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{
    client::{Addresses, Client, Closed, Received, Transport},
    contract::error_info,
    grpc,
    http::Http,
    jwks::KeySetServer,
    pair::{Pair, Role, Settings},
    stack::{SECRET, Setup, Stack},
    token::{Minter, claims},
    wait::{LIMIT, wait_for},
    ws::{Auth, Connect, Encoding},
};

/// Every word a caller is told when a token is refused, on each way in.
#[derive(Default)]
struct Told {
    bodies: BTreeSet<String>,
    statuses: BTreeSet<String>,
    events: BTreeSet<String>,
}

impl Told {
    /// Shows a bad token on every way in.
    async fn refused(&mut self, stack: &Stack, attack: &str, token: &str) {
        let addresses = stack.addresses();
        let answer = Http::new(addresses.http, Some(token)).send(Method::GET, "/api/v1/models", None).await.unwrap();
        assert_eq!(answer.status, 401, "{attack}: {}", answer.text());
        self.bodies.insert(answer.text());
        for encoding in Encoding::ALL {
            for auth in [Auth::Header(token.to_owned()), Auth::Subprotocol(token.to_owned())] {
                // What cannot be part of a subprotocol's name never leaves a browser.
                if token.contains(' ') && matches!(auth, Auth::Subprotocol(_)) {
                    continue;
                }
                let refused = Connect::new(addresses.http).encoding(encoding).auth(auth).refused().await.unwrap();
                assert_eq!(refused.status, 401, "{attack}: {refused}");
                self.bodies.insert(String::from_utf8(refused.body).unwrap());
            }
        }
        let mut core = grpc::core(grpc::channel(addresses.grpc).unwrap(), Some(token)).unwrap();
        let status = core.list_models(ListModelsRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{attack}: {status}");
        self.statuses.insert(format!("{} {}", status.message(), error_info(&status).unwrap().reason));
        let closed = Client::over_grpc(core).until_closed().await.unwrap();
        assert_eq!(closed.code, Some(Code::Unauthenticated as u16), "{attack}: {closed:?}");
        // In the first frame, as a page does that got its token late.
        let page = format!("http://{}", addresses.http);
        let socket = Connect::new(addresses.http).origin(&page).connect().await.unwrap();
        let mut client = Client::over_socket(socket);
        let open = Open { token: token.to_owned(), ..Open::default() };
        client.send(chatbox_proto::v1::chat_request::Frame::Open(open)).await.unwrap();
        let closed = client.until_closed().await.unwrap();
        let seen = std::mem::take(&mut client.seen);
        // 9,000 bytes do not fit into what a stranger may send.
        if closed.code == Some(1009) && attack == "too long" {
            return;
        }
        assert_eq!(closed.code, Some(4101), "{attack}: {closed:?}");
        self.events.insert(format!("{seen:?}"));
    }

    fn assert_one(&self) {
        let counts = (self.bodies.len(), self.statuses.len(), self.events.len());
        assert_eq!(counts, (1, 1, 1), "{:?} {:?} {:?}", self.bodies, self.statuses, self.events);
    }
}

async fn assert_accepted(stack: &Stack, token: &str) {
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, stack.addresses(), token).await.unwrap();
        client.open(Open::default()).await.unwrap();
    }
}

/// Claims with an issuer and an audience.
fn good() -> Value {
    let mut good = claims("alice", "user");
    (good["iss"], good["aud"]) = (json!("issuer.test"), json!("chatbox"));
    good
}

fn demanding() -> Setup {
    Setup::new().unwrap().with(|setup| {
        for token in [&mut setup.core.token, &mut setup.edge.token] {
            (token.issuer, token.audience) = ("issuer.test".to_owned(), "chatbox".to_owned());
        }
    })
}

#[tokio::test]
async fn every_forged_token_gets_the_same_refusal_on_every_way_in() {
    let stack = Stack::start(demanding()).await.unwrap();
    let minter = Minter::hs256(SECRET);
    assert_accepted(&stack, &minter.mint(&good()).unwrap()).await;
    let mut told = Told::default();
    for (attack, token) in minter.attacks(&good()).unwrap() {
        told.refused(&stack, attack, &token).await;
    }
    for algorithm in [jsonwebtoken::Algorithm::RS256, jsonwebtoken::Algorithm::ES256] {
        let other = Minter::generate(algorithm, "k1").unwrap().mint(&good()).unwrap();
        told.refused(&stack, "another family", &other).await;
    }
    told.assert_one();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn with_a_key_set_the_public_key_is_no_secret_and_other_families_are_refused() {
    for (theirs, ours) in [
        (jsonwebtoken::Algorithm::RS256, Algorithm::RS256),
        (jsonwebtoken::Algorithm::ES256, Algorithm::ES256),
        (jsonwebtoken::Algorithm::EdDSA, Algorithm::EdDSA),
    ] {
        let minter = Minter::generate(theirs, "k1").unwrap();
        let setup = demanding();
        let file = setup.folder().join("keys.json");
        std::fs::write(&file, json!({"keys": [minter.jwk().unwrap()]}).to_string()).unwrap();
        let stack = Stack::start(setup.with(|setup| {
            for token in [&mut setup.core.token, &mut setup.edge.token] {
                (token.algorithm, token.secret) = (ours, Secret::default());
                token.jwks_file = file.display().to_string();
            }
        }));
        let stack = stack.await.unwrap();
        assert_accepted(&stack, &minter.mint(&good()).unwrap()).await;
        let mut told = Told::default();
        for (attack, token) in minter.attacks(&good()).unwrap() {
            told.refused(&stack, attack, &token).await;
        }
        told.refused(&stack, "another family", &Minter::hs256(SECRET).mint(&good()).unwrap()).await;
        told.assert_one();
        stack.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_found_and_an_old_one_is_forgotten() {
    let (old, new) = (
        Minter::generate(jsonwebtoken::Algorithm::ES256, "old").unwrap(),
        Minter::generate(jsonwebtoken::Algorithm::ES256, "new").unwrap(),
    );
    let issuer = KeySetServer::start(vec![old.jwk().unwrap()]).await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with(|setup| {
        for token in [&mut setup.core.token, &mut setup.edge.token] {
            (token.algorithm, token.secret) = (Algorithm::ES256, Secret::default());
            token.jwks_url = issuer.url();
            token.jwks_min_interval = std::time::Duration::from_secs(1);
        }
    }));
    let stack = stack.await.unwrap();
    let token = |minter: &Minter| minter.mint(&claims("alice", "user")).unwrap();
    let (of_old, of_new) = (token(&old), token(&new));
    assert_accepted(&stack, &of_old).await;
    issuer.set(Some(vec![new.jwk().unwrap()]));
    // The unknown key id makes both look again, at most once a second.
    let both = || async { accepts(stack.addresses(), &of_new).await.filter(|both| *both == (true, true)) };
    wait_for("the new key is taken", LIMIT, both).await.unwrap();
    assert_eq!(accepts(stack.addresses(), &of_old).await, Some((false, false)), "the old key is still taken");
    // An issuer that fails takes nothing away.
    issuer.set(None);
    assert_accepted(&stack, &of_new).await;
    stack.shutdown().await.unwrap();
}

/// Whether the edge, and core without it, take a token now.
async fn accepts(addresses: Addresses, token: &str) -> Option<(bool, bool)> {
    let edge = Http::new(addresses.http, Some(token)).send(Method::GET, "/api/v1/models", None).await.ok()?;
    let mut core = grpc::core(grpc::channel(addresses.grpc).ok()?, Some(token)).ok()?;
    let core = core.list_models(ListModelsRequest {}).await;
    Some((edge.status == 200, core.is_ok()))
}

#[tokio::test]
async fn keys_that_change_in_the_file_of_running_processes_change_whom_they_believe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let minter = |kid: &str| Minter::generate(jsonwebtoken::Algorithm::ES256, kid).unwrap();
    let (old, new, last) = (minter("old"), minter("new"), minter("last"));
    let publish = |minter: &Minter| {
        // Renamed into place, so that nobody reads half of it.
        let next = folder.path().join("next.json");
        std::fs::write(&next, json!({"keys": [minter.jwk().unwrap()]}).to_string()).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    let token = |minter: &Minter| minter.mint(&claims("alice", "user")).unwrap();
    let (of_old, of_new, of_last) = (token(&old), token(&new), token(&last));
    publish(&old);
    let verifying = format!(
        "token.algorithm = \"ES256\"\ntoken.jwks_file = \"{}\"\ntoken.jwks_refresh = \"10s\"\n\
         token.jwks_min_interval = \"1s\"\n",
        file.display()
    );
    let quick = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"".to_owned();
    let settings = Settings { core: quick.clone(), edge: quick, vars: Vec::new() };
    let pair = Pair::start_verifying(&verifying, settings).await.unwrap();
    let addresses = pair.addresses();
    assert_eq!(accepts(addresses, &of_old).await, Some((true, true)));
    assert_eq!(accepts(addresses, &of_new).await, Some((false, false)));

    // A token of the new key makes both look at the file again, and with that the old key is forgotten.
    publish(&new);
    let taken = || async { accepts(addresses, &of_new).await.filter(|both| *both == (true, true)) };
    wait_for("the new key is taken", LIMIT, taken).await.unwrap();
    assert_eq!(accepts(addresses, &of_old).await, Some((false, false)), "the old key is still taken");

    // A key that was taken out is forgotten within the refresh time, also when nobody shows an unknown one.
    publish(&last);
    let refused = || async { accepts(addresses, &of_new).await.filter(|both| *both == (false, false)) };
    wait_for("the key that was taken out is refused", LIMIT, refused).await.unwrap();
    assert_eq!(accepts(addresses, &of_last).await, Some((true, true)));
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_user_id_of_255_bytes_is_taken_and_one_of_256_is_not() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let long = "ü".repeat(127) + "x";
    assert_accepted(&stack, &stack.token(&long, "user").unwrap()).await;
    let mut told = Told::default();
    told.refused(&stack, "256 bytes", &stack.token(&("ü".repeat(128)), "user").unwrap()).await;
    told.assert_one();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_service_without_the_scope_has_no_sessions() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut service = claims("importer", "service");
    for (scope, allowed) in [(json!(""), false), (json!("generate files"), false), (json!("sessions"), true)] {
        service["scope"] = scope.clone();
        let token = stack.token_of(&service).unwrap();
        let mut core = grpc::core(grpc::channel(stack.addresses().grpc).unwrap(), Some(&token)).unwrap();
        let created = core.create_session(CreateSessionRequest::default()).await;
        assert_eq!(created.is_ok(), allowed, "{scope}: {created:?}");
        for transport in Transport::ALL {
            let mut client = Client::connect(transport, stack.addresses(), &token).await.unwrap();
            let _ = client.send(chatbox_proto::v1::chat_request::Frame::Open(Open::default())).await;
            if allowed {
                client.caught_up().await.unwrap();
                continue;
            }
            let Closed { code, .. } = client.until_closed().await.unwrap();
            let refused = if transport == Transport::Grpc { Code::PermissionDenied as u16 } else { 4103 };
            assert_eq!(code, Some(refused), "{scope} {transport:?}: {:?}", client.seen);
        }
    }
    let nobody = stack.token("somebody", "astronaut").unwrap();
    let mut client = Client::connect(Transport::Grpc, stack.addresses(), &nobody).await.unwrap();
    let closed = client.receive().await.unwrap();
    assert!(matches!(closed, Received::Closed(Closed { code: Some(7), .. })), "{closed:?}");
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_token_in_the_query_is_refused_and_reaches_no_log() {
    let trace = "log.filter = \"trace\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"".to_owned();
    let settings = Settings { core: trace.clone(), edge: trace, vars: Vec::new() };
    let mut pair = Pair::start(settings).await.unwrap();
    // Whatever the base64 alignment, a piece of the marker is in the token's text: its signature is.
    let token = pair.token("marker", "user").unwrap();
    let marker = token.rsplit('.').next().unwrap().to_owned();
    let address = pair.addresses().http;
    for name in ["token", "access_token", "TOKEN", "jwt"] {
        let path = format!("/chatbox/ws?{name}={token}");
        let refused = Connect::new(address).path(&path).auth(Auth::Header(token.clone())).refused().await.unwrap();
        assert_eq!(refused.status, 401, "{name}: {refused}");
        let page = format!("/api/v1/models?{name}={token}");
        let answer = pair.http("marker").unwrap().send(Method::GET, &page, None).await.unwrap();
        assert_eq!(answer.status, 401, "{name}: {}", answer.text());
        assert!(answer.text().contains("TOKEN_IN_QUERY") && !answer.text().contains(&marker), "{}", answer.text());
    }
    // The three ways in, and a message: nothing of these is for a log either.
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, pair.addresses(), &token).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say(&format!("{transport:?}").replace(['(', ')'], "."), "xyzzy-of-the-user").await.unwrap();
        client.reply().await.unwrap();
    }
    Connect::new(address).auth(Auth::Subprotocol(token.clone())).connect().await.unwrap();
    for role in [Role::Edge, Role::Core] {
        pair.drained(role).await.unwrap();
        let log = pair.process(role).log();
        assert!(log.contains("TRACE") || log.contains("DEBUG"), "{role:?} does not log at trace level");
        for secret in [marker.as_str(), "xyzzy-of-the-user", SECRET] {
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
            assert!(lines.is_empty(), "{role:?} logs {secret}:\n{}", lines.join("\n"));
        }
    }
}
