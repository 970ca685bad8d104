//! The suite every store passes, and what only this one has to show: grouping, syncing, crashing, its file.

mod child;
mod crash;
mod durability;
mod file;
mod grouping;
mod plans;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::{SqliteOptions, SqliteStore};
use crate::store::{
    SessionStore, Stores,
    conformance::{Fixture, store_conformance},
};

/// A store in a folder of its own.
struct SqliteFixture {
    folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
}

impl SqliteFixture {
    fn new() -> Self {
        Self::with(&SqliteOptions::default())
    }

    fn with(options: &SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open_in(folder.path(), options).unwrap());
        Self { folder, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("chatbox.db")
    }
}

#[async_trait]
impl Fixture for SqliteFixture {
    fn stores(&self) -> Stores {
        Arc::clone(&self.store).into()
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Arc::new(SqliteStore::open(&self.path(), &SqliteOptions::default()).unwrap());
    }
}

store_conformance!(SqliteFixture::new());
