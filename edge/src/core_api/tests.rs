//! The gRPC client against a real tonic server that does what a test says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chatbox_proto::v1::{
    self,
    core::chat_core_server::{ChatCore, ChatCoreServer},
};
use futures_util::stream::BoxStream;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::{Response, Streaming, metadata::MetadataMap};

use super::{
    cores::{CONNECTION_WINDOW, STREAM_WINDOW},
    *,
};

/// What the server does with a stream.
type Script = fn(Streaming<Bytes>) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status>;

#[derive(Clone)]
struct Scripted {
    script: Script,
    seen: Arc<Mutex<Option<MetadataMap>>>,
}

macro_rules! scripted {
    ($($method:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl ChatCore for Scripted {
            type ChatStream = BoxStream<'static, Result<Bytes, Status>>;
            type GenerateStream = BoxStream<'static, Result<Bytes, Status>>;
            type DownloadFileStream = BoxStream<'static, Result<v1::DownloadFileResponse, Status>>;

            async fn chat(&self, request: Request<Streaming<Bytes>>) -> Result<Response<Self::ChatStream>, Status> {
                *self.seen.lock().unwrap() = Some(request.metadata().clone());
                (self.script)(request.into_inner()).map(Response::new)
            }

            async fn list_models(
                &self,
                request: Request<v1::ListModelsRequest>,
            ) -> Result<Response<v1::ListModelsResponse>, Status> {
                *self.seen.lock().unwrap() = Some(request.metadata().clone());
                Ok(Response::new(v1::ListModelsResponse { default_model: "m".into(), ..Default::default() }))
            }

            async fn get_session(
                &self,
                _: Request<v1::GetSessionRequest>,
            ) -> Result<Response<v1::GetSessionResponse>, Status> {
                Err(Failure::session_not_found().into())
            }

            async fn end_session(
                &self,
                _: Request<v1::EndSessionRequest>,
            ) -> Result<Response<v1::EndSessionResponse>, Status> {
                std::future::pending().await
            }

            async fn generate(
                &self,
                _: Request<Streaming<Bytes>>,
            ) -> Result<Response<Self::GenerateStream>, Status> {
                Err(Status::unimplemented(""))
            }

            async fn upload_file(
                &self,
                _: Request<Streaming<v1::UploadFileRequest>>,
            ) -> Result<Response<v1::UploadFileResponse>, Status> {
                Err(Status::unimplemented(""))
            }

            async fn download_file(
                &self,
                _: Request<v1::DownloadFileRequest>,
            ) -> Result<Response<Self::DownloadFileStream>, Status> {
                Err(Status::unimplemented(""))
            }

            $(async fn $method(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented(""))
            })*
        }
    };
}

scripted! {
    create_session: CreateSessionRequest => CreateSessionResponse,
    list_sessions: ListSessionsRequest => ListSessionsResponse,
    list_messages: ListMessagesRequest => ListMessagesResponse,
    update_session: UpdateSessionRequest => UpdateSessionResponse,
    reopen_session: ReopenSessionRequest => ReopenSessionResponse,
    delete_session: DeleteSessionRequest => DeleteSessionResponse,
    create_share: CreateShareRequest => CreateShareResponse,
    list_shares: ListSharesRequest => ListSharesResponse,
    revoke_share: RevokeShareRequest => RevokeShareResponse,
    get_shared_session: GetSharedSessionRequest => GetSharedSessionResponse,
}

/// A core with a runtime of its own, so that it can die with everything in it.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Option<MetadataMap>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.die();
    }
}

fn serve(script: Script) -> Server {
    serve_at(script, std::net::TcpListener::bind("127.0.0.1:0").unwrap())
}

fn serve_at(script: Script, listener: std::net::TcpListener) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<Mutex<Option<MetadataMap>>>::default();
    let core = Scripted { script, seen: Arc::clone(&seen) };
    let (_, health) = tonic_health::server::health_reporter();
    let mut tasks = tokio::task::JoinSet::new();
    let server = async move {
        let incoming = tonic::transport::server::TcpIncoming::from(TcpListener::from_std(listener).unwrap());
        let server = tonic::transport::Server::builder()
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .add_service(ChatCoreServer::new(core))
            .add_service(health)
            .serve_with_incoming(incoming);
        let _ = server.await;
    };
    tasks.spawn_on(server, runtime.handle());
    tasks.detach_all();
    Server { address, seen, runtime: Some(runtime) }
}

/// Several cores, with health checks that come quickly.
fn several(addresses: &[SocketAddr]) -> Arc<GrpcCore> {
    let config = CoreConfig {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        health_interval: Duration::from_millis(100),
        ..CoreConfig::default()
    };
    Arc::new(GrpcCore::new(&config).unwrap())
}

fn client(address: SocketAddr) -> GrpcCore {
    let config = CoreConfig { url: format!("http://{address}"), ..CoreConfig::default() };
    GrpcCore::new(&config).unwrap()
}

fn caller() -> Caller {
    Caller { token: "a.b.c".into(), client_ip: [203, 0, 113, 5].into(), traceparent: "00-1-2-01".into() }
}

fn echo(frames: Streaming<Bytes>) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
    Ok(frames.boxed())
}

const LIST_MODELS: Call = Call { method: "ListModels", writes: false };
const GET_SESSION: Call = Call { method: "GetSession", writes: false };
const END_SESSION: Call = Call { method: "EndSession", writes: true };

#[tokio::test]
async fn a_stream_carries_bytes_and_metadata_and_ends_in_order() {
    let server = serve(echo);
    let core = client(server.address);
    let (mut frames, queue) = futures_channel::mpsc::channel(4);
    frames.try_send(Bytes::from_static(b"\x0a\x01x")).unwrap();
    let mut events = core.chat(&caller(), queue).await.unwrap();
    assert_eq!(events.next().await, Some(Ok(Bytes::from_static(b"\x0a\x01x"))));
    drop(frames);
    assert_eq!(events.next().await, None);
    let seen = server.seen.lock().unwrap().take().unwrap();
    for (name, value) in
        [("authorization", "Bearer a.b.c"), ("x-chatbox-client-ip", "203.0.113.5"), ("traceparent", "00-1-2-01")]
    {
        assert_eq!(seen.get(name).unwrap(), value);
    }
}

#[tokio::test]
async fn failures_of_core_are_read_back_and_those_of_the_way_are_one() {
    fn refused(_: Streaming<Bytes>) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        Err(Failure::session_not_found().into())
    }
    fn fails_later(_: Streaming<Bytes>) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        Ok(futures_util::stream::iter([Err(Failure::internal().into())]).boxed())
    }
    let queue = || futures_channel::mpsc::channel(4);
    let server = serve(refused);
    let result = client(server.address).chat(&caller(), queue().1).await;
    assert_eq!(result.err(), Some(Failure::session_not_found()));
    let server = serve(fails_later);
    let mut events = client(server.address).chat(&caller(), queue().1).await.unwrap();
    assert_eq!(events.next().await, Some(Err(Failure::internal())));
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let result = client(gone).chat(&caller(), queue().1).await;
    assert!(is_core_unavailable(&result.err().unwrap()));
}

#[tokio::test]
async fn a_core_that_dies_ends_its_streams_as_unavailable() {
    let mut server = serve(echo);
    let core = client(server.address);
    let (_frames, queue) = futures_channel::mpsc::channel(4);
    let mut events = core.chat(&caller(), queue).await.unwrap();
    server.die();
    let end = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap();
    assert!(matches!(&end, Some(Err(failure)) if is_core_unavailable(failure)), "{end:?}");
}

#[tokio::test]
async fn unary_calls_answer_fail_and_are_bounded() {
    let server = serve(echo);
    let mut core = client(server.address);
    let answer = core.call(LIST_MODELS, &caller(), Bytes::new()).await.unwrap();
    assert_eq!(v1::ListModelsResponse::decode(answer).unwrap().default_model, "m");
    let failure = core.call(GET_SESSION, &caller(), Bytes::new()).await.unwrap_err();
    assert_eq!(failure, Failure::session_not_found());
    core.call_timeout = Duration::from_millis(200);
    let failure = core.call(END_SESSION, &caller(), Bytes::new()).await.unwrap_err();
    assert!(is_core_unavailable(&failure) && failure.outcome_unknown, "{failure:?}");
}

/// Opens a stream and says on which server it is.
async fn open(core: &GrpcCore, servers: &[&Server]) -> (usize, futures_channel::mpsc::Sender<Bytes>, Events) {
    let (frames, queue) = futures_channel::mpsc::channel(1);
    let events = core.chat(&caller(), queue).await.unwrap();
    let place = servers.iter().position(|server| server.seen.lock().unwrap().take().is_some()).unwrap();
    (place, frames, events)
}

#[tokio::test]
async fn the_least_loaded_core_takes_the_next_stream() {
    let servers = [serve(echo), serve(echo), serve(echo)];
    let core = several(&servers.each_ref().map(|server| server.address));
    let servers: Vec<_> = servers.iter().collect();
    let watching = Arc::clone(&core);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_on(async move { watching.watch().await }, &tokio::runtime::Handle::current());
    // Until all are known to serve.
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 3 {
        seen.insert(open(&core, &servers).await.0);
    }
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(open(&core, &servers).await);
    }
    for place in 0..3 {
        assert_eq!(streams.iter().filter(|stream| stream.0 == place).count(), 4, "server {place}");
    }
    // Room is made on one of them: it takes what comes next.
    streams.retain(|stream| stream.0 != 1);
    for _ in 0..4 {
        let stream = open(&core, &servers).await;
        assert_eq!(stream.0, 1);
        streams.push(stream);
    }
}

#[tokio::test]
async fn a_core_that_is_gone_gets_nothing_and_is_found_again() {
    let mut first = serve(echo);
    let second = serve(echo);
    let core = several(&[first.address, second.address]);
    let watching = Arc::clone(&core);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_on(async move { watching.watch().await }, &tokio::runtime::Handle::current());
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open(&core, &[&first, &second]).await);
    }
    let address = first.address;
    first.die();
    // Whoever was on it hears of it at once, and comes back to the other one at once.
    for (place, _, events) in &mut streams {
        if *place == 0 {
            let end = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap();
            assert!(matches!(&end, Some(Err(failure)) if is_core_unavailable(failure)), "{end:?}");
        }
    }
    for _ in 0..4 {
        let (_, queue) = futures_channel::mpsc::channel(1);
        let _events = core.chat(&caller(), queue).await.unwrap();
        assert!(second.seen.lock().unwrap().take().is_some());
    }
    assert!(core.check(Duration::from_secs(2)).await.is_ok());
    // Back in the same place: no stream is on either, so they take turns.
    drop(streams);
    let first = serve_at(echo, std::net::TcpListener::bind(address).unwrap());
    let found = async {
        loop {
            let (_frames, queue) = futures_channel::mpsc::channel(1);
            let _events = core.chat(&caller(), queue).await.unwrap();
            if first.seen.lock().unwrap().is_some() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
}

#[tokio::test]
async fn one_core_that_serves_is_ready_and_none_is_not() {
    let mut servers = [serve(echo), serve(echo)];
    let core = several(&servers.each_ref().map(|server| server.address));
    assert!(core.check(Duration::from_secs(2)).await.is_ok());
    servers[0].die();
    assert!(core.check(Duration::from_secs(2)).await.is_ok());
    servers[1].die();
    let gone = async { while core.check(Duration::from_secs(2)).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn a_name_stands_for_its_addresses() {
    let server = serve(echo);
    let config = CoreConfig { url: format!("http://localhost:{}", server.address.port()), ..CoreConfig::default() };
    let core = GrpcCore::new(&config).unwrap();
    // It may also stand for an IPv6 address at which nobody is.
    for _ in 0..4 {
        core.call(LIST_MODELS, &caller(), Bytes::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_that_is_no_header_value_is_refused_here() {
    let server = serve(echo);
    let caller = Caller { token: "a\nb".into(), ..caller() };
    let failure = client(server.address).call(LIST_MODELS, &caller, Bytes::new()).await.unwrap_err();
    assert_eq!(failure, Failure::unauthenticated());
    assert!(!format!("{caller:?}").contains("a\\nb"));
}

#[tokio::test]
async fn readiness_is_asked_over_the_health_service() {
    let mut server = serve(echo);
    assert!(client(server.address).check(Duration::from_secs(2)).await.is_ok());
    server.die();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(client(gone).check(Duration::from_secs(2)).await.is_err());
}

/// The h2 guard of PERFORMANCE 2.5: many streams that nobody reads for a while, none of them lost.
#[tokio::test]
async fn many_unread_streams_do_not_end_the_connection() {
    fn flood(_: Streaming<Bytes>) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        let events = futures_util::stream::iter((0..100).map(|_| Ok(Bytes::from_static(&[0; 64]))));
        Ok(events.chain(futures_util::stream::pending()).boxed())
    }
    let server = serve(flood);
    let core = client(server.address);
    let mut streams = Vec::new();
    for _ in 0..1000 {
        let (frames, queue) = futures_channel::mpsc::channel(1);
        streams.push((frames, core.chat(&caller(), queue).await.unwrap()));
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        for (_, events) in &mut streams {
            for _ in 0..100 {
                assert!(matches!(events.next().await, Some(Ok(event)) if event.len() == 64));
            }
        }
    })
    .await
    .unwrap();
}
