//! A reply belongs to the session: it is stopped from any device, outlives every socket, and what is written meanwhile is
//! answered together.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{
    ErrorCode, FinishReason,
    chat_request::{Frame, Send, Stop},
    chat_response::Event,
    entry::ReplyFinished,
};

use super::transcript::{Transcript, all_answered};
use crate::harness::{
    client::{Addresses, Answer, Client, Transport, finished},
    gate::Gate,
    history,
    provider::{Provider, Script},
    proxy::{Proxy, Way},
    stack::{Setup, Stack},
    wait::{LIMIT, wait_for},
};

fn delta(event: &Event) -> Option<String> {
    match event {
        Event::ReplyDelta(delta) => Some(delta.message_id.clone()),
        Event::ReplySnapshot(shot) if !shot.text.is_empty() => Some(shot.message_id.clone()),
        _ => None,
    }
}

fn end(event: &Event) -> Option<ReplyFinished> {
    match event {
        Event::Entry(entry) => finished(entry).cloned(),
        _ => None,
    }
}

async fn stored(stack: &Stack, user: &str, session_id: &str) -> Vec<chatbox_proto::v1::Message> {
    let (mut core, http) = (stack.core(user).unwrap(), stack.http(user).unwrap());
    history::agreed(&mut core, &http, session_id).await.unwrap()
}

#[tokio::test]
async fn a_stop_from_another_device_ends_the_reply_and_the_request_upstream_within_a_second() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    let [json, proto, grpc] = Transport::ALL;
    for (round, (writer, stopper)) in [(json, grpc), (grpc, proto), (proto, json)].into_iter().enumerate() {
        let user = format!("user-{round}");
        provider.script("m", Script::stream().delta("pärt ").hang());
        let (mut writing, mut first) = (stack.connect(writer, &user).await.unwrap(), Transcript::default());
        first.attach(&mut writing).await.unwrap();
        writing.say("question", "go on").await.unwrap();
        let message_id = writing.until("text", delta).await.unwrap();

        let (mut stopping, mut second) =
            (stack.connect(stopper, &user).await.unwrap(), Transcript::of(first.session_id()));
        second.attach(&mut stopping).await.unwrap();
        assert_eq!(stopping.until("the text so far", delta).await.unwrap(), message_id);
        let started = Instant::now();
        let stop = || Frame::Stop(Stop { message_id: message_id.clone() });
        let acked = stopping.request(stop()).await.unwrap();
        assert!(matches!(&acked, Answer::Ack(ack) if ack.message_id == message_id), "{acked:?}");
        provider.wait_left(round + 1).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        // Once more, by the other one: it has ended, so this too is carried out.
        assert!(matches!(writing.request(stop()).await.unwrap(), Answer::Ack(_)));

        for (client, transcript) in [(&mut writing, &mut first), (&mut stopping, &mut second)] {
            transcript.keep(client);
            // No order is promised between the answer to the stop and the end.
            if transcript.finished().is_empty() {
                client.until("the end", end).await.unwrap();
                transcript.keep(client);
            }
            let ends = transcript.finished();
            assert_eq!(ends.len(), 1);
            assert_eq!((ends[0].finish_reason(), ends[0].text.as_str()), (FinishReason::Cancelled, "pärt "));
            let usage = ends[0].usage.unwrap();
            assert!(usage.estimated && usage.prompt_tokens > 0 && usage.completion_tokens > 0, "{usage:?}");
        }
        let stored = stored(&stack, &user, first.session_id()).await;
        for transcript in [&first, &second] {
            transcript.check(&stored).unwrap();
        }
    }
    let figure = "chatbox_core_replies_total{model=\"m\",outcome=\"cancelled\"}";
    assert_eq!(stack.core_metric(figure).await.unwrap(), 3.0);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_reply_outlives_every_socket() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    for (round, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{round}");
        let gate = Gate::new();
        provider
            .script("m", Script::stream().delta("one ").gate(&gate).delta("two ").delta("three").finish("stop").done());
        let mut transcript = Transcript::default();
        let mut client = stack.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("question", "go on").await.unwrap();
        client.until("text", delta).await.unwrap();
        transcript.keep(&mut client);
        drop(client);
        let nobody = || async { (stack.core_metric("chatbox_core_subscribers").await.ok()? == 0.0).then_some(()) };
        wait_for("nobody is attached", LIMIT, nobody).await.unwrap();
        gate.open();
        let (http, session) = (stack.http(&user).unwrap(), transcript.session_id().to_owned());
        let ended =
            || async { history::by_http(&http, &session, 0).await.ok().filter(|all| history::check(all).is_ok()) };
        let ended = wait_for("the reply ends by itself", LIMIT, ended).await.unwrap();
        assert_eq!(ended[1].text, "one two three");

        let mut client = stack.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        let finished = client.reply().await.unwrap().finished;
        assert_eq!((finished.finish_reason(), finished.text.as_str()), (FinishReason::Stop, "one two three"));
        transcript.keep(&mut client);
        transcript.check(&stored(&stack, &user, &session).await).unwrap();
    }
    stack.shutdown().await.unwrap();
}

fn message(id: &str, text: &str) -> Frame {
    Frame::Send(Send { client_message_id: id.to_owned(), text: text.to_owned(), ..Send::default() })
}

async fn refused(client: &mut Client, frame: Frame) -> chatbox_proto::v1::Error {
    match client.request(frame).await.unwrap() {
        Answer::Error(error) => error,
        Answer::Ack(ack) => panic!("it was accepted: {ack:?}"),
    }
}

#[tokio::test]
async fn what_is_written_during_a_reply_is_answered_together_up_to_a_limit() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["m"])).await.unwrap();
    for (round, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{round}");
        let gate = Gate::new();
        provider.script("m", Script::stream().delta("one").gate(&gate).finish("stop").done());
        let mut transcript = Transcript::default();
        let mut client = stack.connect(transport, &user).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.say("first", "question").await.unwrap();
        let mut waiting = Vec::new();
        for n in 1..=8 {
            waiting.push(client.say(&format!("m{n}"), &format!("text {n}")).await.unwrap());
        }
        let error = refused(&mut client, message("m9", "text 9")).await;
        assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error:?}");
        assert!(error.retry_after.is_some(), "{error:?}");
        // A full queue does not change what was accepted.
        let again = client.say("m3", "text 3").await.unwrap();
        assert_eq!((again.duplicate, &again.message_id, again.seq), (true, &waiting[2].message_id, waiting[2].seq));
        assert_eq!(refused(&mut client, message("m3", "another")).await.code(), ErrorCode::AlreadyExists);

        gate.open();
        client.reply().await.unwrap();
        assert_eq!(client.reply().await.unwrap().finished.text, "You said: text 8");
        let asked = provider.requests().pop().unwrap().messages();
        let texts: Vec<_> = asked.iter().map(|(_, text)| text.as_str()).collect();
        let expected =
            ["question", "one", "text 1", "text 2", "text 3", "text 4", "text 5", "text 6", "text 7", "text 8"];
        let mut sorted = texts.clone();
        sorted.sort_unstable_by_key(|text| expected.iter().position(|known| known == text));
        assert_eq!(sorted, expected);
        client.say("m9", "text 9").await.unwrap();
        client.reply().await.unwrap();
        transcript.keep(&mut client);
        let stored = stored(&stack, &user, transcript.session_id()).await;
        transcript.check(&stored).unwrap();
        all_answered(&stored).unwrap();
        let answers: Vec<usize> = stored.iter().filter_map(|m| Some(m.reply.as_ref()?.answers.len())).collect();
        assert_eq!(answers, [1, 8, 1]);
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_message_whose_ack_was_lost_on_the_way_is_there_once() {
    // Here it is the client that comes back.
    let setup = Setup::new().unwrap().proxied().with(|setup| setup.edge.core.reopen_timeout = Duration::ZERO);
    let stack = Stack::start(setup).await.unwrap();
    let direct = stack.addresses();
    let to_edge = Proxy::start(direct.http).await.unwrap();
    let to_core = Proxy::start(direct.grpc).await.unwrap();
    let [json, proto, grpc] = Transport::ALL;
    let places = [
        ("browser to edge", json, Addresses { http: to_edge.address(), ..direct }, &to_edge, None),
        ("edge to core", proto, direct, stack.proxy().unwrap(), Some(4013)),
        ("client to core", grpc, Addresses { grpc: to_core.address(), ..direct }, &to_core, None),
    ];
    for (place, transport, addresses, proxy, close_code) in places {
        let token = stack.token(place, "user").unwrap();
        let mut transcript = Transcript::default();
        let mut client = Client::connect(transport, addresses, &token).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        client.caught_up().await.unwrap();
        proxy.stall_way(Way::Down);
        let request_id = client.send(message("one", "text")).await.unwrap();
        // What gRPC is to send leaves when the stream is polled.
        let (mut core, session) = (stack.core(place).unwrap(), transcript.session_id().to_owned());
        let written = async {
            loop {
                let all = history::by_grpc(&mut core, &session, 0).await.unwrap();
                if all.len() == 2 && history::check(&all).is_ok() {
                    break all;
                }
            }
        };
        let written = tokio::select! {
            all = written => all,
            ack = client.answer(&request_id) => panic!("{place}: {ack:?} passed a stall"),
        };
        proxy.cut();
        let closed = client.until_closed().await.unwrap();
        assert!(close_code.is_none_or(|code| closed.code == Some(code)), "{place}: {closed:?}");
        proxy.resume();

        let mut client = Client::connect(transport, addresses, &token).await.unwrap();
        transcript.attach(&mut client).await.unwrap();
        let ack = client.say("one", "text").await.unwrap();
        assert_eq!((ack.duplicate, &ack.message_id), (true, &written[0].message_id), "{place}");
        transcript.keep(&mut client);
        let stored = stored(&stack, place, &session).await;
        transcript.check(&stored).unwrap();
        assert_eq!(stored, written, "{place}");
    }
    stack.shutdown().await.unwrap();
}
