//! The file: who may open it, who may read it, which versions of it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::*;
use crate::store::StoreErrorKind;

fn refused(path: &Path) -> String {
    let error = SqliteStore::open(path, &SqliteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error:?}");
    std::error::Error::source(&error).unwrap().to_string()
}

#[tokio::test]
async fn a_second_opener_is_refused_under_every_name_of_the_file_until_the_first_has_closed() {
    let fixture = SqliteFixture::new();
    let path = fixture.path();
    let link = fixture.folder.path().join("other.db");
    symlink(&path, &link).unwrap();
    let folder = tempfile::tempdir().unwrap();
    symlink(fixture.folder.path(), folder.path().join("linked")).unwrap();
    for name in [&path, &link, &folder.path().join("linked/chatbox.db")] {
        assert!(refused(name).contains("has"), "{}", refused(name));
    }
    fixture.store.ping().await.unwrap();
    fixture.store.close().await;
    for name in [&path, &link] {
        let next = SqliteStore::open(name, &SqliteOptions::default()).unwrap();
        next.ping().await.unwrap();
        next.close().await;
    }
}

#[tokio::test]
async fn a_store_that_is_dropped_lets_go_of_its_file() {
    let SqliteFixture { folder, store } = SqliteFixture::new();
    drop(store);
    // Its threads end by themselves, soon.
    let deadline = Instant::now() + Duration::from_secs(10);
    let next = loop {
        match SqliteStore::open_in(folder.path(), &SqliteOptions::default()) {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    next.ping().await.unwrap();
    next.close().await;
}

#[tokio::test]
async fn folder_and_files_are_for_their_user_only() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("new/data");
    let store = SqliteStore::open_in(&folder, &SqliteOptions::default()).unwrap();
    store.init_installation_value("a", vec![1]).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&outer.path().join("new")), 0o700);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["chatbox.db", "chatbox.db-shm", "chatbox.db-wal", "chatbox.db.lock"]);
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    store.close().await;
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chatbox.db");
    drop(SqliteStore::open(&path, &SqliteOptions::default()).unwrap());
    wait_for_lock(&path);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let reason = refused(&path);
    assert!(reason.contains("version 99") && reason.contains("newer"), "{reason}");
    let db = Connection::open(&path).unwrap();
    assert_eq!(db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap(), 99);
}

#[tokio::test]
async fn a_file_of_the_first_version_is_brought_up_and_keeps_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chatbox.db");
    let id = chatbox_proto::ids::SessionId::generate();
    let old = Connection::open(&path).unwrap();
    old.execute_batch(crate::store::sqlite::schema::STEPS[0]).unwrap();
    old.execute(
        "INSERT INTO sessions (id, owner, created_at, applied_seq, last_activity, ended, unfinished, wrapped_key, state) \
         VALUES (?1, 'alice', 1, 0, 1, 0, 0, x'01', x'02')",
        [id.as_bytes()],
    )
    .unwrap();
    old.pragma_update(None, "application_id", crate::store::sqlite::schema::APPLICATION_ID).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    for _ in 0..2 {
        let store = SqliteStore::open(&path, &SqliteOptions::default()).unwrap();
        assert_eq!(store.active_session("alice").await.unwrap().map(|header| header.id), Some(id));
        store.close().await;
    }
}

/// Until the threads of a dropped store are gone.
fn wait_for_lock(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = crate::store::sqlite::lock::claim(path) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn the_database_of_another_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = fs::read(&path).unwrap();
    assert!(refused(&path).contains("another program"));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let before = b"these are not pages of a database ".repeat(200);
    fs::write(&path, &before).unwrap();
    refused(&path);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = SqliteStore::open_in(&file.join("data"), &SqliteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}
