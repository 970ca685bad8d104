//! Clients that are not ours hold a whole conversation.

use std::time::Duration;

use crate::harness::{
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
