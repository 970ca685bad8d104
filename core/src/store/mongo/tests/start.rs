//! Starting: migrations beside each other, versions, and what is refused.

use mongodb::bson::doc;

use super::*;
use crate::store::StoreErrorKind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cores_that_start_at_once_on_an_empty_database_all_serve() {
    let fixture = MongoFixture::new().await;
    fixture.database().drop().await.unwrap();
    let options = options(&fixture.database);
    let stores = futures_util::future::join_all((0..6).map(|_| MongoStore::open(&options))).await;
    for store in stores {
        let store = store.unwrap();
        store.ping().await.unwrap();
        store.close().await;
    }
    let indexes = fixture.database().collection::<Document>("log").list_index_names().await.unwrap();
    assert_eq!(indexes, ["_id_", "place", "key", "end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let fixture = MongoFixture::new().await;
    let versions = fixture.database().collection::<Document>("schema");
    versions.update_one(doc! { "_id": "version" }, doc! { "$set": { "version": 99 } }).await.unwrap();
    let error = MongoStore::open(&options(&fixture.database)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    let stored = versions.find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(stored.get_i32("version").unwrap(), 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_unavailable_within_the_limit_and_shows_no_password() {
    let uri = Secret::new("mongodb://user:hunter22@127.0.0.1:1/x?replicaSet=rs0");
    let options = MongoOptions { uri, call_timeout: Duration::from_millis(500), pool_size: 4 };
    let started = std::time::Instant::now();
    let error = MongoStore::open(&options).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let mut text = format!("{error} {error:?} {options:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(!text.contains("hunter22"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_uri_is_refused_without_being_shown() {
    let uri = Secret::new("mongodb://user:hun%ter22@@@/x");
    let options = MongoOptions { uri, call_timeout: Duration::from_millis(500), pool_size: 4 };
    let error = MongoStore::open(&options).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    assert!(!format!("{error:?}").contains("ter22"));
}
