//! A server that follows a script for each request, and remembers what it was asked. It is compatible with OpenAI, Anthropic
//! and Dify at once: the path says who is asked.
//!
//! It speaks HTTP/1.1 by hand, since half of what it is for (resets, truncation, silence) is what an HTTP library
//! prevents. A model without a script answers with what it was asked.

mod connection;
mod dialect;
mod script;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

pub use dialect::{Dialect, Part};
pub use script::{Script, Step};

use super::wait::{LIMIT, within};

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Path of the request.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Value,
}

impl Recorded {
    /// Which model is asked. An application of Dify has one, named by the first part of its path.
    #[must_use]
    pub fn model(&self) -> &str {
        let of_path = || self.path.split('/').nth(1).unwrap_or_default();
        self.body["model"].as_str().unwrap_or_else(of_path)
    }

    /// Role and text of each message of the prompt. Content in parts is joined; the query of Dify is a user's.
    #[must_use]
    pub fn messages(&self) -> Vec<(String, String)> {
        if let Some(query) = self.body["query"].as_str() {
            return vec![("user".to_owned(), query.to_owned())];
        }
        let text = |content: &Value| match content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
        };
        let messages = self.body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        messages.iter().map(|m| (m["role"].as_str().unwrap_or_default().to_owned(), text(&m["content"]))).collect()
    }
}

/// Shared by the accept loop, its connections and the test.
#[derive(Debug, Default)]
struct State {
    /// Guards plain data and is never held over an await.
    shared: Mutex<Shared>,
    requests: watch::Sender<usize>,
    stops: watch::Sender<usize>,
    left: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Shared {
    scripts: HashMap<String, VecDeque<Script>>,
    always: HashMap<String, Script>,
    derived: HashMap<String, fn(&Recorded) -> Script>,
    requests: Vec<Recorded>,
    stops: Vec<Recorded>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics while it holds this lock")
    }

    /// Takes note of a request and says how to answer it, and which one it is.
    fn take(&self, request: Recorded) -> (Script, usize) {
        let model = request.model().to_owned();
        let mut shared = self.lock();
        let next = shared.scripts.get_mut(&model).and_then(VecDeque::pop_front);
        let derived = || shared.derived.get(&model).map(|derive| derive(&request));
        let script = next.or_else(|| shared.always.get(&model).cloned()).or_else(derived).unwrap_or_else(|| {
            let last = request.messages().pop().map(|(_, text)| text).unwrap_or_default();
            Script::reply([format!("You said: {last}")])
        });
        shared.requests.push(request);
        let count = shared.requests.len();
        drop(shared);
        self.requests.send_replace(count);
        (script, count)
    }

    /// Takes note that an answer is not wanted any more.
    fn stopped(&self, request: Recorded) {
        let mut shared = self.lock();
        shared.stops.push(request);
        let count = shared.stops.len();
        drop(shared);
        self.stops.send_replace(count);
    }
}

/// The server; ends with all its connections when dropped.
#[derive(Debug)]
pub struct Provider {
    address: SocketAddr,
    state: Arc<State>,
    _server: JoinSet<()>,
}

impl Provider {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the provider cannot listen")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let mut server = JoinSet::new();
        let shared = Arc::clone(&state);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(connection::serve(socket, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, state, _server: server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client takes as the base URL of the API.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The base URL of a Dify server whose application is `model`.
    #[must_use]
    pub fn dify_url(&self, model: &str) -> String {
        format!("http://{}/{model}/v1", self.address)
    }

    /// Answers the next request for `model` that has no script yet.
    pub fn script(&self, model: &str, script: Script) {
        self.state.lock().scripts.entry(model.to_owned()).or_default().push_back(script);
    }

    /// Answers every request for `model` that has no script of its own.
    pub fn always(&self, model: &str, script: Script) {
        self.state.lock().always.insert(model.to_owned(), script);
    }

    /// Answers every request for `model` that has no script with what follows from the request.
    pub fn derive(&self, model: &str, derive: fn(&Recorded) -> Script) {
        self.state.lock().derived.insert(model.to_owned(), derive);
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.lock().requests.clone()
    }

    /// Waits until there were `count` requests, and returns them.
    ///
    /// # Errors
    /// When there are fewer within the limit.
    pub async fn wait_requests(&self, count: usize) -> Result<Vec<Recorded>> {
        let mut seen = self.state.requests.subscribe();
        within(&format!("{count} requests at the provider"), LIMIT, seen.wait_for(|seen| *seen >= count)).await??;
        Ok(self.requests())
    }

    /// Waits until `count` answers were stopped by a call, and returns the calls.
    ///
    /// # Errors
    /// When there are fewer within the limit.
    pub async fn wait_stops(&self, count: usize) -> Result<Vec<Recorded>> {
        let mut seen = self.state.stops.subscribe();
        within(&format!("{count} stops at the provider"), LIMIT, seen.wait_for(|seen| *seen >= count)).await??;
        Ok(self.state.lock().stops.clone())
    }

    /// Waits until `count` clients have left before their script was through.
    ///
    /// # Errors
    /// When fewer have left within the limit.
    pub async fn wait_left(&self, count: usize) -> Result<()> {
        let mut left = self.state.left.subscribe();
        within(&format!("{count} clients leave the provider"), LIMIT, left.wait_for(|left| *left >= count)).await??;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
