//! Alerts over a real SQLite file, with channels that do as they are told. Wall-clock times of rows are in the past or far
//! ahead, so that no test waits for one.

use std::{collections::VecDeque, sync::PoisonError};

use super::*;
use crate::{
    notify::{DeliveryError, Message},
    store::{
        HandoffRow, Stage, StoreError, Stores,
        sqlite::{SqliteOptions, SqliteStore},
    },
};

#[derive(Debug, Default)]
struct Scripted {
    /// What the next tries lead to; delivered when there is nothing.
    answers: Mutex<VecDeque<DeliveryError>>,
    seen: Mutex<Vec<Message>>,
}

impl Scripted {
    fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fails(&self, error: DeliveryError) {
        self.answers.lock().unwrap().push_back(error);
    }
}

#[async_trait]
impl Channel for Scripted {
    async fn deliver(&self, message: &Message) -> Result<(), DeliveryError> {
        self.seen.lock().unwrap().push(message.clone());
        let answer = self.answers.lock().unwrap().pop_front();
        answer.map_or(Ok(()), Err)
    }
}

#[derive(Debug)]
struct Reader(Option<HelpFacts>);

#[async_trait]
impl HelpReader for Reader {
    async fn help(&self, _: SessionId, _: Seq) -> Result<Option<HelpFacts>, SessionError> {
        Ok(self.0.clone())
    }

    async fn requested(&self, _: SessionId, _: Timestamp) -> Result<Option<Seq>, SessionError> {
        Ok(self.0.as_ref().map(|_| 3))
    }
}

struct Scene {
    _folder: tempfile::TempDir,
    stores: Stores,
    channel: Arc<Scripted>,
    facts: Option<HelpFacts>,
    quiet: Option<QuietHours>,
    give_up: Duration,
    per_hour: u32,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = Arc::new(SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap()).into();
        let facts = HelpFacts { user: "quist".to_owned(), reason: "my\r\nparcel".to_owned() };
        Self {
            _folder: folder,
            stores,
            channel: Arc::default(),
            facts: Some(facts),
            quiet: None,
            give_up: Duration::from_secs(3_600),
            per_hour: 60,
        }
    }

    /// A core of its own, on the same store.
    fn core(&self) -> Alerts {
        let rule = |event| {
            let (subject, text) = Template::built_in(event);
            let channels = vec!["ops".to_owned()];
            (event, Rule { channels, quiet: self.quiet, repeat_after: Duration::from_secs(60), subject, text })
        };
        let channel = Arc::clone(&self.channel) as Arc<dyn Channel>;
        let rules = Rules {
            channels: HashMap::from([("ops".to_owned(), (channel, self.per_hour))]),
            rules: [AlertEvent::HelpRequested, AlertEvent::ProviderDown].map(rule).into(),
            link: "https://chat.example.org/admin/{session}".to_owned(),
            give_up: self.give_up,
            max_pause: Duration::from_secs(900),
            keep: Duration::from_secs(3_600),
        };
        let reader = Arc::new(Reader(self.facts.clone()));
        let outbox = Arc::clone(&self.stores.outbox);
        Alerts::new(outbox, reader, rules, Duration::from_secs(5), Metrics::new())
    }

    async fn rows(&self, state: AlertState) -> Vec<AlertRow> {
        self.stores.outbox.alerts(state, None, 100).await.unwrap()
    }
}

fn help(session: SessionId, at: Timestamp) -> Occurrence {
    Occurrence { event: AlertEvent::HelpRequested, entry: Some((session, 3)), detail: String::new(), at }
}

fn provider(name: &str, at: i64) -> Occurrence {
    let at = Timestamp::from_millis(at);
    Occurrence { event: AlertEvent::ProviderDown, entry: None, detail: name.to_owned(), at }
}

#[tokio::test]
async fn however_often_it_is_raised_an_alert_is_delivered_once_with_what_the_visitor_said() {
    let scene = Scene::new();
    let session = SessionId::generate();
    let (one, other) = (scene.core(), scene.core());
    let asked = help(session, Timestamp::now());
    assert_eq!(one.raise(&asked).await.unwrap(), 1);
    // Another core noticed it as well, a little later; and this one again, after it was delivered.
    let later = Occurrence { at: Timestamp::from_millis(asked.at.millis() + 700), ..asked.clone() };
    assert_eq!(other.raise(&later).await.unwrap(), 0);
    assert_eq!(one.round().await.unwrap() + other.round().await.unwrap(), 1);
    assert_eq!(one.raise(&asked).await.unwrap(), 0);
    assert_eq!(one.round().await.unwrap(), 0);
    let seen = scene.channel.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].session_id.as_deref(), Some(session.to_string().as_str()));
    assert!(seen[0].body.contains("quist asks") && seen[0].body.contains("Reason: my  parcel\n"), "{}", seen[0].body);
    assert!(seen[0].body.contains(&format!("https://chat.example.org/admin/{session}")), "{}", seen[0].body);
    assert_eq!(scene.rows(AlertState::Delivered).await.len(), 1);
}

#[tokio::test]
async fn a_row_says_nothing_that_a_visitor_wrote() {
    let scene = Scene::new();
    scene.core().raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    let row = format!("{:?}", scene.rows(AlertState::Waiting).await);
    assert!(!row.contains("quist") && !row.contains("parcel"), "{row}");
}

#[tokio::test]
async fn a_failed_try_is_made_again_with_the_same_id_and_not_before_it_was_asked_for() {
    let scene = Scene::new();
    let core = scene.core();
    let asked = Some(Duration::from_secs(600));
    scene.channel.fails(DeliveryError::Temporary { reason: "answered 451".to_owned(), retry_after: asked });
    core.raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    let before = Timestamp::now().millis();
    core.round().await.unwrap();
    let row = scene.rows(AlertState::Waiting).await.remove(0);
    assert_eq!((row.attempts, row.error.as_str()), (1, "answered 451"));
    assert!(row.due_at.millis() >= before + 600_000);
    assert_eq!(core.round().await.unwrap(), 0, "it is not due");
    // The time comes.
    let due = scene.stores.outbox.claim(row.due_at, Timestamp::from_millis(0), 9).await.unwrap();
    assert_eq!(due.len(), 1);
    core.round().await.unwrap();
    let seen = scene.channel.seen();
    assert_eq!((seen.len(), &seen[0].id), (2, &seen[1].id));
    assert_eq!(scene.rows(AlertState::Delivered).await.len(), 1);
}

#[tokio::test]
async fn pauses_grow_and_stay_below_their_longest() {
    let scene = Scene::new();
    let core = scene.core();
    core.raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        scene.channel.fails(DeliveryError::temporary("busy"));
        let before = Timestamp::now().millis();
        core.round().await.unwrap();
        let row = scene.rows(AlertState::Waiting).await.remove(0);
        pauses.push((row.due_at.millis() - before) / 1_000);
        scene.stores.outbox.claim(row.due_at, Timestamp::from_millis(0), 1).await.unwrap();
    }
    // Each attempt here is two: the claim above counts.
    assert!((7..=11).contains(&pauses[0]) && (30..=41).contains(&pauses[1]), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= 901) && pauses[8] >= 670, "{pauses:?}");
}

#[tokio::test]
async fn what_is_refused_or_too_old_or_gone_is_given_up_and_listed() {
    let mut scene = Scene::new();
    scene.channel.fails(DeliveryError::Permanent("answered 550".to_owned()));
    scene.core().raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    scene.core().round().await.unwrap();
    scene.channel.fails(DeliveryError::temporary("no connection"));
    let long_ago = Timestamp::from_millis(Timestamp::now().millis() - 3_601_000);
    scene.core().raise(&help(SessionId::generate(), long_ago)).await.unwrap();
    scene.core().round().await.unwrap();
    scene.facts = None;
    scene.core().raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    scene.core().round().await.unwrap();
    let mut dead: Vec<String> = scene.rows(AlertState::Dead).await.into_iter().map(|row| row.error).collect();
    dead.sort();
    assert_eq!(dead, ["answered 550", "no connection", "the session is gone"]);
    assert_eq!(scene.channel.seen().len(), 2, "of what is gone nothing is said");
}

#[tokio::test]
async fn quiet_hours_hold_an_alert_back_and_do_not_make_it_old() {
    let mut scene = Scene::new();
    let minute = (Timestamp::now().millis() / 60_000).rem_euclid(24 * 60);
    let clock = |minute: i64| format!("{:02}:{:02}", minute.rem_euclid(1_440) / 60, minute.rem_euclid(60));
    scene.quiet = Some(format!("{}-{}", clock(minute - 5), clock(minute + 300)).parse().unwrap());
    scene.give_up = Duration::from_secs(60);
    let core = scene.core();
    core.raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    assert_eq!(core.round().await.unwrap(), 0);
    let row = scene.rows(AlertState::Waiting).await.remove(0);
    assert!(row.due_at.millis() > row.created_at.millis() + 290 * 60_000);
}

#[tokio::test]
async fn more_than_an_hours_messages_wait() {
    let mut scene = Scene::new();
    scene.per_hour = 2;
    let core = scene.core();
    for _ in 0..3 {
        core.raise(&help(SessionId::generate(), Timestamp::now())).await.unwrap();
    }
    core.round().await.unwrap();
    assert_eq!(scene.channel.seen().len(), 2);
    let waiting = scene.rows(AlertState::Waiting).await;
    assert_eq!(waiting.len(), 1);
    assert!(waiting[0].due_at.millis() > Timestamp::now().millis() + 3_500_000, "{waiting:?}");
}

#[tokio::test]
async fn what_goes_on_is_told_once_per_period_and_provider() {
    let scene = Scene::new();
    let core = scene.core();
    let mut new = Vec::new();
    for (name, at) in [("a", 0), ("a", 59_999), ("b", 30_000), ("a", 60_000), ("a", 61_000)] {
        new.push(core.raise(&provider(name, at)).await.unwrap());
    }
    assert_eq!(new, [1, 0, 1, 1, 0]);
}

#[tokio::test]
async fn without_the_outbox_people_are_told_as_well_as_it_goes() {
    let scene = Scene::new();
    let core = scene.core();
    scene.stores.sessions.close().await;
    let occurrence = provider("a", Timestamp::now().millis());
    assert!(core.raise(&occurrence).await.is_err());
    core.tell_now(&occurrence).await;
    assert_eq!(scene.channel.seen().len(), 1);
}

#[tokio::test]
async fn who_waits_for_a_person_is_told_of_once_however_often_and_wherever_it_is_seen() {
    let scene = Scene::new();
    let (one, other) = (scene.core(), scene.core());
    let session = SessionId::generate();
    let (mut seen, mut elsewhere) = (HashMap::new(), HashMap::new());
    let row = |mark| HandoffRow { session_id: session, stage: Stage::Waiting { since: Timestamp::now() }, mark };
    let rows = [row(1)];
    assert_eq!(one.raise_help(&rows, &mut seen).await.unwrap(), 1);
    assert_eq!(one.raise_help(&rows, &mut seen).await.unwrap(), 0);
    assert_eq!(other.raise_help(&[HandoffRow { mark: 2, ..rows[0] }], &mut elsewhere).await.unwrap(), 0);
    assert_eq!(seen.len(), 1);
    // Who no longer waits is forgotten.
    one.raise_help(&[], &mut seen).await.unwrap();
    assert_eq!(seen.len(), 0);
    assert_eq!(scene.rows(AlertState::Waiting).await.len(), 1);
}

#[tokio::test]
async fn starts_without_an_end_are_counted_for_a_while() {
    let scene = Scene::new();
    let start = |at| {
        let window = Duration::from_secs(600);
        Starts::new(Arc::clone(&scene.stores.sessions), Timestamp::from_millis(at), window, Duration::from_secs(5))
    };
    assert_eq!(start(0).enter().await.unwrap(), 1);
    assert_eq!(start(1_000).enter().await.unwrap(), 2);
    start(1_000).leave().await.unwrap();
    assert_eq!(start(2_000).enter().await.unwrap(), 2);
    assert_eq!(start(601_000).enter().await.unwrap(), 2, "the first is too old");
    let crowd = (0..150).map(|n| start(700_000 + n));
    let mut last = 0;
    for start in crowd {
        last = start.enter().await.unwrap();
    }
    assert_eq!(last, 100, "as many as are kept");
}

#[derive(Debug)]
struct Stuck;

#[async_trait]
impl OutboxStore for Stuck {
    async fn enqueue(&self, _: AlertRow) -> Result<bool, StoreError> {
        std::future::pending().await
    }

    async fn claim(&self, _: Timestamp, _: Timestamp, _: u32) -> Result<Vec<AlertRow>, StoreError> {
        std::future::pending().await
    }

    async fn settle(&self, _: AlertId, _: u32, _: crate::store::outbox::Attempted) -> Result<bool, StoreError> {
        std::future::pending().await
    }

    async fn alerts(
        &self,
        _: AlertState,
        _: Option<(Timestamp, AlertId)>,
        _: u32,
    ) -> Result<Vec<AlertRow>, StoreError> {
        std::future::pending().await
    }

    async fn prune_delivered(&self, _: Timestamp, _: u32) -> Result<u64, StoreError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_a_failure_in_time() {
    let mut scene = Scene::new();
    scene.stores.outbox = Arc::new(Stuck);
    let core = scene.core();
    assert!(matches!(core.raise(&provider("a", 0)).await, Err(SessionError::StoreTimeout)));
    assert!(matches!(core.round().await, Err(SessionError::StoreTimeout)));
}
