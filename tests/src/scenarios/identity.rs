//! Tokens that must be refused, in one and the same way.

use std::collections::BTreeSet;

use chatbox_proto::v1::ListModelsRequest;
use reqwest::Method;

use crate::harness::{
    grpc,
    http::Http,
    stack::{SECRET, Setup, Stack},
    token::{Minter, claims},
    ws::{Auth, Connect},
};

#[tokio::test]
async fn every_forged_token_gets_the_same_refusal_everywhere() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let addresses = stack.addresses();
    let minter = Minter::hs256(SECRET);
    let good = claims("alice", "user");
    let accepted = Http::new(addresses.http, Some(&minter.mint(&good).unwrap()));
    let _: chatbox_proto::v1::ListModelsResponse = accepted.get("/api/v1/models").await.unwrap();

    let channel = grpc::channel(addresses.grpc).unwrap();
    let (mut bodies, mut statuses) = (BTreeSet::new(), BTreeSet::new());
    for (attack, token) in minter.attacks(&good).unwrap() {
        let answer = Http::new(addresses.http, Some(&token)).send(Method::GET, "/api/v1/models", None).await.unwrap();
        assert_eq!(answer.status, 401, "{attack}: {}", answer.text());
        bodies.insert(answer.text());
        let refused = Connect::new(addresses.http).auth(Auth::Header(token.clone())).refused().await.unwrap();
        assert_eq!(refused.status, 401, "{attack}: {refused}");
        let mut core = grpc::core(channel.clone(), Some(&token)).unwrap();
        let status = core.list_models(ListModelsRequest {}).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{attack}: {status}");
        statuses.insert(status.message().to_owned());
    }
    assert_eq!((bodies.len(), statuses.len()), (1, 1), "{bodies:?} {statuses:?}");
    stack.shutdown().await.unwrap();
}
