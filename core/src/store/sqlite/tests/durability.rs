//! The sync before the acknowledgement, seen in the system calls; and what is said when the disk fails. Uses strace.

use std::{fs, path::Path, process::Command};

use super::*;
use crate::store::sqlite::{Synchronous, tests::child};

const APPENDS: u64 = 12;

/// Appends one after the other, saying before and after each what it does. It is not waited for by anybody else, so
/// whatever is synced is synced for it.
async fn append_in_turn(store: &SqliteStore) {
    let id = child::sessions(store).await[0];
    let mut head = 0;
    for n in 0..APPENDS {
        child::say(&format!("begin {n}"));
        let verdict = store.append(child::append(id, 0, head)).await;
        child::say(&format!("acked {n} {}", child::word(&verdict)));
        head += u64::from(verdict.is_ok());
    }
}

/// Runs the test's child part under strace with these rules; its trace and its output.
fn trace(test: &str, folder: &Path, synchronous: Synchronous, rules: &[&str]) -> (String, String) {
    let found = Command::new("strace").arg("--version").output();
    assert!(found.is_ok_and(|output| output.status.success()), "this test needs strace(1), which is not installed");
    let log = folder.join("trace");
    let mut tracer = vec!["strace", "-f", "-qq", "-y", "-s", "64", "-o", log.to_str().unwrap()];
    tracer.extend(rules);
    let output = child::command(&tracer, test, &folder.join("data"), synchronous).output().unwrap();
    (fs::read_to_string(log).unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// A system call in the order in which its effect is certain: calls that wait are listed where they return.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Said(String),
    WroteLog,
    SyncedLog,
}

fn calls(trace: &str) -> Vec<Call> {
    let mut unfinished = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            // What is said counts from its beginning on, so that nothing which comes later can pass for earlier.
            calls.extend(said(begun));
            unfinished.insert(thread, begun.to_owned());
            continue;
        }
        let whole = match call.strip_prefix("<... ") {
            Some(rest) => {
                let begun = unfinished.remove(thread).unwrap_or_default();
                if said(&begun).is_some() {
                    continue;
                }
                begun + rest.split_once("resumed>").map_or("", |(_, end)| end)
            }
            None => call.to_owned(),
        };
        calls.extend(said(&whole));
        if whole.contains("chatbox.db-wal>") && !whole.contains("= -1") {
            let sync = whole.starts_with("fdatasync(") || whole.starts_with("fsync(");
            calls.push(if sync { Call::SyncedLog } else { Call::WroteLog });
        }
    }
    calls
}

fn said(call: &str) -> Option<Call> {
    let text = call.strip_prefix("write(1")?.split('"').nth(1)?;
    let text = text.strip_suffix("\\n").unwrap_or(text);
    (text.starts_with("begin ") || text.starts_with("acked ")).then(|| Call::Said(text.to_owned()))
}

/// Checks for every append: its pages were written to the log, then the log was synced, then it was acknowledged.
fn synced_before_acked(calls: &[Call]) -> Result<(), String> {
    for n in 0..APPENDS {
        let at = |text: String| {
            calls.iter().position(|call| *call == Call::Said(text.clone())).ok_or(format!("nothing said {text:?}"))
        };
        let between = &calls[at(format!("begin {n}"))?..at(format!("acked {n} Done"))?];
        let written = between.iter().rposition(|call| *call == Call::WroteLog).ok_or(format!("{n} was not written"))?;
        if !between[written..].contains(&Call::SyncedLog) {
            return Err(format!("append {n} was acknowledged before it was synced"));
        }
    }
    Ok(())
}

const OBSERVE: [&str; 2] = ["-e", "trace=fdatasync,fsync,write,pwrite64"];

#[tokio::test]
async fn the_log_is_synced_before_an_append_is_acknowledged() {
    if let Some(store) = child::store() {
        append_in_turn(&store).await;
        return store.close().await;
    }
    let test = concat!(module_path!(), "::the_log_is_synced_before_an_append_is_acknowledged");
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = trace(test, folder.path(), Synchronous::Full, &OBSERVE);
    assert_eq!(synced_before_acked(&calls(&log)), Ok(()), "{log}");

    // The same check finds a store that does not sync.
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = trace(test, folder.path(), Synchronous::Off, &OBSERVE);
    assert_eq!(
        synced_before_acked(&calls(&log)),
        Err("append 0 was acknowledged before it was synced".to_owned()),
        "{log}"
    );
}

/// What the child said of its appends.
fn verdicts(output: &str) -> Vec<&str> {
    output.lines().filter_map(|line| line.strip_prefix("acked ")?.split_once(' ')).map(|(_, verdict)| verdict).collect()
}

async fn heads(folder: &Path) -> u64 {
    let store = SqliteStore::open_in(&folder.join("data"), &SqliteOptions::default()).unwrap();
    let id = child::sessions(&store).await[0];
    let head = store.head(id).await.unwrap();
    let documents = store.read_after(id, 0, u32::MAX).await.unwrap();
    for (n, document) in (1..).zip(&documents) {
        assert_eq!((document.first_seq, &document.sealed), (n, &child::content(0, n)));
    }
    assert_eq!(documents.len() as u64, head);
    store.close().await;
    head
}
