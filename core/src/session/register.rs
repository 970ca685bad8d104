//! Which cores are alive, as they say of themselves: one small value of the installation that every core renews by
//! compare-and-set. Life is judged by whether a row moves, on one's own monotonic clock; no wall clock is compared.

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

/// Between two renewals of a core's own row.
const RENEW: Duration = Duration::from_secs(2);

/// Tries to write against others who write at the same time; then the next renewal is soon enough.
const TRIES: u32 = 16;

/// What a core says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreCard {
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
    pub fn new(store: Arc<dyn SessionStore>, boot_id: BootId, ring: &KeyRing, lapse: Duration, call: Duration) -> Self {
        let card =
            CoreCard { primary_key: ring.primary().to_owned(), keys: ring.key_ids().map(str::to_owned).collect() };
        let own = boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { store, own, card, lapse, call, seen: Arc::default() }
    }

    /// Enters this core, or renews its row, and takes out those of the dead.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn renew(&self) -> Result<(), SessionError> {
        self.change(|rows| {
            let row = rows.entry(self.own.clone()).or_insert(Row { renewals: 0, card: self.card.clone() });
            row.renewals += 1;
        })
        .await
    }

    /// Takes this core out.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn leave(&self) -> Result<(), SessionError> {
        self.change(|rows| {
            rows.remove(&self.own);
        })
        .await
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

    /// Renews until dropped.
    pub async fn keep(&self) {
        loop {
            if let Err(error) = self.renew().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the register of cores could not be renewed");
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    async fn change(&self, change: impl Fn(&mut Rows)) -> Result<(), SessionError> {
        for _ in 0..TRIES {
            let (mut rows, before) = self.read().await?;
            for boot in self.dead(&rows) {
                rows.remove(&boot);
            }
            change(&mut rows);
            let after = serde_json::to_vec(&rows)?;
            let written = match before {
                Some(before) => self.call(self.store.replace_installation_value(NAME, before, after)).await?,
                None => self.call(self.store.init_installation_value(NAME, after.clone())).await? == after,
            };
            if written {
                return Ok(());
            }
        }
        Ok(())
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
    use crate::store::sqlite::{SqliteOptions, SqliteStore};

    fn register(store: &Arc<dyn SessionStore>, boot: u8, primary: &str) -> Register {
        let key = KeyRing::generate_key();
        let ring = KeyRing::from_config(primary, [(primary, key.as_str())]).unwrap();
        Register::new(store.clone(), [boot; 16], &ring, Duration::from_secs(10), Duration::from_secs(5))
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
        let one = register(&store, 1, "a");
        assert!(primaries(&one).await.is_empty());
        for _ in 0..2 {
            one.renew().await.unwrap();
            assert_eq!(primaries(&one).await, ["a"]);
        }
        one.leave().await.unwrap();
        assert!(primaries(&one).await.is_empty());
    }

    #[tokio::test]
    async fn in_an_embedded_store_the_rows_of_earlier_boots_are_dead_at_once() {
        let (_folder, store) = store();
        register(&store, 1, "a").renew().await.unwrap();
        let next = register(&store, 2, "b");
        next.renew().await.unwrap();
        assert_eq!(primaries(&next).await, ["b"]);
        let (rows, _) = next.read().await.unwrap();
        assert_eq!(rows.len(), 1, "the dead are taken out");
    }
}
