//! Share links: by JSON at the edge and by gRPC at core; whoever has one needs nothing else, and nothing else opens it.

use chatbox_proto::v1::{
    CreateShareResponse, ErrorResponse, GetSharedSessionRequest, GetSharedSessionResponse, ListSharesResponse,
    RevokeShareResponse, SenderRole, chat_request::Open,
};
use reqwest::Method;
use tonic::Code;

use crate::harness::{
    client::Transport,
    contract::{bearer, call},
    grpc,
    http::{Answer, Http},
    stack::{Setup, Stack},
};

async fn shown(stack: &Stack, share_id: &str, secret: &str) -> Answer {
    let http = Http::new(stack.addresses().http, Some(secret));
    http.send(Method::GET, &format!("/api/v1/shared/{share_id}"), None).await.unwrap()
}

#[tokio::test]
async fn a_link_shows_the_conversation_to_whoever_has_it_until_it_is_revoked() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{n}");
        let mut owner = stack.connect(transport, &user).await.unwrap();
        let session_id = owner.open(Open::default()).await.unwrap().session.unwrap().session_id;
        owner.say("m1", "for everybody").await.unwrap();
        owner.reply().await.unwrap();
        let http = stack.http(&user).unwrap();
        let shares = format!("/api/v1/sessions/{session_id}/shares");
        let CreateShareResponse { share, secret } =
            http.post(&shares, &serde_json::json!({"live": true})).await.unwrap();
        let share = share.unwrap();
        owner.say("m2", "later").await.unwrap();
        owner.reply().await.unwrap();

        let answer = shown(&stack, &share.share_id, &secret).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!answer.text().contains(&user) && !answer.text().contains(&secret), "{}", answer.text());
        let seen: GetSharedSessionResponse = answer.read().unwrap();
        assert_eq!(seen.messages.len(), 4);
        assert_eq!(seen.messages[2].text, "later");
        assert_eq!(seen.messages[1].sender.as_ref().unwrap().role(), SenderRole::Assistant);
        // By gRPC with the secret for a token, and with anybody's token.
        let request =
            GetSharedSessionRequest { share_id: share.share_id.clone(), secret: secret.clone(), ..Default::default() };
        for token in [secret.clone(), stack.token("somebody", "user").unwrap()] {
            let mut core = grpc::core(grpc::channel(stack.addresses().grpc).unwrap(), Some(&token)).unwrap();
            let by_grpc = core.get_shared_session(request.clone()).await.unwrap().into_inner();
            assert_eq!(by_grpc, seen);
        }
        let listed: ListSharesResponse = http.get(&shares).await.unwrap();
        assert_eq!(listed.shares.iter().map(|s| &s.share_id).collect::<Vec<_>>(), [&share.share_id]);

        let revoke = format!("{shares}/{}/revoke", share.share_id);
        let revoked: RevokeShareResponse = http.post(&revoke, &serde_json::json!({})).await.unwrap();
        assert!(revoked.share.unwrap().revoked);
        let gone = shown(&stack, &share.share_id, &secret).await;
        let wrong = shown(&stack, &share.share_id, "another").await;
        let unknown = shown(&stack, "0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23", &secret).await;
        assert_eq!(gone.status, 404);
        for other in [wrong, unknown] {
            assert_eq!((gone.status, gone.text()), (other.status, other.text()));
        }
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn nothing_is_shown_without_a_secret_and_an_address_looks_only_so_often() {
    let setup = Setup::new().unwrap().with(|setup| setup.edge.limits.shared_per_ip = 2);
    let stack = Stack::start(setup).await.unwrap();
    let id = "0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23";
    let nobody = Http::new(stack.addresses().http, None);
    let answer = nobody.send(Method::GET, &format!("/api/v1/shared/{id}"), None).await.unwrap();
    assert_eq!(answer.status, 401);
    // A secret in the query would be in every log on the way.
    let path = format!("/api/v1/shared/{id}?secret=x");
    let http = Http::new(stack.addresses().http, Some("y"));
    assert_eq!(http.send(Method::GET, &path, None).await.unwrap().status, 400);
    let path = format!("/api/v1/shared/{id}");
    let looks = futures_util::future::join_all((0..40).map(|_| http.send(Method::GET, &path, None))).await;
    let (limited, answered): (Vec<_>, Vec<_>) =
        looks.into_iter().map(Result::unwrap).partition(|answer| answer.status == 429);
    assert!(answered.iter().all(|answer| answer.status == 404));
    let limited = limited.first().expect("so many looks are too many");
    assert!(limited.headers.contains_key("retry-after"));
    assert_eq!(limited.read::<ErrorResponse>().unwrap().error.unwrap().reason, "TOO_MANY_REQUESTS");
    // At core: some token is needed, if only the secret.
    let channel = grpc::channel(stack.addresses().grpc).unwrap();
    let request = GetSharedSessionRequest { share_id: id.to_owned(), secret: "x".to_owned(), ..Default::default() };
    let bytes = prost::Message::encode_to_vec(&request);
    for (token, code) in
        [(None, Code::Unauthenticated), (Some("other"), Code::Unauthenticated), (Some("x"), Code::NotFound)]
    {
        let metadata = token.map(|token| bearer(token).unwrap()).unwrap_or_default();
        let path = "/chatbox.v1.ChatCore/GetSharedSession";
        let answered = call(&channel, path, metadata, vec![bytes.clone().into()]).await.unwrap();
        assert_eq!(answered.status.code(), code, "{token:?}");
    }
    stack.shutdown().await.unwrap();
}
