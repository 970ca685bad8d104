//! A person of the team with nothing but the command line.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use chatbox_proto::v1::{
    chat_request::{Frame, Open, RequestHelp},
    chat_response::Event,
    entry::Kind,
};

use crate::harness::{
    client::{Client, Transport},
    dev::ChatboxDev,
    tools::binary,
};

/// Runs `chatbox admin` as ann, with these lines on its standard input.
async fn admin(dev: &ChatboxDev, arguments: &[&str], lines: &str) -> Output {
    let mut command = Command::new(binary("chatbox").unwrap());
    command
        .env_clear()
        .args(["admin", "--user", "ann", "--grpc", &format!("http://{}", dev.addresses().grpc), "--data"])
        .arg(dev.data())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let lines = lines.to_owned();
    let run = move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn until_entry(client: &mut Client, what: &str, is_it: impl Fn(&Kind) -> bool) {
    let found = |event: &Event| match event {
        Event::Entry(entry) => entry.kind.as_ref().is_some_and(&is_it).then_some(()),
        _ => None,
    };
    client.until(what, found).await.unwrap();
}

#[tokio::test]
async fn the_queue_a_takeover_with_a_conversation_a_release_and_the_trail() {
    let dev = ChatboxDev::start().await.unwrap();
    let mut alice = dev.connect(Transport::Grpc, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.say("1", "my order is lost").await.unwrap();
    alice.reply().await.unwrap();
    alice.request(Frame::RequestHelp(RequestHelp { reason: "a refund".to_owned() })).await.unwrap();
    let placed = |event: &Event| matches!(event, Event::Help(help) if help.position == 1).then_some(());
    alice.until("a place", placed).await.unwrap();

    let queue = text(&admin(&dev, &["queue", "--reason", "my shift"], "").await);
    let row = queue.lines().find(|line| line.starts_with(&id)).expect(&queue);
    assert!(row.contains(" 1 ") && row.contains("waiting") && row.contains("alice"), "{queue}");
    let talk = ["takeover", id.as_str(), "--reason", "asked for a person"];
    let said = text(&admin(&dev, &talk, "a person is here\nI have found it\n").await);
    assert!(said.contains("my order is lost"), "{said}");
    until_entry(&mut alice, "the takeover", |kind| matches!(kind, Kind::TakenOver(_))).await;
    for line in ["a person is here", "I have found it"] {
        until_entry(&mut alice, line, |kind| matches!(kind, Kind::Message(message) if message.text == line)).await;
    }
    let shown = text(&admin(&dev, &["show", &id, "--reason", "a look", "--json"], "").await);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["session"]["heldBy"]["userId"], "ann", "{shown}");
    text(&admin(&dev, &["release", &id, "--reason", "all is clear"], "").await);
    until_entry(&mut alice, "the release", |kind| matches!(kind, Kind::Released(_))).await;
    let twice = admin(&dev, &["release", &id, "--reason", "again"], "").await;
    let complaint = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert!(twice.status.code() == Some(1) && complaint.contains("nobody holds the session"), "{complaint}");

    let filter = format!("session_id = \"{id}\"");
    let trail = text(&admin(&dev, &["audit", "--reason", "a review", "--filter", &filter], "").await);
    for part in ["TakeOver", "GetSession", "Chat", "Release", "asked for a person", "all is clear"] {
        assert!(trail.contains(part), "{part} is not in {trail}");
    }
    assert!(!trail.contains("my order") && !trail.contains('\u{1b}'), "{trail}");
    dev.shutdown().await.unwrap();
}
