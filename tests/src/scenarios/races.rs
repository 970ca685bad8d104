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
            _ => Frame::Typing(Typing { active: round.is_multiple_of(2) }),
        };
        // The first who has done half of it ends the session under everybody's hands.
        let frame = if round == ROUNDS / 2 && !over.swap(true, Ordering::Relaxed) {
            Frame::EndSession(EndSession {})
        } else {
            frame
        };
        let is_send = matches!(frame, Frame::Send(_));
        let request_id = client.send(frame).await?;
        if is_send {
            sent.insert(request_id.clone());
        }
        answered(&mut client, &request_id, &sent, &mut acked, &mut running).await?;
    }
    // Everything that is still on its way: up to the end, and to the answer to a last question.
    let is_end = |event: &Event| matches!(event, Event::Entry(entry) if matches!(entry.kind, Some(Kind::Ended(_))));
    while !client.seen.iter().any(is_end) {
        let Received::Event(event) = client.receive().await? else { anyhow::bail!("closed before the end") };
        note(&event, &sent, &mut acked, &mut running);
    }
    let last = client.send(Frame::Read(Read { seq: 0 })).await?;
    answered(&mut client, &last, &sent, &mut acked, &mut running).await?;
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

/// Reads until the answer to a frame.
async fn answered(
    client: &mut Client,
    request_id: &str,
    sent: &BTreeSet<String>,
    acked: &mut BTreeSet<u64>,
    running: &mut String,
) -> anyhow::Result<()> {
    loop {
        match client.receive().await? {
            Received::Closed(closed) => anyhow::bail!("closed before an answer: {closed:?}"),
            Received::Event(event) => {
                note(&event, sent, acked, running);
                match &*event {
                    Event::Ack(ack) if ack.request_id == request_id => return Ok(()),
                    Event::Error(error) if error.request_id == request_id => return Ok(()),
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
    assert!(acked.len() >= CLIENTS, "only {} messages were acknowledged", acked.len());
    assert_eq!(stored, acked, "stored without an ack");
    for (client, _) in &all {
        let entries = client.entries();
        let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
        let last = entries.last().unwrap();
        assert!(matches!(last.kind, Some(Kind::Ended(_))), "after the end came {last:?}");
        assert_eq!(entries, all[0].0.entries());
    }
    stack.shutdown().await.unwrap();
}
