//! Clients that are not ours hold a whole conversation.

use std::time::Duration;

use chatbox_proto::v1::chat_request::Open;

use crate::harness::{
    client::Transport,
    programs::{Output, run},
    stack::{Setup, Stack},
};

/// Frames of a whole conversation. After the last one the client half-closes: the reply is finished, then the stream ends.
const FRAMES: &str = r#"
{"requestId": "1", "open": {}}
{"requestId": "2", "send": {"clientMessageId": "c1", "text": "hello from outside"}}
"#;

const LIMIT: Duration = Duration::from_secs(30);

fn assert_conversation(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    for part in ["\"opened\"", "\"ack\"", "hello from outside", "\"replyFinished\"", "FINISH_REASON_STOP"] {
        assert!(output.stdout.contains(part), "{part} is not in {output:?}");
    }
}

#[tokio::test]
async fn grpcurl_holds_a_conversation_by_reflection() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let header = format!("authorization: Bearer {}", stack.token("alice", "user").unwrap());
    let target = stack.addresses().grpc.to_string();
    let arguments = ["-plaintext", "-H", &header, "-d", "@", &target, "chatbox.v1.ChatCore/Chat"];
    assert_conversation(&run("bin/grpcurl", &arguments, FRAMES, LIMIT).await.unwrap());
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn buf_curl_holds_a_conversation_by_reflection() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let header = format!("authorization: Bearer {}", stack.token("alice", "user").unwrap());
    let url = format!("http://{}/chatbox.v1.ChatCore/Chat", stack.addresses().grpc);
    let arguments = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", &header, "-d", "@-", &url];
    assert_conversation(&run("bin/buf", &arguments, FRAMES, LIMIT).await.unwrap());
    stack.shutdown().await.unwrap();
}

/// grpcurl and `buf curl`, calling one method with one request.
async fn both(stack: &Stack, method: &str, request: &str) -> [Output; 2] {
    let header = format!("authorization: Bearer {}", stack.token("alice", "user").unwrap());
    let target = stack.addresses().grpc.to_string();
    let path = format!("chatbox.v1.ChatCore/{method}");
    let grpcurl = ["-plaintext", "-H", &header, "-d", request, &target, &path];
    let url = format!("http://{target}/{path}");
    let buf = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", &header, "-d", request, &url];
    [run("bin/grpcurl", &grpcurl, "", LIMIT).await.unwrap(), run("bin/buf", &buf, "", LIMIT).await.unwrap()]
}

#[tokio::test]
async fn both_list_what_was_said_and_print_typed_errors() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut client = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.say("c1", "hello from inside").await.unwrap();
    client.reply().await.unwrap();
    for output in both(&stack, "ListSessions", "{}").await {
        assert!(output.status.success() && output.stdout.contains(&session_id), "{output:?}");
    }
    for output in both(&stack, "ListMessages", &format!("{{\"sessionId\":\"{session_id}\"}}")).await {
        assert!(output.status.success() && output.stdout.contains("hello from inside"), "{output:?}");
    }
    for output in both(&stack, "ListSessions", "{\"pageSize\":-1}").await {
        assert!(!output.status.success(), "{output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        for part in ["page_size: must not be negative", "google.rpc.ErrorInfo", "google.rpc.BadRequest"] {
            assert_eq!(said.matches(part).count(), 1, "{part} in {said}");
        }
        // buf shows what is in the details as they came, in base64.
        let reason = ["INVALID_FIELD", "Cg1JTlZBTElEX0ZJRUxEEgpjaGF0Ym94LnYx"];
        assert!(reason.iter().any(|reason| said.contains(reason)), "{said}");
    }
    // Reflection in both versions: grpcurl asks for v1 and falls back, so it is told which services there are.
    let target = stack.addresses().grpc.to_string();
    let listed = run("bin/grpcurl", &["-plaintext", &target, "list"], "", LIMIT).await.unwrap();
    for service in ["chatbox.v1.ChatCore", "chatbox.v1.ChatAdmin", "grpc.health.v1.Health", "grpc.reflection.v1alpha"] {
        assert!(listed.stdout.contains(service), "{service} is not in {listed:?}");
    }
    stack.shutdown().await.unwrap();
}
