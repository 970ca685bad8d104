//! The sync before the acknowledgement, seen in the system calls; and what is said when the disk fails. Uses strace.

use std::{fs, path::Path, process::Command};

use super::*;
use crate::store::{
    StoreErrorKind,
    sqlite::{Synchronous, tests::child},
};

const APPENDS: u64 = 12;

/// Appends one after the other, saying before and after each what it does; resolves what is unknown as a caller would.
/// Nothing else goes on, so whatever is synced is synced for it. Not closed: as if it were killed at the end.
async fn append_in_turn(store: &SqliteStore) {
    let id = child::sessions(store).await[0];
    let mut head = 0;
    for n in 0..APPENDS {
        child::say(&format!("begin {n}"));
        let append = child::append(id, 0, head);
        let append_id = append.append_id;
        let verdict = store.append(append).await;
        child::say(&format!("acked {n} {}", child::word(&verdict)));
        head += u64::from(verdict.is_ok());
        if verdict.is_err_and(|error| error.kind() == StoreErrorKind::OutcomeUnknown) {
            match store.find_append(id, append_id).await {
                Ok(found) => child::say(&format!("resolved {n} {found:?}")),
                Err(error) => child::say(&format!("resolved {n} {:?}", error.kind())),
            }
        }
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
        return append_in_turn(&store).await;
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

/// Runs the test's child part on a disk that fails as `rule` says, for the write-ahead log alone and counted in the writer
/// thread. Returns what became of the appends, what unknown ones were resolved to, and the head found afterwards.
async fn with_failing_disk(test: &str, rule: &str) -> (Vec<String>, Vec<String>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let (log, inject) = (folder.join("data/chatbox.db-wal"), format!("inject={rule}"));
    let rules = ["-P", log.to_str().unwrap(), "-e", "trace=fdatasync,fsync,pwrite64", "-e", &inject];
    let (trace, output) = trace(test, &folder, Synchronous::Full, &rules);
    assert!(trace.contains("(INJECTED)"), "the disk did not fail:\n{trace}");
    let said = |what: &str| -> Vec<String> {
        let words = output.lines().filter_map(|line| line.strip_prefix(what)?.split_once(' '));
        words.map(|(_, word)| word.to_owned()).collect()
    };

    let store = SqliteStore::open_in(&folder.join("data"), &SqliteOptions::default()).unwrap();
    let id = child::sessions(&store).await[0];
    let documents = store.read_after(id, 0, u32::MAX).await.unwrap();
    for (n, document) in (1..).zip(&documents) {
        assert_eq!((document.first_seq, &document.sealed), (n, &child::content(0, n)));
    }
    let head = store.head(id).await.unwrap();
    assert_eq!(documents.len() as u64, head);
    store.close().await;
    (said("acked "), said("resolved "), head)
}

/// So many at the beginning, so many of one kind after them, the rest as at the beginning.
fn split(verdicts: &[String], odd: &str) -> (usize, usize, usize) {
    let before = verdicts.iter().take_while(|verdict| *verdict == "Done").count();
    let between = verdicts[before..].iter().take_while(|verdict| *verdict == odd).count();
    let after = verdicts[before + between..].iter().take_while(|verdict| *verdict == "Done").count();
    assert_eq!(before + between + after, verdicts.len(), "{verdicts:?}");
    (before, between, after)
}

#[tokio::test]
async fn after_a_sync_that_failed_once_the_append_is_certainly_not_there() {
    if let Some(store) = child::store() {
        return append_in_turn(&store).await;
    }
    let test = concat!(module_path!(), "::after_a_sync_that_failed_once_the_append_is_certainly_not_there");
    let (verdicts, resolved, head) = with_failing_disk(test, "fdatasync,fsync:error=EIO:when=13").await;
    let (before, failed, after) = split(&verdicts, "Unavailable");
    assert!(before > 0 && failed == 1 && after > 0, "{verdicts:?}");
    assert_eq!(resolved, Vec::<String>::new());
    assert_eq!(head, (before + after) as u64);
}

#[tokio::test]
async fn an_append_that_is_certainly_not_there_is_not_found_after_a_crash_either() {
    if let Some(store) = child::store() {
        let id = child::sessions(&store).await[0];
        for n in 0.. {
            let verdict = store.append(child::append(id, 0, n)).await;
            child::say(&format!("acked {n} {}", child::word(&verdict)));
            if verdict.is_err() {
                // Before anything else is written over what the failed commit left.
                std::process::abort();
            }
        }
    }
    let test = concat!(module_path!(), "::an_append_that_is_certainly_not_there_is_not_found_after_a_crash_either");
    let (verdicts, _, head) = with_failing_disk(test, "fdatasync,fsync:error=EIO:when=13").await;
    let (before, failed, after) = split(&verdicts, "Unavailable");
    assert!(before > 0 && failed == 1 && after == 0, "{verdicts:?}");
    assert_eq!(head, before as u64);
}

#[tokio::test]
async fn while_nothing_can_be_synced_the_outcome_is_unknown_and_is_not_resolved_either() {
    if let Some(store) = child::store() {
        return append_in_turn(&store).await;
    }
    let test =
        concat!(module_path!(), "::while_nothing_can_be_synced_the_outcome_is_unknown_and_is_not_resolved_either");
    let (verdicts, resolved, head) = with_failing_disk(test, "fdatasync,fsync:error=EIO:when=13+").await;
    let (before, failed, after) = split(&verdicts, "OutcomeUnknown");
    assert!(before > 0 && failed > 1 && after == 0, "{verdicts:?}");
    assert_eq!(resolved, vec!["OutcomeUnknown"; failed], "no answer is final yet");
    // The last of them may be found by a restart: it was promised to neither side.
    assert!((before as u64..=before as u64 + 1).contains(&head), "{head} of {verdicts:?}");
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_as_soon_as_the_disk_works_again() {
    if let Some(store) = child::store() {
        return append_in_turn(&store).await;
    }
    let test = concat!(module_path!(), "::an_unknown_outcome_is_resolved_as_soon_as_the_disk_works_again");
    let (verdicts, resolved, head) = with_failing_disk(test, "fdatasync,fsync:error=EIO:when=13..14").await;
    let (before, failed, after) = split(&verdicts, "OutcomeUnknown");
    assert!(before > 0 && failed == 1 && after > 0, "{verdicts:?}");
    assert_eq!(resolved, ["None"]);
    assert_eq!(head, (before + after) as u64, "and it stayed so");
}

#[tokio::test]
async fn on_a_full_disk_appends_fail_as_full_and_what_was_acknowledged_is_there() {
    if let Some(store) = child::store() {
        return append_in_turn(&store).await;
    }
    let test = concat!(module_path!(), "::on_a_full_disk_appends_fail_as_full_and_what_was_acknowledged_is_there");
    let (verdicts, _, head) = with_failing_disk(test, "pwrite64:error=ENOSPC:when=80+").await;
    let (before, failed, after) = split(&verdicts, "Full");
    assert!(before > 0 && failed > 0 && after == 0, "{verdicts:?}");
    assert_eq!(head, before as u64);
}
