//! Starts of cores that had no clean end, kept in the store: what starts again and again is a crash loop, whichever core
//! it is.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{domain::time::Timestamp, session::error::SessionError, store::SessionStore};

/// Under this name the store keeps the times, in milliseconds since the Unix epoch, as JSON.
const NAME: &str = "starts";
/// As many as are remembered.
const KEPT: usize = 100;
/// Tries to write against others who write at the same time.
const TRIES: u32 = 16;

/// The starts, and this core's own.
#[derive(Debug, Clone)]
pub struct Starts {
    store: Arc<dyn SessionStore>,
    own: Timestamp,
    window: Duration,
    call: Duration,
}

impl Starts {
    /// This core started `own`; what is older than `window` does not count.
    #[must_use]
    pub fn new(store: Arc<dyn SessionStore>, own: Timestamp, window: Duration, call: Duration) -> Self {
        Self { store, own, window, call }
    }

    /// Enters this start; how many without an end there are within the window, this one included.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn enter(&self) -> Result<usize, SessionError> {
        let window = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX);
        let since = self.own.millis().saturating_sub(window);
        self.change(|starts| {
            starts.retain(|start| *start >= since);
            starts.push(self.own.millis());
            let surplus = starts.len().saturating_sub(KEPT);
            starts.drain(..surplus);
        })
        .await
    }

    /// This core ends as it should.
    ///
    /// # Errors
    /// Failures of the store.
    pub async fn leave(&self) -> Result<(), SessionError> {
        let own = self.own.millis();
        let out = |starts: &mut Vec<i64>| {
            if let Some(at) = starts.iter().position(|start| *start == own) {
                starts.remove(at);
            }
        };
        self.change(out).await.map(drop)
    }

    async fn change(&self, change: impl Fn(&mut Vec<i64>)) -> Result<usize, SessionError> {
        for _ in 0..TRIES {
            let before = self.call(self.store.installation_value(NAME)).await?;
            let mut starts: Vec<i64> = match &before {
                Some(bytes) => serde_json::from_slice(bytes)?,
                None => Vec::new(),
            };
            change(&mut starts);
            let after = serde_json::to_vec(&starts)?;
            let written = match before {
                Some(before) if before == after => true,
                Some(before) => self.call(self.store.replace_installation_value(NAME, before, after)).await?,
                None => self.call(self.store.init_installation_value(NAME, after.clone())).await? == after,
            };
            if written {
                return Ok(starts.len());
            }
        }
        Ok(0)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, crate::store::StoreError>>,
    ) -> Result<T, SessionError> {
        timeout(self.call, call).await.map_err(|_| SessionError::StoreTimeout)?.map_err(Into::into)
    }
}
