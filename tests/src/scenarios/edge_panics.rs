//! A panic in the edge harms one request or one connection, and whoever made it is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chatbox_core::telemetry::{PanicReport, install_panic_hook};
use chatbox_edge::core_api::{Call, Caller, CoreApi, Events, Frames, GrpcCore};
use chatbox_proto::{
    status::Failure,
    v1::{chat_request::Open, chat_response::Event},
};
use reqwest::Method;

use crate::harness::{
    client::{Addresses, Client, Transport},
    http::Http,
    metrics::gauge,
    served::Served,
    stack::{Setup, Stack},
    ws::Encoding,
};

const MARKER: &str = "MARKER: this panic is part of a test";

/// The way to a real core, with a fault in it.
#[derive(Debug)]
struct Faulty {
    core: GrpcCore,
    panics: Arc<AtomicBool>,
}

impl Faulty {
    fn fault(&self) {
        assert!(!self.panics.load(Ordering::Relaxed), "{MARKER}");
    }
}

#[async_trait]
impl CoreApi for Faulty {
    async fn chat(&self, caller: &Caller, frames: Frames) -> Result<Events, Failure> {
        self.fault();
        self.core.chat(caller, frames).await
    }

    async fn call(&self, call: Call, caller: &Caller, request: Bytes) -> Result<Bytes, Failure> {
        self.fault();
        self.core.call(call, caller, request).await
    }

    async fn check(&self, timeout: Duration) -> Result<(), Failure> {
        self.core.check(timeout).await
    }
}

#[tokio::test]
async fn a_panic_is_one_500_or_one_1011_and_nobody_else_notices() {
    install_panic_hook(PanicReport::LogAndPrevious);
    let stack = Stack::start(Setup::new().unwrap()).await.unwrap();
    let mut settings = Setup::new().unwrap().edge;
    settings.core.url = format!("http://{}", stack.addresses().grpc);
    let panics = Arc::new(AtomicBool::new(false));
    let core = Faulty { core: GrpcCore::new(&settings.core).unwrap(), panics: Arc::clone(&panics) };
    let ((http, metrics), edge) = Served::start("edge", move || async move {
        let app = chatbox_edge::App::bind_with(settings, Arc::new(core)).await?;
        Ok(((app.http_addr()?, app.metrics_addr().unwrap()), |token| app.run(token)))
    })
    .await
    .unwrap();
    let addresses = Addresses { http, ..stack.addresses() };
    let token = stack.token("alice", "user").unwrap();
    for (round, encoding) in Encoding::ALL.into_iter().enumerate() {
        let transport = Transport::Socket(encoding);
        let mut steady = Client::connect(transport, addresses, &token).await.unwrap();
        steady.open(Open::default()).await.unwrap();

        panics.store(true, Ordering::Relaxed);
        let answer = Http::new(http, Some(&token)).send(Method::GET, "/api/v1/models", None).await.unwrap();
        assert_eq!(answer.status, 500);
        for (name, value) in [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY")] {
            assert_eq!(answer.headers[name], value);
        }
        let id = answer.headers["x-correlation-id"].to_str().unwrap().to_owned();
        assert!(id.len() == 32 && answer.text().contains(&id), "{id}: {}", answer.text());
        let said = answer.text().to_lowercase();
        assert!(!said.contains("marker") && !said.contains("panic") && !said.contains(".rs"), "{said}");

        let mut victim = Client::connect(transport, addresses, &token).await.unwrap();
        let open = chatbox_proto::v1::chat_request::Frame::Open(Open::default());
        victim.send(open).await.unwrap();
        let told = victim.until("why it ends", |event| match event {
            Event::Error(error) => Some(error.clone()),
            _ => None,
        });
        let told = told.await.unwrap();
        assert_eq!((told.close_code, told.reason.as_str()), (1011, "INTERNAL"));
        assert!(!told.message.contains("MARKER"));
        assert_eq!(victim.until_closed().await.unwrap().code, Some(1011));
        panics.store(false, Ordering::Relaxed);

        assert_eq!(gauge(metrics, "chatbox_edge_panics_total").await.unwrap(), ((round + 1) * 2) as f64);
        steady.say(&format!("still-here-{round}"), "still here").await.unwrap();
        steady.reply().await.unwrap();
    }
    edge.shutdown().await.unwrap();
    // The edge's panics are counted by the hook too, which is the process's.
    stack.shutdown_after_panics(4).await.unwrap();
}
