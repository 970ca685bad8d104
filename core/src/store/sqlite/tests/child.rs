//! A process of its own that appends: this test binary again, started on one test with its folder in the environment.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use chatbox_proto::ids::SessionId;
use futures_util::future::join_all;

use super::*;
use crate::{
    domain::time::Timestamp,
    store::{Append, Appended, Derived, NewSession, SessionQuery, SlotRule, StoreError, sqlite::Synchronous},
};

const FOLDER: &str = "CHATBOX_TEST_STORE_FOLDER";
const SYNCHRONOUS: &str = "CHATBOX_TEST_STORE_SYNCHRONOUS";
/// Sessions that the process appends to, side by side.
pub(super) const SESSIONS: usize = 8;

/// Starts this test binary on one test, under a tracer if there is one, with its output in a pipe.
pub(super) fn command(tracer: &[&str], test: &str, folder: &Path, synchronous: Synchronous) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut command = match tracer {
        [] => Command::new(&binary),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&binary);
            command
        }
    };
    // The harness names tests without the crate.
    let test = test.split_once("::").unwrap().1;
    command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder);
    command.env(SYNCHRONOUS, if synchronous == Synchronous::Full { "full" } else { "off" });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[expect(clippy::disallowed_methods, reason = "how the parent tells this process what to do")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The store to work on if this process was started by [`command`].
pub(super) fn store() -> Option<SqliteStore> {
    let folder = PathBuf::from(variable(FOLDER)?);
    let synchronous = if variable(SYNCHRONOUS)? == "full" { Synchronous::Full } else { Synchronous::Off };
    Some(SqliteStore::open_in(&folder, &SqliteOptions { synchronous, ..SqliteOptions::default() }).unwrap())
}

/// One line, at once, as one write.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The sessions, in the order of their ids; made if there are none.
pub(super) async fn sessions(store: &dyn SessionStore) -> Vec<SessionId> {
    let query = SessionQuery { owner: "alice".to_owned(), ended: None, after: None, limit: 100 };
    let mut ids: Vec<_> = store.list_sessions(query).await.unwrap().iter().map(|header| header.id).collect();
    while ids.len() < SESSIONS {
        let new = new();
        ids.push(new.id);
        store.create_session(new).await.unwrap();
    }
    ids.sort_unstable();
    ids
}

pub(super) fn new() -> NewSession {
    NewSession {
        id: SessionId::generate(),
        owner: "alice".to_owned(),
        slot: SlotRule::Unlimited,
        wrapped_key: vec![1],
        created_at: Timestamp::from_millis(1),
        request: None,
        derived: state(0),
    }
}

fn state(applied_seq: u64) -> Derived {
    let last_activity = Timestamp::from_millis(1);
    Derived { applied_seq, state: Vec::new(), last_activity, ended: false, unfinished: false }
}

/// What an entry contains, so that a reader knows it.
pub(super) fn content(session: usize, seq: u64) -> Vec<u8> {
    format!("{session}/{seq} ").into_bytes().repeat(20)
}

pub(super) fn append(id: SessionId, session: usize, head: u64) -> Append {
    Append {
        session_id: id,
        append_id: *SessionId::generate().as_bytes(),
        expected_head: head,
        count: 1,
        sealed: content(session, head + 1),
        messages: Vec::new(),
        ends_session: false,
        takes_slot: None,
        derived: state(head + 1),
        reply_started: None,
        reply_finished: None,
    }
}

/// Appends to all sessions side by side for ever, saying `SESSION SEQ` after each acknowledgement.
pub(super) async fn append_for_ever(store: &dyn SessionStore) {
    let ids = sessions(store).await;
    let writers = ids.iter().enumerate().map(|(session, id)| async move {
        let mut head = store.head(*id).await.unwrap();
        loop {
            assert_eq!(store.append(append(*id, session, head)).await.unwrap(), Appended::Done(head + 1));
            head += 1;
            say(&format!("acked {session} {head}"));
        }
    });
    join_all(writers).await;
}

/// What became of one append, in a word.
pub(super) fn word(verdict: &Result<Appended, StoreError>) -> String {
    match verdict {
        Ok(Appended::Done(_)) => "Done".to_owned(),
        Ok(Appended::Conflict) => "Conflict".to_owned(),
        Ok(Appended::NoSlot) => "NoSlot".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}
