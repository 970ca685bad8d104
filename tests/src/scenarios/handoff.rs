//! A visitor asks for a person, a person takes over, both talk, the assistant goes on knowing what was said; and all that
//! admins read and do is in the audit trail with its reason.

use chatbox_proto::v1::{
    self, AuditRecord, ChatAdminGetSessionRequest, ErrorCode, HelpState, ListAuditRequest, ListAuditResponse,
    ReassignRequest, ReleaseRequest, Session, TakeOverRequest, TakeOverResponse, WatchSessionsRequest,
    chat_request::{EndSession, Frame, Open, RequestHelp, Typing},
    chat_response::Event,
    entry::Kind,
    watch_sessions_response,
};
use reqwest::Method;
use tonic::Code;

use crate::harness::{
    client::{Answer, Client, Transport},
    contract::error_info,
    gate::Gate,
    grpc,
    http::Http,
    ports::free_port,
    programs::run,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::LIMIT,
    ws::Encoding,
};

/// Well-formed, and of nobody.
const UNKNOWN: &str = "0193e3a8-7c1b-7d3e-8f4a-2b6c9d0e1f23";

fn opening(session_id: &str, reason: &str) -> Open {
    Open { session_id: session_id.to_owned(), after_seq: Some(0), reason: reason.to_owned(), ..Open::default() }
}

fn taking(session_id: &str) -> TakeOverRequest {
    TakeOverRequest { session_id: session_id.to_owned(), reason: "asked for".to_owned(), ..TakeOverRequest::default() }
}

fn releasing(session_id: &str) -> ReleaseRequest {
    ReleaseRequest { session_id: session_id.to_owned(), reason: "done".to_owned(), ..ReleaseRequest::default() }
}

async fn help(client: &mut Client, position: u32) -> v1::Help {
    let placed = |event: &Event| match event {
        Event::Help(help) if help.position == position => Some(*help),
        _ => None,
    };
    client.until(&format!("place {position}"), placed).await.unwrap()
}

async fn entry(client: &mut Client, what: &str, is_it: impl Fn(&Kind) -> bool) -> Kind {
    let found = |event: &Event| match event {
        Event::Entry(entry) => entry.kind.clone().filter(|kind| is_it(kind)),
        _ => None,
    };
    client.until(what, found).await.unwrap()
}

/// The session as a reload shows it.
async fn reloaded(stack: &Stack, transport: Transport, user: &str, session_id: &str) -> Session {
    let mut client = stack.connect(transport, user).await.unwrap();
    client.open(opening(session_id, "")).await.unwrap().session.unwrap()
}

#[tokio::test]
async fn a_visitor_gets_a_person_and_then_the_assistant_again_on_every_transport() {
    for transport in Transport::ALL {
        let provider = Provider::start().await.unwrap();
        let stack = Stack::start(Setup::new().unwrap().with_models(&provider, &["scripted"])).await.unwrap();
        let gate = Gate::new();
        provider
            .script("scripted", Script::stream().delta("begun").gate(&gate).delta("never seen").finish("stop").done());
        let mut alice = stack.connect(transport, "alice").await.unwrap();
        let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
        alice.say("1", "my order is lost").await.unwrap();
        alice.until("a piece", |event| matches!(event, Event::ReplyDelta(_)).then_some(())).await.unwrap();
        let ask = Frame::RequestHelp(RequestHelp { reason: "a refund".to_owned() });
        assert!(matches!(alice.request(ask.clone()).await.unwrap(), Answer::Ack(ack) if ack.seq > 0));
        help(&mut alice, 1).await;
        let seen = reloaded(&stack, transport, "alice", &id).await.help.unwrap();
        assert_eq!((seen.state(), seen.position), (HelpState::Requested, 1), "{transport:?}");

        let mut bob = stack.connect_admin(transport, "bob").await.unwrap();
        let opened = bob.open(opening(&id, "she asked for a person")).await.unwrap();
        assert_eq!(opened.you.unwrap().role(), v1::SenderRole::Admin);
        entry(&mut bob, "her message", |kind| matches!(kind, Kind::Message(m) if m.text == "my order is lost")).await;
        stack.team("bob").unwrap().take_over(taking(&id)).await.unwrap();
        let cut = alice.reply().await.unwrap();
        assert_eq!((cut.finished.text.as_str(), cut.finished.finish_reason()), ("begun", v1::FinishReason::Superseded));
        gate.open();
        entry(&mut alice, "the takeover", |kind| matches!(kind, Kind::TakenOver(_))).await;
        let seen = reloaded(&stack, transport, "alice", &id).await;
        assert_eq!((seen.responder(), seen.held_by.unwrap().user_id.as_str()), (v1::Responder::Admin, "bob"));

        bob.request(Frame::Typing(Typing { active: true })).await.unwrap();
        let types = |event: &Event| matches!(event, Event::Typing(typing) if typing.active).then_some(());
        alice.until("somebody types", types).await.unwrap();
        bob.say("b1", "I have found it").await.unwrap();
        entry(&mut alice, "his message", |kind| matches!(kind, Kind::Message(m) if m.text == "I have found it")).await;
        alice.say("2", "thank you").await.unwrap();
        stack.team("bob").unwrap().release(releasing(&id)).await.unwrap();
        entry(&mut alice, "the release", |kind| matches!(kind, Kind::Released(_))).await;
        let seen = reloaded(&stack, transport, "alice", &id).await;
        assert_eq!(seen.help.unwrap().state(), HelpState::Released);

        provider.script("scripted", Script::reply(["as my colleague said"]));
        alice.say("3", "where was it?").await.unwrap();
        assert_eq!(alice.reply().await.unwrap().finished.text, "as my colleague said");
        let asked = provider.requests().last().unwrap().messages();
        for (role, text) in [("assistant", "I have found it"), ("user", "thank you"), ("user", "where was it?")] {
            assert!(asked.contains(&(role.to_owned(), text.to_owned())), "{transport:?}: {text} is not in {asked:?}");
        }
        let silent = alice
            .entries()
            .iter()
            .all(|entry| !matches!(&entry.kind, Some(Kind::ReplyFinished(end)) if end.text.contains("never seen")));
        assert!(silent, "{transport:?}");
        stack.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn every_read_and_action_of_an_admin_is_written_down_with_its_reason_and_without_text() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.say("1", "a secret of alice").await.unwrap();
    alice.reply().await.unwrap();
    let mut team = stack.team("bob").unwrap();

    // Without a reason nothing is done and nothing is shown.
    let mut nameless = stack.connect_admin(Transport::Grpc, "bob").await.unwrap();
    let refused = nameless.request(Frame::Open(opening(&id, ""))).await.unwrap();
    assert!(matches!(&refused, Answer::Error(e) if e.code() == ErrorCode::InvalidArgument), "{refused:?}");
    let quiet = TakeOverRequest { session_id: id.clone(), ..TakeOverRequest::default() };
    assert_eq!(team.take_over(quiet).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(reloaded(&stack, Transport::Grpc, "alice", &id).await.responder(), v1::Responder::Assistant);

    let mut bob = stack.connect_admin(Transport::Socket(Encoding::Json), "bob").await.unwrap();
    bob.open(opening(&id, "reason chat")).await.unwrap();
    let get =
        ChatAdminGetSessionRequest { session_id: id.clone(), reason: "reason get".to_owned(), ..Default::default() };
    let found = team.get_session(get).await.unwrap().into_inner();
    assert_eq!((found.messages.len(), found.messages[0].text.as_str()), (2, "a secret of alice"));
    team.take_over(TakeOverRequest { reason: "reason take".to_owned(), ..taking(&id) }).await.unwrap();
    let pass = ReassignRequest {
        session_id: id.clone(),
        admin_id: "carol".to_owned(),
        reason: "reason pass".to_owned(),
        ..ReassignRequest::default()
    };
    team.reassign(pass).await.unwrap();
    let late = team.release(ReleaseRequest { reason: "reason late".to_owned(), ..releasing(&id) }).await.unwrap_err();
    assert_eq!((late.code(), error_info(&late).unwrap().reason.as_str()), (Code::FailedPrecondition, "SESSION_HELD"));
    assert_eq!(late.message(), "carol holds the session");
    let end = v1::ChatAdminEndSessionRequest {
        session_id: id.clone(),
        reason: "reason end".to_owned(),
        ..Default::default()
    };
    let ended = team.end_session(end).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ended.status(), v1::SessionStatus::Ended);
    entry(&mut alice, "the end", |kind| matches!(kind, Kind::Ended(end) if end.reason() == v1::EndReason::Admin)).await;

    let records = audit(&mut team, &format!("session_id = \"{id}\""), 2).await;
    let told: Vec<(&str, &str)> = records.iter().map(|r| (r.action.as_str(), r.reason.as_str())).collect();
    let expected = [
        ("EndSession", "reason end"),
        ("Release", "reason late"),
        ("Reassign", "reason pass"),
        ("TakeOver", "reason take"),
        ("GetSession", "reason get"),
        ("Chat", "reason chat"),
    ];
    assert_eq!(told, expected);
    assert!(records.iter().all(|record| record.actor == "bob" && record.hash.len() == 32));
    assert!(!format!("{records:?}").contains("secret"));
    let own = audit(&mut team, "action = \"ListAudit\" AND actor = \"bob\"", 100).await;
    assert!(own.len() >= 3, "looking into the trail is in it: {own:?}");
    let bad = ListAuditRequest { filter: "text = \"x\"".to_owned(), reason: "r".to_owned(), ..Default::default() };
    assert_eq!(team.list_audit(bad).await.unwrap_err().code(), Code::InvalidArgument);
    stack.shutdown().await.unwrap();
}

/// All records of a filter, page by page.
async fn audit(team: &mut grpc::Team, filter: &str, page_size: i32) -> Vec<AuditRecord> {
    let (mut records, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            ListAuditRequest { page_size, page_token, filter: filter.to_owned(), reason: "review".to_owned() };
        let page = team.list_audit(request).await.unwrap().into_inner();
        records.extend(page.records);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return records;
        }
    }
}

#[tokio::test]
async fn the_routes_of_the_team_are_for_the_team() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    let (visitor, admin) = (stack.http("alice").unwrap(), stack.token("bob", "chat_admin").unwrap());
    let admin = Http::new(stack.addresses().http, Some(&admin));
    let base = format!("/api/v1/admin/sessions/{id}");
    let body = Some("{\"reason\": \"because\"}".to_owned());
    let routes = [
        (Method::GET, format!("{base}?reason=because"), None),
        (Method::POST, format!("{base}/takeover"), body.clone()),
        (Method::POST, format!("{base}/reassign"), Some("{\"reason\": \"b\", \"adminId\": \"bob\"}".to_owned())),
        (Method::POST, format!("{base}/release"), body.clone()),
        (Method::POST, format!("{base}/end"), body),
        (Method::GET, "/api/v1/admin/audit?reason=because".to_owned(), None),
    ];
    for (method, path, body) in routes {
        let refused = visitor.send(method.clone(), &path, body.clone()).await.unwrap();
        assert_eq!(refused.status, 403, "{path}: {}", refused.text());
        let done = admin.send(method.clone(), &path, body.clone()).await.unwrap();
        assert_eq!(done.status, 200, "{path}: {}", done.text());
        if path.contains(&id) {
            let unknown = admin.send(method, &path.replace(&id, UNKNOWN), body).await.unwrap();
            assert_eq!(unknown.status, 404, "{path}: {}", unknown.text());
        }
    }
    let without = admin.send(Method::POST, &format!("{base}/takeover"), Some("{}".to_owned())).await.unwrap();
    assert_eq!(without.status, 400, "{}", without.text());
    let taken: Result<TakeOverResponse, _> = without.read();
    assert!(taken.is_err() || taken.unwrap().session.is_none());
    let trail: ListAuditResponse = admin.get("/api/v1/admin/audit?reason=because&pageSize=3").await.unwrap();
    assert_eq!(trail.records.len(), 3);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn with_a_listener_of_their_own_the_teams_calls_are_nowhere_else() {
    let listen = free_port().unwrap();
    let setup = Setup::new().unwrap().with(|setup| setup.core.admin.listen = listen.to_string());
    let stack = Stack::start(setup).await.unwrap();
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    assert_eq!(stack.team("bob").unwrap().take_over(taking(&id)).await.unwrap_err().code(), Code::Unimplemented);
    let token = stack.token("bob", "chat_admin").unwrap();
    let mut team = grpc::team(grpc::channel(listen).unwrap(), &token).unwrap();
    team.take_over(taking(&id)).await.unwrap();
    let mut core = grpc::core(grpc::channel(listen).unwrap(), Some(&token)).unwrap();
    assert_eq!(core.list_models(v1::ListModelsRequest {}).await.unwrap_err().code(), Code::Unimplemented);
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_admin_who_calls_too_often_is_told_to_wait_and_others_are_not() {
    let setup = Setup::new().unwrap().with(|setup| setup.core.admin.calls_per_minute = 3);
    let stack = Stack::start(setup).await.unwrap();
    let mut team = stack.team("bob").unwrap();
    let look = || ListAuditRequest { reason: "r".to_owned(), ..ListAuditRequest::default() };
    for _ in 0..3 {
        team.list_audit(look()).await.unwrap();
    }
    let refused = team.list_audit(look()).await.unwrap_err();
    assert_eq!(
        (refused.code(), error_info(&refused).unwrap().reason.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_CALLS")
    );
    stack.team("carol").unwrap().list_audit(look()).await.unwrap();
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_queue_is_watched_as_it_is_and_as_it_changes() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let ask = || Frame::RequestHelp(RequestHelp::default());
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let first = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.request(ask()).await.unwrap();
    // Nobody of the team has shown up yet.
    let notice = |event: &Event| {
        matches!(event, Event::Entry(entry) if matches!(&entry.kind, Some(Kind::Message(m))
            if m.text.contains("Nobody of the team")))
    };
    alice.until_seen("the notice", notice).await.unwrap();
    alice.until_seen("a place", |event| matches!(event, Event::Help(help) if help.position == 1)).await.unwrap();
    let request = WatchSessionsRequest { reason: "my shift".to_owned(), ..WatchSessionsRequest::default() };
    let mut events = stack.team("bob").unwrap().watch_sessions(request).await.unwrap().into_inner();
    let mut seen = async |what: &str, is_it: &dyn Fn(&watch_sessions_response::Event) -> bool| {
        let found = async {
            loop {
                let event = events.message().await.unwrap().expect("it goes on").event.unwrap();
                if is_it(&event) {
                    return;
                }
            }
        };
        crate::harness::wait::within(what, LIMIT, found).await.unwrap();
    };
    use watch_sessions_response::Event as Watched;
    let waits = |id: String, state: HelpState, position: u32| {
        move |event: &Watched| {
            matches!(event, Watched::Session(session) if session.session_id == id
                && session.help.as_ref().is_some_and(|help| help.state() == state && help.position == position))
        }
    };
    seen("alice waits", &waits(first.clone(), HelpState::Requested, 1)).await;
    seen("caught up", &|event| matches!(event, Watched::CaughtUp(_))).await;
    let mut carol = stack.connect(Transport::Grpc, "carol").await.unwrap();
    let second = carol.open(Open::default()).await.unwrap().session.unwrap().session_id;
    carol.request(ask()).await.unwrap();
    seen("carol waits", &waits(second.clone(), HelpState::Requested, 2)).await;
    stack.team("bob").unwrap().take_over(taking(&first)).await.unwrap();
    seen("alice is held", &waits(first, HelpState::Assigned, 0)).await;
    carol.request(Frame::EndSession(EndSession {})).await.unwrap();
    let ended = |event: &Watched| {
        matches!(event, Watched::Session(session) if session.session_id == second
            && session.status() == v1::SessionStatus::Ended)
    };
    seen("carol has left", &ended).await;
    stack.shutdown().await.unwrap();
}

/// The lines of the README about admins, as they stand there.
#[tokio::test]
async fn the_lines_of_the_readme_do_what_they_say() {
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut alice = stack.connect(Transport::Grpc, "alice").await.unwrap();
    let id = alice.open(Open::default()).await.unwrap().session.unwrap().session_id;
    alice.say("1", "hello").await.unwrap();
    alice.reply().await.unwrap();
    let readme = include_str!("../../../README.md");
    let lines: Vec<&str> = readme.lines().filter(|line| line.starts_with("admin ")).collect();
    let calls = ["GetSession", "TakeOver", "Reassign", "Release", "EndSession", "ListAudit"];
    assert_eq!(lines.len(), calls.len(), "{lines:?}");
    let header = format!("authorization: Bearer {}", stack.token("ann", "admin").unwrap());
    let target = stack.addresses().grpc.to_string();
    for (line, call) in lines.iter().zip(calls) {
        let (_, rest) = line.split_once("'").unwrap();
        let (request, _) = rest.split_once("'").unwrap();
        let request = request.replace("SESSION", &id);
        let method = line.split(' ').nth(1).unwrap();
        assert_eq!(method, call);
        let path = format!("chatbox.v1.ChatAdmin/{method}");
        let output =
            run("bin/grpcurl", &["-plaintext", "-H", &header, "-d", &request, &target, &path], "", LIMIT).await;
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }
    stack.shutdown().await.unwrap();
}
