//! What one service may ask of `Generate`: every bound is reached, named, and harms nobody else.

use bytes::Bytes;
use chatbox_proto::v1::{
    ErrorCode, FinishReason, GenerateRequest,
    generate_request::{Frame, Parameters, PromptRole},
    generate_response::Event,
};
use prost::Message as _;
use tonic::{Code, transport::Endpoint};

use super::generate::{service, service_token, with_model};
use crate::harness::{
    contract::error_info,
    generate::{Generation, start},
    grpc,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::{LIMIT, wait_for},
};

/// What the next error says: its code, its reason and the field.
async fn refused(stream: &mut Generation, request_id: &str) -> (ErrorCode, String, String) {
    let Event::Error(error) = stream.expect(request_id).await.unwrap() else { panic!("no error") };
    let field = error.field_violations.first().map(|violation| violation.field.clone()).unwrap_or_default();
    (error.code(), error.reason, field)
}

#[tokio::test]
async fn a_bad_frame_gets_one_error_that_names_the_field_and_the_stream_lives() {
    let stack = Stack::start(Setup::new().unwrap().with(|s| s.core.limits.malformed_per_minute = 4)).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    let user = |text: &'static str| [(PromptRole::User, text)];
    let parameters = |change: fn(&mut Parameters)| {
        let mut parameters = Parameters::default();
        change(&mut parameters);
        Frame::Start(start("", &user("x"), Some(parameters)))
    };
    for (id, frame, field) in [
        ("1", Frame::Start(start("", &[], None)), "start.messages"),
        ("2", Frame::Start(start("", &user(""), None)), "start.messages[0].text"),
        ("3", Frame::Start(start("", &[(PromptRole::Unspecified, "x")], None)), "start.messages[0].role"),
        ("4", Frame::Start(start(&"m".repeat(200), &user("x"), None)), "start.model"),
        ("5", parameters(|p| p.max_output_tokens = Some(0)), "start.parameters.max_output_tokens"),
        ("6", parameters(|p| p.temperature = Some(f32::NAN)), "start.parameters.temperature"),
        ("7", parameters(|p| p.top_p = Some(0.0)), "start.parameters.top_p"),
        ("8", parameters(|p| p.stop = vec![String::new()]), "start.parameters.stop"),
    ] {
        stream.send(id, frame).await.unwrap();
        assert_eq!(refused(&mut stream, id).await, (ErrorCode::InvalidArgument, "INVALID_FIELD".into(), field.into()));
    }
    stream.ask("same", "", "x").await.unwrap();
    assert_eq!(stream.turn("same").await.unwrap().end.finish_reason(), FinishReason::Stop);
    stream.ask("same", "", "x").await.unwrap();
    assert_eq!(refused(&mut stream, "same").await.2, "request_id");

    // What is no frame at all counts, and the fourth ends the stream.
    let long_id = GenerateRequest { request_id: "i".repeat(65), frame: None }.encode_to_vec();
    for bytes in [vec![0xff; 8], long_id, Vec::new()] {
        stream.send_bytes(bytes.into()).await.unwrap();
        assert_eq!(refused(&mut stream, "").await.0, ErrorCode::InvalidArgument);
    }
    stream.send_bytes(Bytes::from_static(&[0xff])).await.unwrap();
    assert_eq!(stream.ended().await.unwrap_err().code(), Code::InvalidArgument);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn starts_wait_in_turn_up_to_a_bound_and_half_close_waits_for_all_of_them() {
    let provider = Provider::start().await.unwrap();
    let stack = Stack::start(with_model(&provider)).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    provider.script("m", Script::stream().delta("x").hang());
    stream.ask("0", "m", "x").await.unwrap();
    assert!(matches!(stream.expect("0").await.unwrap(), Event::Started(_)));
    assert!(matches!(stream.expect("0").await.unwrap(), Event::Delta(_)));
    for id in 1..=9 {
        stream.ask(&id.to_string(), "m", "x").await.unwrap();
    }
    let (code, reason, _) = refused(&mut stream, "9").await;
    assert_eq!((code, reason.as_str()), (ErrorCode::ResourceExhausted, "TOO_MANY_TURNS"));
    stream.cancel().await.unwrap();
    stream.half_close();
    assert!(
        matches!(stream.expect("0").await.unwrap(), Event::Finished(end) if end.finish_reason() == FinishReason::Cancelled)
    );
    for id in 1..=8 {
        assert_eq!(stream.turn(&id.to_string()).await.unwrap().end.finish_reason(), FinishReason::Stop);
    }
    stream.ended().await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn conversations_turns_frames_and_streams_have_an_end_that_is_named() {
    let setup = Setup::new().unwrap().with(|setup| {
        let generate = &mut setup.core.generate;
        (generate.streams_per_caller, generate.messages) = (2, 6);
        generate.conversation_bytes = "2KiB".parse().unwrap();
        generate.frame_bytes = "4KiB".parse().unwrap();
        setup.core.limits.frames_per_second = 8;
    });
    let stack = Stack::start(setup).await.unwrap();
    let mut stream = Generation::open(service(&stack, "indexer")).await.unwrap();
    let mut second = Generation::open(service(&stack, "indexer")).await.unwrap();
    let status = Generation::open(service(&stack, "indexer")).await.unwrap_err();
    assert_eq!(
        (status.code(), error_info(&status).unwrap().reason.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_STREAMS")
    );
    let mut other = Generation::open(service(&stack, "other")).await.unwrap();

    stream.ask("long", "", &"x".repeat(3_000)).await.unwrap();
    assert_eq!(refused(&mut stream, "long").await.1, "CONVERSATION_TOO_LONG");
    // Each turn leaves two messages.
    for id in ["1", "2", "3"] {
        stream.ask(id, "", "x").await.unwrap();
        assert_eq!(stream.turn(id).await.unwrap().end.finish_reason(), FinishReason::Stop);
    }
    stream.ask("4", "", "x").await.unwrap();
    assert_eq!(refused(&mut stream, "4").await.1, "CONVERSATION_TOO_LONG");
    stream.ask("big", "", &"x".repeat(5_000)).await.unwrap();
    let status = stream.ended().await.unwrap_err();
    assert_eq!(
        (status.code(), error_info(&status).unwrap().reason.as_str()),
        (Code::ResourceExhausted, "FRAME_TOO_BIG")
    );

    // As many as may come at once, and then some: the rest is told when to come back, and nothing ends.
    for _ in 0..40 {
        second.cancel().await.unwrap();
    }
    assert_eq!(refused(&mut second, "").await.1, "TOO_MANY_FRAMES");
    other.ask("fine", "", "x").await.unwrap();
    assert_eq!(other.turn("fine").await.unwrap().end.finish_reason(), FinishReason::Stop);
    drop((second, other));
    // The place is free again once the streams are gone.
    let core = || service(&stack, "indexer");
    let again = || async { Generation::open(core()).await.ok() };
    wait_for("a place for a stream", LIMIT, again).await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_service_that_does_not_read_loses_its_stream_and_frees_the_provider() {
    let provider = Provider::start().await.unwrap();
    let setup = with_model(&provider).with(|setup| {
        setup.core.session.queue_bytes = "64KiB".parse().unwrap();
    });
    let stack = Stack::start(setup).await.unwrap();
    // More than the windows of HTTP/2 and the queue hold together, and no end of its own.
    let piece = "x".repeat(8 * 1_024);
    let script = (0..120).fold(Script::stream(), |script, _| script.delta(&piece));
    provider.script("m", script.hang());
    // Windows of the protocol's own size: those of tonic's clients would take all of it.
    let endpoint = Endpoint::from_shared(format!("http://{}", stack.addresses().grpc)).unwrap();
    let windows = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let token = service_token(&stack, "indexer", "generate");
    let mut stream = Generation::open(grpc::core(windows.connect_lazy(), Some(&token)).unwrap()).await.unwrap();
    stream.ask("a", "m", "x").await.unwrap();
    provider.wait_left(1).await.unwrap();
    let mut reader = Generation::open(service(&stack, "other")).await.unwrap();
    reader.ask("b", "m", "x").await.unwrap();
    assert_eq!(reader.turn("b").await.unwrap().text, "You said: x");
    let status = stream.ended().await.unwrap_err();
    assert_eq!((status.code(), error_info(&status).unwrap().reason.as_str()), (Code::Unavailable, "SLOW_CONSUMER"));
    drop(reader);
    stack.shutdown().await.unwrap();
}
