//! What may be used in a day and in a minute: kept by two cores together and through the death of either, said in the same
//! words over every transport.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chatbox_core::store::{
    BudgetStore, SessionStore as _,
    budgets::{Amount, BudgetKey, BudgetRow},
    mongo::{MongoOptions, MongoStore},
    sqlite::{SqliteOptions, SqliteStore},
};
use chatbox_proto::{
    status::Failure,
    token::Secret,
    v1::{
        CreateSessionRequest, ErrorCode, FinishReason, Message,
        chat_request::{Frame, Open, Send},
        chat_response::Event,
    },
};
use futures_util::future::join_all;

use super::transcript::all_answered;
use crate::harness::{
    client::{Answer, Client, Transport},
    cores::Cores,
    gate::Gate,
    history,
    mongod::Database,
    provider::{Provider, Script},
    stack::{Setup, Stack},
    wait::{LIMIT, wait_for},
};

/// Two cores whose models generate at most 1,000 tokens.
struct World {
    cores: Cores,
    provider: Provider,
    rows: MongoStore,
    database: Database,
}

impl World {
    async fn start(budgets: &str) -> Self {
        let database = Database::new().unwrap();
        let provider = Provider::start().await.unwrap();
        let settings = format!(
            "default_model = \"m\"\ndrain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.grace = \"300ms\"\n\
             drain.deadline = \"15s\"\nsession.reply_lapse = \"3s\"\nsession.checkpoint = \"50ms\"\n{budgets}\n\
             [providers.scripted]\nbase_url = \"{}\"\nfirst_byte_timeout = \"60s\"\nchunk_timeout = \"60s\"\n\
             [[models]]\nid = \"m\"\nprovider = \"scripted\"\nmax_output_tokens = 1000\n",
            provider.base_url()
        );
        let cores = Cores::start(2, &database.uri, &settings).await.unwrap();
        let options = MongoOptions { uri: Secret::new(database.uri.clone()), call_timeout: LIMIT, pool_size: 4 };
        let rows = MongoStore::open(&options).await.unwrap();
        Self { cores, provider, rows, database }
    }

    /// A stream of a user on a core, and its session.
    async fn user(&self, core: usize, user: &str) -> (Client, String) {
        let mut client = self.cores.connect(core, user).await.unwrap();
        let session = client.open(Open::default()).await.unwrap().session.unwrap();
        (client, session.session_id)
    }

    /// The history as a core tells it, once all in it is answered.
    async fn settled(&self, core: usize, user: &str, session_id: &str) -> Vec<Message> {
        let quiet = || async {
            let mut core = self.cores.core(core, user).ok()?;
            let all = history::by_grpc(&mut core, session_id, 0).await.ok()?;
            (history::check(&all).is_ok() && all_answered(&all).is_ok()).then_some(all)
        };
        wait_for("all is answered", 2 * LIMIT, quiet).await.unwrap()
    }

    /// The rows of a subject once so much is settled and nothing is reserved.
    async fn row(&self, subject: &str, settlements: u64) -> BudgetRow {
        let done = || async {
            let row = row(&self.rows, subject).await;
            (row.settled == settlements && row.open.is_empty()).then_some(row)
        };
        wait_for("the settlements", 2 * LIMIT, done).await.unwrap()
    }

    async fn end(self) {
        self.rows.close().await;
        self.cores.shutdown().await.unwrap();
        self.database.drop_it().await.unwrap();
    }
}

/// Of yesterday, today and tomorrow, whichever it is by now.
async fn row(store: &dyn BudgetStore, subject: &str) -> BudgetRow {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / (24 * 3_600);
    let today = u32::try_from(today).unwrap();
    let mut sum = BudgetRow::new(BudgetKey { day: today, subject: subject.to_owned() });
    for day in [today - 1, today, today + 1] {
        let key = BudgetKey { day, subject: subject.to_owned() };
        let Some(row) = store.budget(&key).await.unwrap() else { continue };
        sum.used = sum.used.plus(row.used);
        sum.over = sum.over.plus(row.over);
        sum.reserved = sum.reserved.plus(row.reserved);
        sum.settled += row.settled;
        sum.estimated += row.estimated;
        sum.open.extend(row.open);
    }
    sum
}

/// Tokens of all replies, and how many of them asked a provider.
fn told<'a>(messages: impl IntoIterator<Item = &'a Message>) -> u64 {
    let usage = messages.into_iter().filter_map(|message| message.reply.as_ref()?.usage);
    usage.map(|usage| usage.prompt_tokens + usage.completion_tokens).sum()
}

fn message(id: &str, text: &str) -> Frame {
    Frame::Send(Send { client_message_id: id.to_owned(), text: text.to_owned(), file_ids: Vec::new() })
}

/// Waits until the text of a running reply has been shown.
async fn shown(client: &mut Client, text: &str) {
    let whole = |event: &Event| {
        let end = match event {
            Event::ReplyDelta(delta) => delta.next_offset,
            Event::ReplySnapshot(snapshot) => snapshot.next_offset,
            _ => return None,
        };
        (end as usize >= text.len()).then_some(())
    };
    client.until("the text", whole).await.unwrap();
}

#[tokio::test]
async fn two_cores_that_answer_at_once_do_not_go_beyond_the_budget_of_a_role() {
    const LIMIT_TOKENS: u64 = 8_000;
    let world = World::start("budgets.roles.user.tokens = 8000").await;
    let gate = Gate::new();
    let answer = Script::stream().delta("hälf ").gate(&gate).finish("stop").usage(700, 300).done();
    world.provider.always("m", answer);
    let mut users = Vec::new();
    for n in 0..12 {
        let name = format!("user{n}");
        let (client, session_id) = world.user(n % 2, &name).await;
        users.push((name, client, session_id));
    }
    // A reservation is a little more than 1,000: seven of them fit.
    let asked =
        users.iter_mut().map(|(_, client, _)| async { client.request(message("m1", "question")).await.unwrap() });
    let answers = join_all(asked).await;
    world.provider.wait_requests(7).await.unwrap();
    for answer in &answers {
        if let Answer::Error(error) = answer {
            let told = (error.code(), error.reason.as_str());
            assert_eq!(told, (ErrorCode::ResourceExhausted, "BUDGET_EXHAUSTED"));
            assert!(error.retry_after.is_some());
        }
    }
    let during = row(&world.rows, "role:user").await;
    assert!(during.used.plus(during.reserved).fits(Amount::new(LIMIT_TOKENS, u64::MAX)), "{during:?}");
    gate.open();
    let mut stored = Vec::new();
    for (n, (name, _, session_id)) in users.iter().enumerate() {
        stored.extend(world.settled(1 - n % 2, name, session_id).await);
    }
    let ends = |finish| stored.iter().filter_map(|m| m.reply.as_ref()).filter(|r| r.finish_reason() == finish).count();
    assert_eq!((ends(FinishReason::Stop), world.provider.requests().len()), (7, 7));
    let accepted = answers.iter().filter(|answer| matches!(answer, Answer::Ack(_))).count();
    assert_eq!(ends(FinishReason::BudgetExhausted), accepted - 7, "who was admitted and came too late is told so");
    let after = world.row("role:user", 7).await;
    assert_eq!((after.used.tokens, after.over.tokens, after.estimated), (7_000, 0, 0));
    assert_eq!(after.total().tokens, told(&stored));
    let (_, client, _) = &mut users[0];
    let answer = client.request(message("m2", "another")).await.unwrap();
    assert!(matches!(&answer, Answer::Error(error) if error.reason == "BUDGET_EXHAUSTED"), "{answer:?}");
    world.end().await;
}

#[tokio::test]
async fn heavy_a_row_is_the_sum_of_its_settlements_whoever_dies_in_mid_reply() {
    let mut world = World::start("budgets.user.tokens = 100000\nbudgets.roles.user.tokens = 900000").await;
    let (mut first, session_id) = world.user(0, "alice").await;
    first.say("m1", "question").await.unwrap();
    first.reply().await.unwrap();
    let text = "as far as it came";
    world.provider.always("m", Script::stream().delta(text).hang());
    first.say("m2", "go on").await.unwrap();
    shown(&mut first, text).await;
    world.cores.process(0).kill().unwrap();
    // The other one ends the reply, and settles it.
    let stored = world.settled(1, "alice", &session_id).await;
    assert_eq!(stored.last().unwrap().reply.as_ref().unwrap().finish_reason(), FinishReason::Interrupted);
    for subject in ["user:alice", "role:user"] {
        let row = world.row(subject, 2).await;
        assert_eq!((row.total().tokens, row.estimated), (told(&stored), 1), "{subject}");
        assert!(row.total().tokens > 0);
    }
    // Nobody is left, and both come back.
    let mut second = world.cores.connect(1, "alice").await.unwrap();
    let open = Open { session_id: session_id.clone(), after_seq: Some(0), ..Open::default() };
    second.open(open).await.unwrap();
    second.say("m3", "and now?").await.unwrap();
    world.provider.wait_requests(3).await.unwrap();
    world.cores.process(1).kill().unwrap();
    for core in [0, 1] {
        world.cores.restart(core).unwrap();
    }
    for core in [0, 1] {
        world.cores.ready(core).await.unwrap();
    }
    let stored = world.settled(0, "alice", &session_id).await;
    assert_eq!(stored.len(), 6);
    for subject in ["user:alice", "role:user"] {
        let row = world.row(subject, 3).await;
        assert_eq!((row.total().tokens, row.estimated), (told(&stored), 2), "{subject}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_used_up_budget_is_said_alike_over_every_transport_and_kept_over_a_restart() {
    let provider = Provider::start().await.unwrap();
    let setup = Setup::new().unwrap().with_models(&provider, &["m"]);
    let setup = setup.with(|setup| setup.core.budgets.user.tokens = 2_000);
    let mut stack = Stack::start(setup).await.unwrap();
    let refused = |answer: Answer| {
        let Answer::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!((error.code(), error.reason.as_str()), (ErrorCode::ResourceExhausted, "BUDGET_EXHAUSTED"));
        let wait = Duration::try_from(error.retry_after.unwrap()).unwrap();
        assert!(wait <= Duration::from_secs(24 * 3_600) && !wait.is_zero(), "{wait:?}");
    };
    let mut sessions = Vec::new();
    for transport in Transport::ALL {
        let user = format!("{transport:?}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
        // The first provider says nothing of usage.
        provider.script("m", Script::stream().delta("wörd").finish("stop").done());
        client.say("m1", "question").await.unwrap();
        assert!(client.reply().await.unwrap().finished.usage.unwrap().estimated);
        let settled =
            || async { stack.core_metric("chatbox_core_budget_events_total{outcome=\"settled\"}").await.ok() };
        let so_far = 2.0 * (sessions.len() as f64) + 1.0;
        let is_settled = || async { settled().await.filter(|count| *count >= so_far) };
        wait_for("the settlement", LIMIT, is_settled).await.unwrap();
        provider.script("m", Script::stream().delta("wörd").finish("stop").usage(900, 100).done());
        client.say("m2", "question").await.unwrap();
        client.reply().await.unwrap();
        let is_settled = || async { settled().await.filter(|count| *count >= so_far + 1.0) };
        wait_for("the settlement", LIMIT, is_settled).await.unwrap();
        refused(client.request(message("m3", "question")).await.unwrap());
        let repeat = client.say("m2", "question").await.unwrap();
        assert!(repeat.duplicate, "what was accepted is");
        let stored = history::by_grpc(&mut stack.core(&user).unwrap(), &session_id, 0).await.unwrap();
        assert_eq!(stored.len(), 4, "nothing of what was refused is stored");
        sessions.push((user, session_id, told(&stored)));
    }
    stack.stop_core().await.unwrap();
    let store = SqliteStore::open_in(stack.data(), &SqliteOptions::default()).unwrap();
    for (user, _, told) in &sessions {
        let row = row(&store, &format!("user:{user}")).await;
        assert_eq!((row.total().tokens, row.settled, row.estimated, row.open.len()), (*told, 2, 1, 0));
    }
    store.close().await;
    stack.start_core().await.unwrap();
    for (transport, (user, session_id, _)) in Transport::ALL.into_iter().zip(&sessions) {
        let mut client = stack.connect(transport, user).await.unwrap();
        let open = Open { session_id: session_id.clone(), ..Open::default() };
        client.open(open).await.unwrap();
        refused(client.request(message("m3", "question")).await.unwrap());
    }
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn who_writes_too_often_is_told_when_to_come_back_over_every_transport_and_call() {
    let setup = Setup::new().unwrap().with(|setup| setup.core.limits.messages_per_minute = 2);
    let stack = Stack::start(setup).await.unwrap();
    for transport in Transport::ALL {
        let user = format!("{transport:?}");
        let mut client = stack.connect(transport, &user).await.unwrap();
        client.open(Open::default()).await.unwrap();
        for id in ["m1", "m2"] {
            client.say(id, "x").await.unwrap();
        }
        let answer = client.request(message("m3", "x")).await.unwrap();
        let Answer::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!((error.code(), error.reason.as_str()), (ErrorCode::ResourceExhausted, "TOO_MANY_MESSAGES"));
        let wait = Duration::try_from(error.retry_after.unwrap()).unwrap();
        assert!(!wait.is_zero() && wait <= Duration::from_secs(30), "{wait:?}");
        assert!(client.say("m2", "x").await.unwrap().duplicate);
        let mut core = stack.core(&user).unwrap();
        let status = core.create_session(CreateSessionRequest::default()).await.unwrap_err();
        let failure = Failure::from(&status);
        assert_eq!((failure.reason.as_ref(), status.code()), ("TOO_MANY_MESSAGES", tonic::Code::ResourceExhausted));
        assert!(failure.retry_after.is_some_and(|wait| !wait.is_zero()));
    }
    let mut client = stack.connect(Transport::Grpc, "another").await.unwrap();
    client.open(Open::default()).await.unwrap();
    client.say("m1", "another user has a minute of their own").await.unwrap();
    stack.shutdown().await.unwrap();
}
