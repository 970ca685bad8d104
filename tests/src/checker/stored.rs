//! What is stored: as a healthy core tells it, and as the database holds it.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_core::{
    domain::{
        entry::{self, Fact},
        session::SessionState,
    },
    seal::{Field, KeyRing},
    session::event,
    store::{
        Header, SessionQuery, SessionStore,
        mongo::{MongoOptions, MongoStore},
        sqlite::{SqliteOptions, SqliteStore},
    },
};
use chatbox_proto::{
    token::Secret,
    v1::{
        ChatResponse, Entry, ListSessionsRequest, Message,
        chat_request::Open,
        chat_response::{Event, ResumeVerdict},
    },
};
use prost::Message as _;
use tempfile::TempDir;

use super::topology::{Doors, pause};
use crate::harness::{
    client::Client,
    history,
    mongod::ReplicaSet,
    wait::{LIMIT, wait_for},
};

/// Entries per read.
const PAGE: u32 = 100;

/// One session as it is stored, told in several ways that must agree.
#[derive(Debug, Clone, Default)]
pub struct StoredSession {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// First number and count of each document of the log, in the order of the database.
    pub documents: Vec<(u64, u32)>,
    /// The entries in the documents, opened with the session's key.
    pub entries: Vec<Entry>,
    /// What the folded state in the header says that the entries do not; empty when it agrees.
    pub state_differs: String,
    /// A reply or a message is still to be looked after, as the header or a reply row has it.
    pub unfinished: bool,
    /// The messages as a core listed them; `None`: it was not asked.
    pub history: Option<Vec<Message>>,
    /// The entries as a core replayed them; `None`: it was not asked, or they were too many.
    pub replay: Option<Vec<Entry>>,
}

/// What one core says of one session.
#[derive(Debug, Clone)]
pub struct Told {
    session_id: String,
    history: Vec<Message>,
    replay: Option<Vec<Entry>>,
}

/// Asks a core for everything that it has of a session: page by page, and as a replay.
///
/// # Errors
/// When it does not answer.
pub async fn ask(doors: &Doors, core: usize, user: &str, session_id: &str, page_size: i32) -> Result<Told> {
    let calls = || async {
        let mut calls = doors.core(core, user).ok()?;
        history::by_grpc(&mut calls, session_id, page_size).await.ok()
    };
    let history = wait_for("the history", LIMIT, calls).await?;
    let mut client = Client::over_grpc(doors.core(core, user)?);
    let open = Open { session_id: session_id.to_owned(), after_seq: Some(0), ..Open::default() };
    let opened = client.open(open).await?;
    client.caught_up().await?;
    let replayed = opened.verdict() == ResumeVerdict::Replayed;
    let entries = |event: &Event| match event {
        Event::Entry(entry) if entry.seq <= opened.head => Some(entry.clone()),
        _ => None,
    };
    let replay = replayed.then(|| client.seen.iter().filter_map(entries).collect());
    Ok(Told { session_id: session_id.to_owned(), history, replay })
}

/// Waits until every reply of these users has ended and every message is named by one, as a core lists them; returns what is
/// missing when that takes too long.
pub async fn quiet(doors: &Doors, users: impl Iterator<Item = String>, limit: Duration) -> Vec<String> {
    let mut missing = Vec::new();
    for user in users {
        let mut last = String::new();
        let look = async || {
            last = open_ends(doors, &user).await.unwrap_or_else(|error| format!("{error:#}"));
            last.is_empty()
        };
        if !looked_until(limit, look).await {
            missing.push(format!("{user}: {last}"));
        }
    }
    missing
}

async fn looked_until(limit: Duration, mut look: impl AsyncFnMut() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if look().await {
            return true;
        }
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        pause(Duration::from_millis(20)).await;
    }
}

/// What has no end or no answer yet in a user's sessions; empty when there is nothing.
async fn open_ends(doors: &Doors, user: &str) -> Result<String> {
    let mut calls = doors.core(0, user)?;
    let request = ListSessionsRequest { page_size: 1_000, ..ListSessionsRequest::default() };
    let sessions = calls.list_sessions(request).await?.into_inner().sessions;
    for session in sessions {
        let history = history::by_grpc(&mut calls, &session.session_id, 0).await?;
        let replies = || history.iter().filter_map(|message| message.reply.as_ref());
        if let Some(reply) = replies().find(|reply| reply.finish_reason == 0) {
            return Ok(format!("a reply of {} runs: {reply:?}", session.session_id));
        }
        let answered: BTreeSet<&String> = replies().flat_map(|reply| &reply.answers).collect();
        let waits = |message: &&Message| message.reply.is_none() && !answered.contains(&message.message_id);
        if let Some(message) = history.iter().find(waits) {
            return Ok(format!("{} in {} is not answered", message.client_message_id, session.session_id));
        }
    }
    Ok(String::new())
}

/// Where the data of a product is that has ended.
#[derive(Debug)]
pub struct Vault {
    store: Kind,
    key: String,
    /// Lives as long as somebody reads.
    _folder: TempDir,
}

#[derive(Debug)]
enum Kind {
    Sqlite(PathBuf),
    /// With the servers, which live as long.
    Mongo(String, ReplicaSet),
}

impl Vault {
    /// A database file in a folder, sealed with this key.
    #[must_use]
    pub fn sqlite(folder: TempDir, file: PathBuf, key: String) -> Self {
        Self { store: Kind::Sqlite(file), key, _folder: folder }
    }

    /// A database of these servers.
    #[must_use]
    pub fn mongo(folder: TempDir, set: ReplicaSet, uri: String, key: String) -> Self {
        Self { store: Kind::Mongo(uri, set), key, _folder: folder }
    }

    async fn open(&self) -> Result<Arc<dyn SessionStore>> {
        match &self.store {
            Kind::Sqlite(file) => Ok(Arc::new(SqliteStore::open(file, &SqliteOptions::default())?)),
            Kind::Mongo(uri, set) => {
                set.settled().await?;
                let uri = Secret::new(uri.clone());
                let options = MongoOptions { uri, call_timeout: LIMIT, pool_size: 8 };
                Ok(Arc::new(MongoStore::open(&options).await?))
            }
        }
    }

    /// Reads all sessions of these users from the database itself, and joins what cores said of them.
    ///
    /// # Errors
    /// When something cannot be read, or does not open with its key.
    pub async fn sessions(&self, users: impl Iterator<Item = String>, told: Vec<Told>) -> Result<Vec<StoredSession>> {
        let store = self.open().await?;
        let ring = KeyRing::from_config("k1", [("k1", self.key.as_str())])?;
        let mut sessions = Vec::new();
        for owner in users {
            let query = SessionQuery { owner, ended: None, after: None, limit: 1_000 };
            for header in store.list_sessions(query).await? {
                sessions.push(read(&*store, &ring, &header).await?);
            }
        }
        store.close().await;
        for told in told {
            let Some(session) = sessions.iter_mut().find(|session| session.id == told.session_id) else {
                bail!("a core told of session {}, which is not in the database", told.session_id)
            };
            session.history = Some(told.history);
            session.replay = told.replay;
        }
        Ok(sessions)
    }
}

async fn read(store: &dyn SessionStore, ring: &KeyRing, header: &Header) -> Result<StoredSession> {
    let id = header.id;
    let key = ring.unwrap(id, &header.wrapped_key)?;
    let (mut documents, mut facts) = (Vec::new(), Vec::new());
    let mut after = 0;
    loop {
        let page = store.read_after(id, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        let end = last.first_seq + u64::from(last.count) - 1;
        ensure!(end > after, "the log does not go on after {after}");
        for document in &page {
            let place = Field::Log { session: id, first_seq: document.first_seq, count: document.count };
            let opened: Vec<Fact> = serde_json::from_slice(&key.open(place, &document.sealed)?)?;
            ensure!(opened.len() == document.count as usize, "a document holds another number of entries");
            documents.push((document.first_seq, document.count));
            facts.extend((document.first_seq..).zip(opened));
        }
        after = end;
    }
    let entries: Vec<entry::Entry> = facts.into_iter().map(|(seq, fact)| entry::Entry { seq, fact }).collect();
    let place = Field::State { session: id, applied_seq: header.derived.applied_seq };
    let state: SessionState = serde_json::from_slice(&key.open(place, &header.derived.state)?)?;
    Ok(StoredSession {
        id: id.to_string(),
        owner: header.owner.clone(),
        documents,
        state_differs: state_differs(header, &state, &entries),
        unfinished: is_unfinished(store, header, &state).await?,
        entries: entries.iter().map(as_sent).collect::<Result<_>>()?,
        history: None,
        replay: None,
    })
}

/// The folded state, up to where it says that it reaches, against a fold of the entries.
fn state_differs(header: &Header, state: &SessionState, entries: &[entry::Entry]) -> String {
    let mut folded = SessionState::new(state.model.clone(), header.created_at);
    for entry in entries.iter().take_while(|entry| entry.seq <= header.derived.applied_seq) {
        if let Err(error) = folded.apply(entry) {
            return error.to_string();
        }
    }
    let ended = folded.ended.is_some() == header.derived.ended;
    if folded == *state && ended { String::new() } else { format!("stored {state:?}, folded {folded:?}") }
}

async fn is_unfinished(store: &dyn SessionStore, header: &Header, state: &SessionState) -> Result<bool> {
    let at_head = store.head(header.id).await? == header.derived.applied_seq;
    // A mark that goes with an older state is as good as that state: whoever opens the session repairs both.
    let marked = at_head && (header.derived.unfinished || state.is_unfinished());
    Ok(marked || store.reply_row(header.id).await?.is_some())
}

/// An entry as subscribers get it.
fn as_sent(entry: &entry::Entry) -> Result<Entry> {
    match ChatResponse::decode(event::entry(entry))?.event.context("an event")? {
        Event::Entry(entry) => Ok(entry),
        other => bail!("not an entry: {other:?}"),
    }
}
