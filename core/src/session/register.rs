//! Which cores are alive, as they say of themselves: one small value of the installation in which each has a row that it
//! renews by compare-and-set. Life is judged by whether a row moves, on one's own monotonic clock; no wall clock is compared.
//!
//! Who may come in follows from it: a core with the local bus hears nothing of others, so it must be alone; cores with a
//! common bus may be many. So does which keys every core can open.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::SessionError;
use crate::{
    seal::KeyRing,
    store::{BootId, SessionStore},
};

/// Under this name the store keeps the register.
const NAME: &str = "register";

/// Between two renewals of a core's own row at most, and how many there are in the time after which it is dead.
const RENEW: Duration = Duration::from_secs(2);
const RENEWALS: u32 = 4;

/// Between two looks at rows that stand in the way.
const LOOK: Duration = Duration::from_millis(250);

/// Tries to write against others who write at the same time; then the next renewal is soon enough.
const TRIES: u32 = 16;

/// Why a core may not use the store.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another core is there.
    #[error(
        "another core uses this store, and one of the two has bus.url = \"local\"; give all cores the same NATS servers"
    )]
    Occupied,
    /// The store failed.
    #[error("the store could not be asked which cores use it")]
    Store(#[source] SessionError),
}

/// Whether a core can have others beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Company {
    /// It has the local bus.
    Alone,
    /// It has a common bus.
    #[default]
    Together,
}

impl Company {
    fn bears(self, other: Self) -> bool {
        (self, other) == (Self::Together, Self::Together)
    }
}

/// What a core says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreCard {
    /// Whether it can have others beside it.
    #[serde(default)]
    pub company: Company,
    /// The key that it wraps new data keys under.
    pub primary_key: String,
    /// The keys it can open.
    pub keys: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    renewals: u64,
    #[serde(flatten)]
    card: CoreCard,
}

/// Boot ids as text, so that the value can be read with the store's own tools.
type Rows = BTreeMap<String, Row>;

/// A row, since when it has stood at this many renewals.
type Seen = HashMap<String, (u64, Instant)>;

/// What came of an attempt to write the own row.
#[derive(Debug, PartialEq, Eq)]
enum Entered {
    /// It is there.
    Yes,
    /// Somebody else wrote meanwhile.
    Beaten,
    /// Cores are there that cannot be beside this one, or it beside them: their renewals.
    Barred(BTreeMap<String, u64>),
}

/// The register, seen from one core. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Register {
    store: Arc<dyn SessionStore>,
    own: String,
    card: CoreCard,
    lapse: Duration,
    call: Duration,
    seen: Arc<Mutex<Seen>>,
}

impl Register {
    /// The register for the core of this boot. A row that has not moved for `lapse` is a dead core's.
    #[must_use]
    pub fn new(
        store: Arc<dyn SessionStore>,
        boot_id: BootId,
        company: Company,
        ring: &KeyRing,
        lapse: Duration,
        call: Duration,
    ) -> Self {
        let (primary_key, keys) = (ring.primary().to_owned(), ring.key_ids().map(str::to_owned).collect());
        let own = boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { store, own, card: CoreCard { company, primary_key, keys }, lapse, call, seen: Arc::default() }
    }

    /// Comes in, or waits until all that stand in the way have been still for the lapse.
    ///
    /// # Errors
    /// Another core that cannot be beside this one is alive; the store failed.
    pub async fn enter(&self) -> Result<(), Refused> {
        let mut barred_by: Option<BTreeMap<String, u64>> = None;
        loop {
            match self.try_enter(true).await.map_err(Refused::Store)? {
                Entered::Yes => return Ok(()),
                Entered::Beaten => {}
                Entered::Barred(by) => {
                    match &barred_by {
                        // Whoever moves, or has come meanwhile, is alive.
                        Some(before) if by.iter().any(|(boot, renewals)| before.get(boot) != Some(renewals)) => {
                            return Err(Refused::Occupied);
                        }
                        Some(_) => {}
                        None => {
                            tracing::info!("another core may be using the store, waiting whether it is alive");
                            barred_by = Some(by);
                        }
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    /// Renews this core's row, and takes out those of the dead. `false`: others have judged this one dead, and one is there
    /// that it cannot be beside.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn renew(&self) -> Result<bool, SessionError> {
        for _ in 0..TRIES {
            match self.try_enter(false).await? {
                Entered::Yes => return Ok(true),
                Entered::Beaten => {}
                Entered::Barred(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes this core out, so that the next one need not wait.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn leave(&self) -> Result<(), SessionError> {
        for _ in 0..TRIES {
            let (mut rows, before) = self.read().await?;
            if rows.remove(&self.own).is_none() || self.write(&rows, before).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The cores that are alive, this one included once it has entered. A dead one is among them until its row has stood
    /// still for the lapse while this core looked.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn live(&self) -> Result<Vec<CoreCard>, SessionError> {
        let (rows, _) = self.read().await?;
        let dead = self.dead(&rows);
        Ok(rows.into_iter().filter(|(boot, _)| !dead.contains(boot)).map(|(_, row)| row.card).collect())
    }

    /// Renews; returns only when this core's place is lost to another.
    pub async fn keep(&self) {
        loop {
            match self.renew().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the register of cores could not be renewed"
                    );
                }
            }
            tokio::time::sleep(RENEW.min(self.lapse / RENEWALS)).await;
        }
    }

    /// Writes the own row beside those that may be there. A row that is there already was let in: only who comes in, or comes
    /// back, is held against the others.
    async fn try_enter(&self, anew: bool) -> Result<Entered, SessionError> {
        let (mut rows, before) = self.read().await?;
        for boot in self.dead(&rows) {
            rows.remove(&boot);
        }
        if anew || !rows.contains_key(&self.own) {
            let bars = |(boot, row): &(&String, &Row)| **boot != self.own && !self.card.company.bears(row.card.company);
            let by: BTreeMap<_, _> = rows.iter().filter(bars).map(|(boot, row)| (boot.clone(), row.renewals)).collect();
            if !by.is_empty() {
                return Ok(Entered::Barred(by));
            }
        }
        let row = rows.entry(self.own.clone()).or_insert(Row { renewals: 0, card: self.card.clone() });
        row.renewals += 1;
        Ok(if self.write(&rows, before).await? { Entered::Yes } else { Entered::Beaten })
    }

    async fn write(&self, rows: &Rows, before: Option<Vec<u8>>) -> Result<bool, SessionError> {
        let after = serde_json::to_vec(rows)?;
        Ok(match before {
            Some(before) => self.call(self.store.replace_installation_value(NAME, before, after)).await?,
            None => self.call(self.store.init_installation_value(NAME, after.clone())).await? == after,
        })
    }

    async fn read(&self) -> Result<(Rows, Option<Vec<u8>>), SessionError> {
        let value = self.call(self.store.installation_value(NAME)).await?;
        let rows = value.as_deref().map(serde_json::from_slice).transpose()?.unwrap_or_default();
        Ok((rows, value))
    }

    /// Rows of others that have stood still for the lapse. Embedded stores have one owner: all others are dead at once.
    fn dead(&self, rows: &Rows) -> Vec<String> {
        let now = Instant::now();
        // Only map operations run under this lock.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|boot, _| rows.contains_key(boot));
        let mut dead = Vec::new();
        for (boot, row) in rows.iter().filter(|(boot, _)| **boot != self.own) {
            let (renewals, since) = seen.entry(boot.clone()).or_insert((row.renewals, now));
            if *renewals != row.renewals {
                (*renewals, *since) = (row.renewals, now);
            }
            if !self.store.is_shared() || now.duration_since(*since) >= self.lapse {
                dead.push(boot.clone());
            }
        }
        dead
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>> + Send,
    ) -> Result<T, SessionError> {
        Ok(tokio::time::timeout(self.call, call).await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::tests::shared::Cluster,
        store::sqlite::{SqliteOptions, SqliteStore},
    };

    const LAPSE: Duration = Duration::from_secs(10);

    fn register(store: &Arc<dyn SessionStore>, boot: u8, company: Company, primary: &str) -> Register {
        let key = KeyRing::generate_key();
        let ring = KeyRing::from_config(primary, [(primary, key.as_str())]).unwrap();
        Register::new(store.clone(), [boot; 16], company, &ring, LAPSE, Duration::from_secs(5))
    }

    fn store() -> (tempfile::TempDir, Arc<dyn SessionStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap();
        (folder, Arc::new(store))
    }

    async fn primaries(register: &Register) -> Vec<String> {
        register.live().await.unwrap().into_iter().map(|card| card.primary_key).collect()
    }

    #[tokio::test]
    async fn a_core_enters_renews_and_leaves() {
        let (_folder, store) = store();
        let one = register(&store, 1, Company::Together, "a");
        assert!(primaries(&one).await.is_empty());
        one.enter().await.unwrap();
        for _ in 0..2 {
            assert!(one.renew().await.unwrap());
            assert_eq!(primaries(&one).await, ["a"]);
        }
        one.leave().await.unwrap();
        assert!(primaries(&one).await.is_empty());
    }

    #[tokio::test]
    async fn in_an_embedded_store_the_rows_of_earlier_boots_are_dead_at_once() {
        let (_folder, store) = store();
        register(&store, 1, Company::Alone, "a").enter().await.unwrap();
        let next = register(&store, 2, Company::Alone, "b");
        next.enter().await.unwrap();
        assert_eq!(primaries(&next).await, ["b"]);
        let (rows, _) = next.read().await.unwrap();
        assert_eq!(rows.len(), 1, "the dead are taken out");
    }

    #[tokio::test]
    async fn a_row_of_a_core_that_said_less_is_read_as_one_with_a_common_bus() {
        let (_folder, store) = store();
        let old = br#"{"0101":{"renewals":3,"primary_key":"a","keys":["a"]}}"#;
        store.init_installation_value(NAME, old.to_vec()).await.unwrap();
        let (rows, _) = register(&store, 2, Company::Together, "b").read().await.unwrap();
        assert_eq!(rows["0101"].card.company, Company::Together);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_a_core_that_is_alone_no_other_comes_in_and_together_many_do() {
        let store = Cluster::new().stoppable();
        let one = register(&store, 1, Company::Alone, "a");
        one.enter().await.unwrap();
        for company in [Company::Alone, Company::Together] {
            let second = register(&store, 2, company, "a");
            tokio::select! {
                () = one.keep() => panic!("nobody takes it over"),
                entered = second.enter() => assert!(matches!(entered, Err(Refused::Occupied))),
            }
        }
        one.leave().await.unwrap();
        let began = Instant::now();
        let (two, three) = (register(&store, 2, Company::Together, "a"), register(&store, 3, Company::Together, "b"));
        two.enter().await.unwrap();
        three.enter().await.unwrap();
        assert!(began.elapsed() < LAPSE, "what was given back is free at once");
        assert_eq!(primaries(&two).await, ["a", "b"]);
        let fourth = register(&store, 4, Company::Alone, "a");
        tokio::select! {
            () = two.keep() => panic!("nobody takes it over"),
            () = three.keep() => panic!("nobody takes it over"),
            entered = fourth.enter() => assert!(matches!(entered, Err(Refused::Occupied))),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_want_to_be_alone_and_come_at_once_one_comes_in() {
        let store = Cluster::new().stoppable();
        let (one, two) = (register(&store, 1, Company::Alone, "a"), register(&store, 2, Company::Alone, "a"));
        let live = |register: Register| async move {
            let entered = register.enter().await;
            if entered.is_ok() {
                let _ = tokio::time::timeout(2 * LAPSE, register.keep()).await;
            }
            entered
        };
        let (one, two) = tokio::join!(live(one), live(two));
        assert_eq!(u32::from(one.is_ok()) + u32::from(two.is_ok()), 1, "{one:?} {two:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_is_gone_stands_in_the_way_for_the_lapse_and_notices_when_it_comes_back() {
        let store = Cluster::new().stoppable();
        let gone = register(&store, 1, Company::Alone, "a");
        gone.enter().await.unwrap();
        let began = Instant::now();
        let next = register(&store, 2, Company::Alone, "a");
        next.enter().await.unwrap();
        assert!(began.elapsed() >= LAPSE && began.elapsed() < LAPSE * 2);
        gone.keep().await;
        gone.leave().await.unwrap();
        assert!(next.renew().await.unwrap(), "what is another's is not given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_was_away_comes_back_beside_those_that_bear_it() {
        let store = Cluster::new().stoppable();
        let (away, other) = (register(&store, 1, Company::Together, "a"), register(&store, 2, Company::Together, "b"));
        away.enter().await.unwrap();
        other.enter().await.unwrap();
        let _ = tokio::time::timeout(2 * LAPSE, other.keep()).await;
        assert_eq!(primaries(&other).await, ["b"]);
        assert!(away.renew().await.unwrap());
        assert_eq!(primaries(&other).await, ["a", "b"]);
    }
}
