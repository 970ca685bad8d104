//! Many clients at one session at once: what was acknowledged is what is stored, and everybody sees it in the same order.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use chatbox_proto::v1::{
    ErrorCode,
    chat_request::{EndSession, Frame, Open, Read, Send, Stop, Typing},
    chat_response::Event,
    entry::Kind,
};
use futures_util::future::try_join_all;
use tonic::Code;

use crate::harness::{
    client::{Client, Received, Transport},
    history,
    stack::{Setup, Stack},
};

const CLIENTS: usize = 40;

/// Frames that each client sends, unless the session ends before.
const ROUNDS: usize = 24;

/// What one client had acknowledged: the seq of each of its messages.
async fn hammer(
    stack: &Stack,
    number: usize,
    session_id: &str,
    over: &AtomicBool,
) -> anyhow::Result<(Client, BTreeSet<u64>)> {
    let mut client = stack.connect(Transport::ALL[number % 3], "alice").await?;
    let open = Open { session_id: session_id.to_owned(), after_seq: Some(0), ..Open::default() };
    client.open(open).await?;
    let (mut sent, mut acked, mut running) = (BTreeSet::new(), BTreeSet::new(), String::new());
    for round in 0..ROUNDS {
        let frame = match (round + number) % 5 {
            0 | 3 => {
                let client_message_id = format!("{number}-{round}");
                Frame::Send(Send { client_message_id, text: format!("text {number} {round}"), file_ids: Vec::new() })
            }
            1 if !running.is_empty() => Frame::Stop(Stop { message_id: running.clone() }),
            2 => Frame::Read(Read { seq: client.entries().last().map_or(0, |entry| entry.seq) }),
            _ => Frame::Typing(Typing { active: round % 2 == 0 }),
        };
        let is_send = matches!(frame, Frame::Send(_));
        // The first who has done half of it ends the session under everybody's hands.
        let frame = if round == ROUNDS / 2 && !over.swap(true, Ordering::Relaxed) {
            Frame::EndSession(EndSession {})
        } else {
            frame
        };
        let Ok(request_id) = client.send(frame).await else { break };
        if is_send {
            sent.insert(request_id.clone());
        }
        if !answered(&mut client, &request_id, &sent, &mut acked, &mut running).await? {
            break;
        }
    }
    // Everything that is still on its way: the session was ended, and so are the streams.
    while let Received::Event(event) = client.receive().await? {
        note(&event, &sent, &mut acked, &mut running);
    }
    Ok((client, acked))
}

fn note(event: &Event, sent: &BTreeSet<String>, acked: &mut BTreeSet<u64>, running: &mut String) {
    match event {
        Event::Ack(ack) if sent.contains(&ack.request_id) => {
            acked.insert(ack.seq);
        }
        Event::ReplyDelta(delta) => running.clone_from(&delta.message_id),
        Event::Error(error) => assert_ne!(error.code(), ErrorCode::Internal, "{error:?}"),
        _ => {}
    }
}

/// Reads until the answer to a frame; false when the stream ended instead.
async fn answered(
    client: &mut Client,
    request_id: &str,
    sent: &BTreeSet<String>,
    acked: &mut BTreeSet<u64>,
    running: &mut String,
) -> anyhow::Result<bool> {
    loop {
        match client.receive().await? {
            Received::Closed(closed) => {
                anyhow::ensure!(closed.code != Some(Code::Internal as u16) && closed.code != Some(1011), "{closed:?}");
                return Ok(false);
            }
            Received::Event(event) => {
                note(&event, sent, acked, running);
                match &*event {
                    Event::Ack(ack) if ack.request_id == request_id => return Ok(true),
                    Event::Error(error) if error.request_id == request_id => return Ok(true),
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn heavy_forty_clients_hammer_one_session() {
    let setup = Setup::new().unwrap().with_word_delay(std::time::Duration::from_millis(20));
    let stack = Stack::start(setup.with(|setup| setup.core.session.unanswered = 100)).await.unwrap();
    let mut first = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let session_id = first.open(Open::default()).await.unwrap().session.unwrap().session_id;
    first.caught_up().await.unwrap();
    drop(first);
    let over = AtomicBool::new(false);
    let all = try_join_all((0..CLIENTS).map(|number| hammer(&stack, number, &session_id, &over))).await.unwrap();

    let messages = history::by_grpc(&mut stack.core("alice").unwrap(), &session_id, 0).await.unwrap();
    history::check(&messages).unwrap();
    let stored: BTreeSet<u64> = messages.iter().filter(|m| m.reply.is_none()).map(|m| m.seq).collect();
    let acked: BTreeSet<u64> = all.iter().flat_map(|(_, acked)| acked.iter().copied()).collect();
    assert!(acked.is_subset(&stored), "acknowledged and lost: {:?}", acked.difference(&stored));
    assert!(acked.len() >= CLIENTS, "only {} messages were acknowledged", acked.len());
    // An ack that was cut off by the end of its stream is the only way to be stored without one.
    assert!(
        stored.len() - acked.len() <= CLIENTS,
        "{} of {} stored without an ack",
        stored.len() - acked.len(),
        stored.len()
    );
    let mut longest: Vec<u64> = Vec::new();
    for (client, _) in &all {
        let seqs: Vec<u64> = client.entries().iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
        let entries = client.entries();
        let end = entries.iter().position(|entry| matches!(entry.kind, Some(Kind::Ended(_))));
        assert!(
            end.is_none_or(|end| end + 1 == entries.len()),
            "entries after the end: {:?}",
            &entries[end.unwrap()..]
        );
        if seqs.len() > longest.len() {
            longest = seqs;
        }
    }
    let ended = all
        .iter()
        .filter(|(client, _)| client.entries().last().is_some_and(|entry| matches!(entry.kind, Some(Kind::Ended(_)))));
    assert!(ended.count() > 0, "nobody saw the end");
    stack.shutdown().await.unwrap();
}
