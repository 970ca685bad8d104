//! A session as a whole, over every transport: its model, its last reply once more, its name, its end and its return.

use std::time::Duration;

use chatbox_proto::v1::{
    EndReason, EndSessionRequest, Entry, ErrorCode, ListSessionsRequest, ListSessionsResponse, Message,
    ReopenSessionRequest, SessionStatus, UpdateSessionRequest, UpdateSessionResponse,
    chat_request::{Frame, Open, Regenerate, SelectModel},
    chat_response::{Ack, Event},
    entry::Kind,
};
use reqwest::Method;

use crate::harness::{
    client::{Answer, Client, Transport},
    gate::Gate,
    history,
    provider::{Provider, Script},
    stack::{Setup, Stack},
};

fn acked(answer: Answer) -> Ack {
    match answer {
        Answer::Ack(ack) => ack,
        Answer::Error(error) => panic!("{error:?}"),
    }
}

fn refused(answer: Answer) -> (ErrorCode, String) {
    match answer {
        Answer::Error(error) => (error.code(), error.reason),
        Answer::Ack(ack) => panic!("{ack:?}"),
    }
}

fn select(model: &str) -> Frame {
    Frame::SelectModel(SelectModel { model: model.to_owned() })
}

fn regenerate(message_id: &str) -> Frame {
    Frame::Regenerate(Regenerate { message_id: message_id.to_owned() })
}

/// The next entry of a kind.
async fn entry<T>(client: &mut Client, what: &str, pick: fn(&Entry) -> Option<T>) -> T {
    let of_event = |event: &Event| if let Event::Entry(entry) = event { pick(entry) } else { None };
    client.until(what, of_event).await.unwrap()
}

/// Two models for everybody, and one for admins alone.
async fn start(provider: &Provider) -> Stack {
    let setup = Setup::new().unwrap().with_models(provider, &["one", "two", "vip"]).with(|setup| {
        for model in setup.core.models.iter_mut().filter(|model| model.id == "vip") {
            model.roles = vec!["admin".to_owned()];
        }
    });
    Stack::start(setup).await.unwrap()
}

async fn messages(stack: &Stack, user: &str, session_id: &str) -> Vec<Message> {
    history::by_grpc(&mut stack.core(user).unwrap(), session_id, 0).await.unwrap()
}

#[tokio::test]
async fn a_model_is_selected_and_the_last_reply_generated_again_on_every_transport() {
    let provider = Provider::start().await.unwrap();
    let stack = start(&provider).await;
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{n}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
        // Unknown, empty, and not for this caller: all the same, and nothing is changed.
        for model in ["nope", "", "vip"] {
            let Answer::Error(error) = client.request(select(model)).await.unwrap() else {
                panic!("{model:?} was taken")
            };
            assert_eq!(
                (error.code(), error.field_violations[0].field.as_str()),
                (ErrorCode::InvalidArgument, "select_model.model")
            );
        }
        let before =
            stack.core(&user).unwrap().get_session(get(&session_id)).await.unwrap().into_inner().session.unwrap();
        assert_eq!((before.model.as_str(), before.head), ("one", 0));

        let gate = Gate::new();
        provider.script("one", Script::stream().delta("first ").gate(&gate).delta("try").finish("stop").done());
        client.say("m1", "question").await.unwrap();
        let is_delta =
            |event: &Event| if let Event::ReplyDelta(delta) = event { Some(delta.message_id.clone()) } else { None };
        let first = client.until("a piece", is_delta).await.unwrap();
        assert_eq!(refused(client.request(regenerate(&first)).await.unwrap()).1, "REPLY_RUNNING");
        // While it runs, another model is chosen for what comes then.
        assert_ne!(acked(client.request(select("two")).await.unwrap()).seq, 0);
        assert_eq!(acked(client.request(select("two")).await.unwrap()).seq, 0);
        gate.open();
        assert_eq!(client.reply_of(&first).await.unwrap().finished.model, "one");

        let asked = provider.requests().len();
        provider.script("two", Script::reply(["second try"]));
        let ack = acked(client.request(regenerate(&first)).await.unwrap());
        let second = client.reply_of(&ack.message_id).await.unwrap();
        assert_eq!((second.finished.model.as_str(), second.finished.text.as_str()), ("two", "second try"));
        let request = provider.requests().swap_remove(asked);
        let texts: Vec<_> = request.messages().into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["question"], "{transport:?}: the older one has left the context");
        assert_eq!(refused(client.request(regenerate(&first)).await.unwrap()).1, "NOT_LAST_REPLY");
        let all = messages(&stack, &user, &session_id).await;
        let links: Vec<_> =
            all.iter().filter_map(|m| m.reply.as_ref()).map(|r| (&r.superseded_by, &r.supersedes)).collect();
        assert_eq!(links, [(&ack.message_id, &String::new()), (&String::new(), &first)]);
        assert_eq!(all[1].text, "first try", "it stays in history");
    }
    stack.shutdown().await.unwrap();
}

fn get(session_id: &str) -> chatbox_proto::v1::GetSessionRequest {
    chatbox_proto::v1::GetSessionRequest { session_id: session_id.to_owned() }
}

#[tokio::test]
async fn who_lost_the_right_to_a_model_is_told_and_chooses_another() {
    let provider = Provider::start().await.unwrap();
    let stack = start(&provider).await;
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{n}");
        let as_admin = stack.token(&user, "admin").unwrap();
        let mut before = Client::connect(transport, stack.addresses(), &as_admin).await.unwrap();
        before.open(Open { model: "vip".to_owned(), ..Open::default() }).await.unwrap();
        provider.script("vip", Script::reply(["at your service"]));
        before.say("m1", "hello").await.unwrap();
        before.reply().await.unwrap();
        let mut now = stack.connect(transport, &user).await.unwrap();
        now.open(Open::default()).await.unwrap();
        let send = chatbox_proto::v1::chat_request::Send {
            client_message_id: "m2".to_owned(),
            text: "and again".to_owned(),
            file_ids: Vec::new(),
        };
        let refusal = refused(now.request(Frame::Send(send.clone())).await.unwrap());
        assert_eq!(refusal, (ErrorCode::PermissionDenied, "MODEL_NOT_ALLOWED".to_owned()));
        acked(now.request(select("one")).await.unwrap());
        provider.script("one", Script::reply(["gladly"]));
        acked(now.request(Frame::Send(send)).await.unwrap());
        assert_eq!(now.reply().await.unwrap().finished.text, "gladly");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_session_is_renamed_found_ended_and_brought_back_while_every_device_sees_it() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        let user = format!("user-{n}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
        client.say("m1", "hello").await.unwrap();
        client.reply().await.unwrap();
        let mut core = stack.core(&user).unwrap();
        for bad in ["", " ", &"x".repeat(101), "two\nlines"] {
            let request = UpdateSessionRequest { session_id: session_id.clone(), name: bad.to_owned() };
            assert_eq!(core.update_session(request).await.unwrap_err().code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
        let body = serde_json::json!({"name": "Grüße aus Kiel"}).to_string();
        let path = format!("/api/v1/sessions/{session_id}");
        let answer = stack.http(&user).unwrap().send(Method::PATCH, &path, Some(body)).await.unwrap();
        let renamed: UpdateSessionResponse = answer.read().unwrap();
        assert_eq!(renamed.session.unwrap().name, "Grüße aus Kiel");
        let seen = entry(&mut client, "the name", |entry| match &entry.kind {
            Some(Kind::Renamed(renamed)) => Some((renamed.name.clone(), renamed.automatic)),
            _ => None,
        });
        assert_eq!(seen.await, ("Grüße aus Kiel".to_owned(), false));
        let found: ListSessionsResponse =
            stack.http(&user).unwrap().get("/api/v1/sessions?nameContains=GR%C3%9C%C3%9FE").await.unwrap();
        assert_eq!(found.sessions.iter().map(|s| s.session_id.as_str()).collect::<Vec<_>>(), [session_id.as_str()]);
        let other = ListSessionsRequest { name_contains: "nothing".to_owned(), ..Default::default() };
        assert!(core.list_sessions(other).await.unwrap().into_inner().sessions.is_empty());

        // By the call: a socket that sends the frame is about to leave.
        core.end_session(EndSessionRequest { session_id: session_id.clone() }).await.unwrap();
        let request = ReopenSessionRequest { session_id: session_id.clone() };
        let back = core.reopen_session(request.clone()).await.unwrap().into_inner().session.unwrap();
        assert_eq!((back.status(), back.name.as_str()), (SessionStatus::Active, "Grüße aus Kiel"));
        entry(&mut client, "its return", |entry| matches!(entry.kind, Some(Kind::Reopened(_))).then_some(())).await;
        client.say("m2", "still there?").await.unwrap();
        assert!(!client.reply().await.unwrap().finished.text.is_empty());
        // One active session is the rule: this one, or another.
        core.end_session(EndSessionRequest { session_id: session_id.clone() }).await.unwrap();
        let mut second = stack.connect(transport, &user).await.unwrap();
        let opened = second.open(Open::default()).await.unwrap();
        assert!(opened.created);
        let error = core.reopen_session(request).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_session_in_which_nothing_happens_ends_by_itself_and_the_next_message_needs_another() {
    let setup = Setup::new().unwrap().with(|setup| setup.core.session.idle_end = Duration::from_secs(1));
    let stack = Stack::start(setup).await.unwrap();
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        let mut client = stack.connect(transport, &format!("user-{n}")).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say("m1", "hello").await.unwrap();
        client.reply().await.unwrap();
        let ended = entry(&mut client, "its end", |entry| match &entry.kind {
            Some(Kind::Ended(ended)) => Some(ended.clone()),
            _ => None,
        });
        let ended = ended.await;
        assert_eq!((ended.reason(), ended.by), (EndReason::Idle, None));
        let send = chatbox_proto::v1::chat_request::Send {
            client_message_id: "m2".to_owned(),
            text: "too late".to_owned(),
            file_ids: Vec::new(),
        };
        assert_eq!(refused(client.request(Frame::Send(send)).await.unwrap()).1, "SESSION_ENDED");
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_session_gets_a_name_from_its_model_that_everybody_sees() {
    let provider = Provider::start().await.unwrap();
    let setup = Setup::new().unwrap().with_models(&provider, &["one"]);
    let setup = setup.with(|setup| setup.core.session.naming = chatbox_core::config::Naming::Model);
    let stack = Stack::start(setup).await.unwrap();
    for (n, transport) in Transport::ALL.into_iter().enumerate() {
        provider.script("one", Script::reply(["From nine to five."]));
        provider.script("one", Script::reply(["\"Opening ", "hours\""]));
        let mut client = stack.connect(transport, &format!("user-{n}")).await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say("m1", "When are you open?").await.unwrap();
        client.reply().await.unwrap();
        let named = entry(&mut client, "the name", |entry| match &entry.kind {
            Some(Kind::Renamed(renamed)) => Some((renamed.name.clone(), renamed.automatic)),
            _ => None,
        });
        assert_eq!(named.await, ("Opening hours".to_owned(), true));
    }
    stack.shutdown().await.unwrap();
}
