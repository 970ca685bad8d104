//! Rotation of the key ring: every data key is wrapped anew under the primary key, online. What is sealed stays as it is.
//!
//! Each key is replaced by compare-and-set on its old form, so a rotation may be cut anywhere and begun again, and two at
//! once do no harm. It begins only when every live core can open what it writes, and is complete only when every live core
//! also writes under the new primary key and a whole pass found nothing left: otherwise a core that has not been restarted
//! yet could wrap a new session's key under the old one behind our back.

use std::{sync::Arc, time::Duration};

use chatbox_proto::{error_code::ErrorCode, ids::SessionId, status::Failure};
use futures_util::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{error::SessionError, register::Register};
use crate::{
    seal::{KeyRing, SelfTestError, rewrap_secret},
    store::SessionStore,
};

/// Keys per read.
const PAGE: u32 = 500;
/// Writes at once: enough for the store to group them, few enough to leave it to the sessions.
const WRITES: usize = 32;
/// Passes before a rotation gives up on others who keep writing under an old key.
const PASSES: u32 = 4;

/// How far a rotation has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RotationProgress {
    /// Data keys wrapped anew by this rotation.
    pub rewrapped: u64,
    /// Data keys that were there when it began, destroyed ones not counted.
    pub total: u64,
    /// Nothing is left under another key, and no live core makes more.
    pub complete: bool,
}

/// Makes rotations, one at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rotation {
    store: Arc<dyn SessionStore>,
    ring: Arc<KeyRing>,
    register: Register,
    call: Duration,
    turn: Arc<Semaphore>,
}

/// What one pass found.
#[derive(Debug, Default)]
struct Pass {
    rewrapped: u64,
    /// Under another key still: somebody else was quicker, or they do not open.
    left: u64,
    unreadable: u64,
}

impl Rotation {
    /// On a store with the ring of this core.
    #[must_use]
    pub fn new(store: Arc<dyn SessionStore>, ring: Arc<KeyRing>, register: Register, call: Duration) -> Self {
        Self { store, ring, register, call, turn: Arc::new(Semaphore::new(1)) }
    }

    /// The right to rotate; held for as long as it lasts.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` `ROTATION_RUNS`.
    pub fn claim(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.turn.clone().try_acquire_owned().map_err(|_| {
            Failure::new(ErrorCode::FailedPrecondition, "ROTATION_RUNS", "a rotation is under way in this core")
        })
    }

    /// Rotates, and tells how far it has come after each page. Cancel-safe: what is done stays done.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` `KEY_NOT_EVERYWHERE` before anything was changed, `DATA_LOSS` when some keys do not open (the
    /// others are done), failures of the store.
    pub async fn run(
        &self,
        progress: &mpsc::Sender<Result<RotationProgress, Failure>>,
    ) -> Result<RotationProgress, Failure> {
        self.check_cores().await?;
        let mut now = RotationProgress { total: self.count().await.map_err(|e| report(&e))?, ..Default::default() };
        let _ = progress.send(Ok(now)).await;
        self.installation().await?;
        let mut last = Pass::default();
        for _ in 0..PASSES {
            last = self.pass(&mut now, progress).await.map_err(|e| report(&e))?;
            if last.rewrapped == 0 {
                break;
            }
        }
        if last.unreadable > 0 {
            tracing::error!(keys = last.unreadable, "data keys cannot be wrapped anew: they do not open");
            return Err(Failure::new(
                ErrorCode::DataLoss,
                "UNREADABLE_KEYS",
                "some data keys do not open; the others are wrapped anew. `chatbox-core keys verify` names them",
            ));
        }
        let cores = self.register.live().await.map_err(|e| report(&e))?;
        let everywhere = cores.iter().all(|core| core.primary_key == self.ring.primary());
        now.complete = last.left == 0 && last.rewrapped == 0 && everywhere;
        Ok(now)
    }

    /// Every live core must be able to open what is about to be written.
    async fn check_cores(&self) -> Result<(), Failure> {
        let cores = self.register.live().await.map_err(|e| report(&e))?;
        let without = cores.iter().filter(|core| !core.keys.iter().any(|id| id == self.ring.primary())).count();
        if without == 0 {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::FailedPrecondition,
            "KEY_NOT_EVERYWHERE",
            format!("{without} live cores do not have the primary key in their ring; give it to them first"),
        ))
    }

    async fn count(&self) -> Result<u64, SessionError> {
        let (mut total, mut after) = (0, None);
        while let Some((page, last)) = self.page(after).await? {
            total += page.len() as u64;
            after = Some(last);
        }
        Ok(total)
    }

    /// The keys after a session that are not destroyed, and the last session that was looked at; `None` at the end.
    async fn page(
        &self,
        after: Option<SessionId>,
    ) -> Result<Option<(Vec<(SessionId, Vec<u8>)>, SessionId)>, SessionError> {
        let mut page = self.call(self.store.wrapped_keys(after, PAGE)).await?;
        let Some(last) = page.last().map(|(id, _)| *id) else { return Ok(None) };
        page.retain(|(_, wrapped)| !wrapped.is_empty());
        Ok(Some((page, last)))
    }

    async fn installation(&self) -> Result<(), Failure> {
        match rewrap_secret(&self.ring, &*self.store).await {
            Ok(_) => Ok(()),
            Err(SelfTestError::Store(error)) => Err(report(&error.into())),
            Err(SelfTestError::WrongKey { source, .. }) => Err(report(&source.into())),
        }
    }

    async fn pass(
        &self,
        now: &mut RotationProgress,
        progress: &mpsc::Sender<Result<RotationProgress, Failure>>,
    ) -> Result<Pass, SessionError> {
        let (mut pass, mut after) = (Pass::default(), None);
        while let Some((page, last)) = self.page(after).await? {
            after = Some(last);
            let mut writes = Vec::new();
            for (id, wrapped) in page {
                match self.ring.rewrap(id, &wrapped) {
                    Ok(None) => {}
                    Ok(Some(newer)) => writes.push(self.replace(id, wrapped, newer)),
                    Err(error) => {
                        tracing::warn!(%error, session.id = %id, "a data key does not open");
                        pass.unreadable += 1;
                    }
                }
            }
            let mut done = stream::iter(writes).buffer_unordered(WRITES);
            while let Some(replaced) = done.next().await {
                if replaced? {
                    pass.rewrapped += 1;
                    now.rewrapped += 1;
                } else {
                    pass.left += 1;
                }
            }
            // Nobody may be listening any more; the work goes on for as long as it is polled.
            let _ = progress.try_send(Ok(*now));
        }
        Ok(pass)
    }

    async fn replace(&self, id: SessionId, old: Vec<u8>, new: Vec<u8>) -> Result<bool, SessionError> {
        self.call(self.store.replace_wrapped_key(id, old, new)).await
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>> + Send,
    ) -> Result<T, SessionError> {
        Ok(tokio::time::timeout(self.call, call).await.map_err(|_| SessionError::StoreTimeout)??)
    }
}

fn report(error: &SessionError) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "a rotation of keys stopped");
    Failure::from(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{session::SessionState, time::Timestamp},
        seal::self_test,
        session::{log, register::Company},
        store::{
            NewSession, SlotRule,
            sqlite::{SqliteOptions, SqliteStore},
        },
    };

    struct Keys {
        a: String,
        b: String,
    }

    impl Keys {
        fn ring(&self, primary: &str) -> Arc<KeyRing> {
            Arc::new(KeyRing::from_config(primary, [("a", self.a.as_str()), ("b", self.b.as_str())]).unwrap())
        }

        fn alone(&self, id: &str, key: &str) -> Arc<KeyRing> {
            Arc::new(KeyRing::from_config(id, [(id, key)]).unwrap())
        }
    }

    fn keys() -> Keys {
        Keys { a: KeyRing::generate_key(), b: KeyRing::generate_key() }
    }

    fn open(folder: &tempfile::TempDir) -> Arc<dyn SessionStore> {
        Arc::new(SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap())
    }

    fn rotation(store: &Arc<dyn SessionStore>, ring: &Arc<KeyRing>) -> Rotation {
        let limit = Duration::from_secs(5);
        let register = Register::new(store.clone(), [7; 16], Company::Together, ring, Duration::from_secs(10), limit);
        Rotation::new(store.clone(), ring.clone(), register, limit)
    }

    async fn run(rotation: &Rotation) -> Result<RotationProgress, Failure> {
        let (progress, mut seen) = mpsc::channel(64);
        let result = rotation.run(&progress).await;
        drop(progress);
        let mut before = RotationProgress::default();
        while let Some(now) = seen.recv().await {
            let now = now.unwrap();
            assert!(now.rewrapped >= before.rewrapped && !now.complete);
            before = now;
        }
        result
    }

    async fn sessions(store: &Arc<dyn SessionStore>, ring: &KeyRing, count: usize) -> Vec<SessionId> {
        let mut ids = Vec::new();
        for n in 0..count {
            let (id, at) = (SessionId::generate(), Timestamp::from_millis(0));
            let (key, wrapped_key) = ring.new_data_key(id);
            let derived = log::derive(id, &key, &SessionState::new("m".into(), at)).unwrap();
            let (owner, slot) = (n.to_string(), SlotRule::Unlimited);
            let new = NewSession { id, owner, slot, wrapped_key, created_at: at, request: None, derived };
            store.create_session(new).await.unwrap();
            ids.push(id);
        }
        ids
    }

    #[tokio::test]
    async fn after_a_rotation_the_new_key_alone_opens_everything() {
        let (keys, folder) = (keys(), tempfile::tempdir().unwrap());
        let store = open(&folder);
        let old = keys.ring("a");
        let secret = self_test(&old, &*store).await.unwrap();
        let ids = sessions(&store, &old, 7).await;
        let done = run(&rotation(&store, &keys.ring("b"))).await.unwrap();
        assert_eq!(done, RotationProgress { rewrapped: 7, total: 7, complete: true });
        let alone = keys.alone("b", &keys.b);
        let same = self_test(&alone, &*store).await.unwrap();
        assert_eq!(same.hash("l", &[b"x"]), secret.hash("l", &[b"x"]));
        for id in ids {
            alone.unwrap(id, &store.session(id).await.unwrap().unwrap().wrapped_key).unwrap();
        }
        let again = run(&rotation(&store, &keys.ring("b"))).await.unwrap();
        assert_eq!(again, RotationProgress { rewrapped: 0, total: 7, complete: true });
    }

    #[tokio::test]
    async fn destroyed_keys_stay_destroyed_and_unreadable_ones_are_told() {
        let (keys, folder) = (keys(), tempfile::tempdir().unwrap());
        let store = open(&folder);
        let old = keys.ring("a");
        self_test(&old, &*store).await.unwrap();
        let ids = sessions(&store, &old, 3).await;
        assert!(store.erase_session(ids[0], 0).await.unwrap());
        let wrapped = store.session(ids[1]).await.unwrap().unwrap().wrapped_key;
        assert!(store.replace_wrapped_key(ids[1], wrapped, b"junk".to_vec()).await.unwrap());
        let failure = run(&rotation(&store, &keys.ring("b"))).await.unwrap_err();
        assert_eq!(failure.reason, "UNREADABLE_KEYS");
        assert!(store.session(ids[0]).await.unwrap().unwrap().wrapped_key.is_empty());
        let third = store.session(ids[2]).await.unwrap().unwrap().wrapped_key;
        keys.alone("b", &keys.b).unwrap(ids[2], &third).unwrap();
    }
}
