//! A session that its owner destroys, through the edge and on MongoDB: gone for every call and stream, on every core, and
//! nothing in the database that it could be read with.

use chatbox_proto::v1::{
    GetSessionRequest, ListSessionsRequest, ListSessionsResponse,
    chat_request::{Open, Read},
    entry::Kind,
};
use mongodb::bson::{Bson, Document};
use reqwest::Method;
use tonic::Code;

use crate::harness::{
    client::{Client, Transport},
    cores::Cores,
    mongod::Database,
    pair::{Pair, Settings},
    wait::{LIMIT, wait_for},
    ws::Encoding,
};

/// `NOT_FOUND` as a close code: terminal.
const NOT_FOUND: u16 = 4104;

async fn talked(client: &mut Client) -> String {
    let session_id = client.open(Open::default()).await.unwrap().session.unwrap().session_id;
    client.caught_up().await.unwrap();
    client.say("m1", "keep this to yourself").await.unwrap();
    client.reply().await.unwrap();
    let read = client.request(chatbox_proto::v1::chat_request::Frame::Read(Read { seq: 1 })).await.unwrap();
    assert!(matches!(read, crate::harness::client::Answer::Ack(_)), "{read:?}");
    session_id
}

/// The documents of a collection that hold these bytes anywhere.
async fn holding(database: &mongodb::Database, collection: &str, bytes: &[u8]) -> usize {
    let mut found = 0;
    let mut all = database.collection::<Document>(collection).find(Document::new()).await.unwrap();
    while all.advance().await.unwrap() {
        found += usize::from(all.current().as_bytes().windows(bytes.len()).any(|part| part == bytes));
    }
    found
}

/// The wrapped data key and the folded state in the header of the session.
async fn header(database: &mongodb::Database, session_id: &str) -> (Vec<u8>, Vec<u8>) {
    let id: chatbox_proto::ids::SessionId = session_id.parse().unwrap();
    let mut all = database.collection::<Document>("sessions").find(Document::new()).await.unwrap();
    while all.advance().await.unwrap() {
        let header: Document = all.deserialize_current().unwrap();
        let bytes = |name| match header.get(name) {
            Some(Bson::Binary(binary)) => binary.bytes.clone(),
            other => panic!("{name} is {other:?}"),
        };
        if bytes("_id") == id.as_bytes() {
            return (bytes("key"), bytes("state"));
        }
    }
    panic!("there is no header of {session_id}")
}

#[tokio::test]
async fn a_session_that_is_deleted_through_the_edge_is_gone_for_everybody_and_from_the_database() {
    let database = Database::new().unwrap();
    let vars = vec![("CHATBOX_CORE_STORE_URL".to_owned(), database.uri.clone())];
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n".to_owned();
    let pair = Pair::start(Settings { core: drain.clone(), edge: drain, vars }).await.unwrap();
    let raw = mongodb::Client::with_uri_str(&database.uri).await.unwrap().default_database().unwrap();
    let mut socket = pair.connect(Transport::Socket(Encoding::Json), "alice").await.unwrap();
    let session_id = talked(&mut socket).await;
    let mut stream = pair.connect(Transport::Grpc, "alice").await.unwrap();
    stream.open(Open { session_id: session_id.clone(), ..Open::default() }).await.unwrap();
    let (key, state) = header(&raw, &session_id).await;
    assert_eq!((holding(&raw, "sessions", &key).await, holding(&raw, "sessions", &state).await), (1, 1));

    let path = format!("/api/v1/sessions/{session_id}");
    let mallory = pair.http("mallory").unwrap();
    assert_eq!(mallory.send(Method::DELETE, &path, None).await.unwrap().status, 404);
    let alice = pair.http("alice").unwrap();
    for _ in 0..2 {
        let deleted = alice.send(Method::DELETE, &path, None).await.unwrap();
        assert_eq!((deleted.status.as_u16(), deleted.text().as_str()), (200, "{}"));
    }
    let closed = socket.until_closed().await.unwrap();
    assert_eq!((closed.code, closed.reason.as_str()), (Some(NOT_FOUND), "SESSION_NOT_FOUND"));
    assert!(matches!(socket.entries().last().and_then(|entry| entry.kind.as_ref()), Some(Kind::Erased(_))));
    let closed = stream.until_closed().await.unwrap();
    assert_eq!(closed.code, Some(Code::NotFound as u16));
    for (method, rest, body) in
        [(Method::GET, "", None), (Method::GET, "/messages", None), (Method::POST, "/end", Some("{}".to_owned()))]
    {
        let answer = alice.send(method, &format!("{path}{rest}"), body).await.unwrap();
        assert_eq!(answer.status, 404, "{rest}: {}", answer.text());
    }
    let listed: ListSessionsResponse = alice.get("/api/v1/sessions").await.unwrap();
    assert!(listed.sessions.is_empty(), "{listed:?}");

    assert_eq!(header(&raw, &session_id).await, (Vec::new(), Vec::new()));
    for collection in ["sessions", "log", "replies", "installation"] {
        for bytes in [&key, &state] {
            assert_eq!(holding(&raw, collection, bytes).await, 0, "{collection}");
        }
    }
    let headers = raw.collection::<Document>("sessions").find_one(Document::new()).await.unwrap().unwrap();
    assert!(!headers.contains_key("marks") && !headers.contains_key("slot"), "{headers:?}");
    // There is room for another one.
    let mut next = pair.connect(Transport::Grpc, "alice").await.unwrap();
    assert!(next.open(Open::default()).await.unwrap().created);
    pair.shutdown().await.unwrap();
    database.drop_it().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_deleted_on_one_core_is_gone_on_the_other() {
    let database = Database::new().unwrap();
    let settings = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let cores = Cores::start(2, &database.uri, settings).await.unwrap();
    let mut first = cores.connect(0, "alice").await.unwrap();
    let session_id = talked(&mut first).await;
    let mut second = cores.connect(1, "alice").await.unwrap();
    second.open(Open { session_id: session_id.clone(), ..Open::default() }).await.unwrap();
    let delete = chatbox_proto::v1::DeleteSessionRequest { session_id: session_id.clone() };
    cores.core(0, "alice").unwrap().delete_session(delete.clone()).await.unwrap();
    for client in [&mut first, &mut second] {
        assert_eq!(client.until_closed().await.unwrap().code, Some(Code::NotFound as u16));
    }
    let mut elsewhere = cores.core(1, "alice").unwrap();
    let get = GetSessionRequest { session_id };
    assert_eq!(elsewhere.get_session(get).await.unwrap_err().code(), Code::NotFound);
    elsewhere.delete_session(delete).await.unwrap();
    let listed = elsewhere.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    assert!(listed.sessions.is_empty(), "{listed:?}");
    for core in [0, 1] {
        let no_room = || async {
            let live = cores.metric(core, "chatbox_core_sessions_live").await.ok()?;
            (live < 0.5).then_some(())
        };
        wait_for("the room and its key are gone", LIMIT, no_room).await.unwrap();
    }
    cores.shutdown().await.unwrap();
    database.drop_it().await.unwrap();
}
