//! The suite every store passes, against a real replica set of one node, and what only this store has to show.

mod plans;
mod recovery;
mod start;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chatbox_proto::{ids::SessionId, token::Secret};
use mongodb::{Client, Database, bson::Document};

use super::{MongoOptions, MongoStore};
use crate::store::{
    SessionStore, Stores,
    conformance::{Fixture, store_conformance},
};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The servers that the tests were started beside.
fn server() -> String {
    #[expect(clippy::disallowed_methods, reason = "the servers are outside of the test")]
    let uri = std::env::var("CHATBOX_TEST_MONGODB");
    uri.expect("CHATBOX_TEST_MONGODB is not set: use `make test`, or `tests/scripts/servers.py run mongo -- COMMAND`")
}

fn options(database: &str) -> MongoOptions {
    let uri = server().replacen("/?", &format!("/{database}?"), 1);
    MongoOptions { uri: Secret::new(uri), call_timeout: CALL_TIMEOUT, pool_size: 16 }
}

/// A store in a database of its own, which is dropped with it.
struct MongoFixture {
    database: String,
    store: Arc<MongoStore>,
}

impl MongoFixture {
    async fn new() -> Self {
        let database = format!("test-{}", SessionId::generate());
        let store = Arc::new(MongoStore::open(&options(&database)).await.unwrap());
        Self { database, store }
    }

    /// Another core on the same database.
    async fn another(&self) -> Arc<dyn SessionStore> {
        Arc::new(MongoStore::open(&options(&self.database)).await.unwrap())
    }

    fn database(&self) -> &Database {
        &self.store.shared.connection.database
    }
}

#[async_trait]
impl Fixture for MongoFixture {
    fn stores(&self) -> Stores {
        Arc::clone(&self.store).into()
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Arc::new(MongoStore::open(&options(&self.database)).await.unwrap());
    }
}

impl Drop for MongoFixture {
    fn drop(&mut self) {
        let database = self.database.clone();
        // In a thread, because a runtime does not let its own threads wait.
        let drop = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = Client::with_uri_str(server()).await.unwrap();
                client.database(&database).drop().await.unwrap();
            });
        };
        let dropped = std::thread::spawn(drop).join();
        assert!(dropped.is_ok() || std::thread::panicking(), "the database could not be dropped");
    }
}

async fn run(database: &Database, command: Document) -> Document {
    database.run_command(command).await.unwrap()
}

store_conformance!(MongoFixture::new().await);
