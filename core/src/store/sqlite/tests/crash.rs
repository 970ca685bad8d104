//! `kill -9` at any moment loses nothing that was acknowledged.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
};

use super::*;
use crate::store::{
    StoreErrorKind,
    sqlite::{
        Synchronous,
        tests::child::{self, SESSIONS},
    },
};

const ROUNDS: usize = 20;

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed_at_random_moments() {
    if let Some(store) = child::store() {
        return child::append_for_ever(&store).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut acked = [0; SESSIONS];
    for round in 0..ROUNDS {
        let lines = rand::random_range(1..400);
        run_and_kill(folder.path(), lines, &mut acked);
        // At once: the lock went with its holder.
        let store = SqliteStore::open_in(folder.path(), &SqliteOptions::default()).unwrap();
        check(&store, &mut acked, &format!("round {round}, killed after {lines} lines")).await;
        store.close().await;
    }
    assert!(acked.iter().all(|head| *head > 0), "{acked:?}");
}

/// Notes what was acknowledged until so many lines were read, kills the process, and notes what was still in the pipe.
fn run_and_kill(folder: &Path, lines: usize, acked: &mut [u64; SESSIONS]) {
    let test = concat!(module_path!(), "::nothing_acknowledged_is_lost_when_the_process_is_killed_at_random_moments");
    let mut process = child::command(&[], test, folder, Synchronous::Full).spawn().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut noted = 0;
    while noted < lines {
        let line = output.next().expect("it appends for ever");
        noted += usize::from(note(&line, acked));
        if noted == 1 {
            let error = SqliteStore::open_in(folder, &SqliteOptions::default()).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Refused, "it has the file");
        }
    }
    // SIGKILL.
    process.kill().unwrap();
    process.wait().unwrap();
    for line in output {
        note(&line, acked);
    }
}

fn note(line: &str, acked: &mut [u64; SESSIONS]) -> bool {
    let words: Vec<_> = line.split(' ').collect();
    let ["acked", session, seq] = words[..] else { return false };
    let (session, seq): (usize, u64) = (session.parse().unwrap(), seq.parse().unwrap());
    assert_eq!(seq, acked[session] + 1, "it goes on where the last one was killed");
    acked[session] = seq;
    true
}

async fn check(store: &SqliteStore, acked: &mut [u64; SESSIONS], context: &str) {
    for (session, id) in child::sessions(store).await.into_iter().enumerate() {
        let head = store.head(id).await.unwrap();
        // The one append in flight may have been written and not been acknowledged.
        assert!(head == acked[session] || head == acked[session] + 1, "{context}: {head}, acked {}", acked[session]);
        let documents = store.read_after(id, 0, u32::MAX).await.unwrap();
        for (n, document) in (1..).zip(&documents) {
            assert_eq!((document.first_seq, document.count), (n, 1), "{context}");
            assert_eq!(document.sealed, child::content(session, n), "{context}");
        }
        assert_eq!(documents.len() as u64, head, "{context}");
        acked[session] = head;
    }
}
