//! Tells the service that nobody wants the rest of an answer. In the background, since whoever drops a stream does not wait;
//! bounded in number and time; what does not succeed costs the operator some tokens and nobody else anything.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Url};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Calls at once; beyond them none is made.
const MAX_CALLS: usize = 64;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TASK_ID: usize = 64;

#[derive(Serialize)]
struct Body<'a> {
    user: &'a str,
}

/// The calls of one application.
#[derive(Debug)]
pub(super) struct Stops {
    client: Client,
    /// Of the messages; a task is below it.
    url: Url,
    headers: HeaderMap,
    calls: TaskTracker,
    slots: Arc<Semaphore>,
}

impl Stops {
    pub(super) fn new(client: Client, url: Url, headers: HeaderMap) -> Self {
        Self { client, url, headers, calls: TaskTracker::new(), slots: Arc::new(Semaphore::new(MAX_CALLS)) }
    }

    pub(super) fn handle(self: &Arc<Self>, user: &str) -> StopHandle {
        StopHandle { stops: Arc::clone(self), user: user.to_owned(), task: None }
    }

    pub(super) async fn settled(&self) {
        self.calls.close();
        self.calls.wait().await;
    }

    fn stop(&self, task: &str, user: &str) {
        // Without a runtime the process is leaving.
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!("too many answers are being stopped at the provider, one is left running there");
            return;
        };
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{task}/stop", self.url.path()));
        let Ok(body) = serde_json::to_vec(&Body { user }) else { return };
        let request = self.client.post(url).headers(self.headers.clone()).body(body).timeout(CALL_TIMEOUT);
        let call = async move {
            let _slot = slot;
            let status = request.send().await.map(|response| response.status().as_u16());
            if !matches!(status, Ok(200)) {
                tracing::warn!(provider.status = status.ok(), "an answer could not be stopped at the provider");
            }
        };
        self.calls.spawn_on(call, &runtime);
    }
}

/// Stops one answer when it is dropped, unless the answer has ended.
#[derive(Debug)]
pub(super) struct StopHandle {
    stops: Arc<Stops>,
    user: String,
    task: Option<String>,
}

impl StopHandle {
    /// The service works on this task. Its name becomes a part of a path.
    pub(super) fn works_on(&mut self, task: &str) {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if self.task.is_none() && !task.is_empty() && task.len() <= MAX_TASK_ID && task.bytes().all(allowed) {
            self.task = Some(task.to_owned());
        }
    }

    /// There is nothing to stop any more.
    pub(super) fn ended(&mut self) {
        self.task = None;
    }
}

impl Drop for StopHandle {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            self.stops.stop(&task, &self.user);
        }
    }
}
