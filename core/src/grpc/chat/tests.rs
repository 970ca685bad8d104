//! The task of one stream, on a session layer of its own.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use chatbox_proto::{
    error_code::ErrorCode,
    token::{MintClaims, Role, Secret, TokenConfig, Verifier, mint_hs256},
    v1::{ChatRequest, ChatResponse, chat_request as request, chat_response::Event},
};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status, Streaming,
    codec::{DecodeBuf, Decoder},
};

use super::Connection;
use crate::{
    generate::Generator,
    grpc::{
        PageSizes,
        admin::{CallRate, Gate},
        auth::{Authenticator, session_caller},
        core::{CoreService, FrameLimits},
        generate::{Generate, GenerateLimits},
        limits::PlacesByUser,
    },
    metrics::Metrics,
    seal::KeyRing,
    session::{
        Queue, QueueLimits, QueueStream, Shares,
        audit::AuditTrail,
        tests::fixture::{Core, patiently},
    },
};

const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM"; // gitleaks:allow: made up

fn service(core: &Core) -> (CoreService, String) {
    let config = TokenConfig { secret: Secret::new(SECRET), ..TokenConfig::default() };
    let token = mint_hs256(
        &config.secret,
        &MintClaims {
            user_id: "alice".into(),
            display_name: String::new(),
            roles: vec![Role::User],
            scopes: Vec::new(),
            issuer: String::new(),
            audience: String::new(),
            issued_at: SystemTime::now(),
            lifetime: Duration::from_secs(3_600),
        },
    );
    let key = KeyRing::generate_key();
    let service = CoreService {
        sessions: core.sessions.clone(),
        shares: Shares::new(core.sessions.clone(), core.place.shares.clone()),
        models: core.models.clone(),
        authenticator: Authenticator::new(Arc::new(Verifier::new(&config, None).unwrap())),
        sealer: Arc::new(KeyRing::from_config("k", [("k", key.as_str())]).unwrap().page_token_sealer()),
        queue: QueueLimits { events: 256, bytes: 1 << 20, merge: std::time::Duration::ZERO },
        limits: FrameLimits {
            frame_bytes: 64 * 1024,
            text_bytes: 32 * 1024,
            per_second: 30,
            malformed_per_minute: 10,
            expiry_warning: Duration::from_secs(60),
        },
        pages: PageSizes { default: 50, max: 1_000 },
        streams: PlacesByUser::streams(10),
        calls: PlacesByUser::calls(10),
        tasks: TaskTracker::new(),
        leaving: CancellationToken::new(),
        metrics: Metrics::default(),
        gate: Gate {
            authenticator: Authenticator::new(Arc::new(Verifier::new(&config, None).unwrap())),
            audit: AuditTrail::new(core.place.audit.clone(), core.secret.clone(), Duration::from_secs(5)),
            sessions: core.sessions.clone(),
            rate: CallRate::new(60),
        },
        generate: Generate::new(
            Generator::new(core.models.clone()),
            GenerateLimits { frame_bytes: 1 << 20, conversation_bytes: 4 << 20, messages: 1_000, streams: 10 },
        ),
    };
    (service, token)
}

/// Takes so many frames and panics at the next one, as a fault anywhere in the stream's task would.
struct PanicsAfter(usize);

impl Decoder for PanicsAfter {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        self.0 = self.0.checked_sub(1).expect("this stream panics");
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// Frames as they come off the wire: a flag, a length, the message.
fn wire(frames: &[request::Frame]) -> Bytes {
    let mut wire = BytesMut::new();
    for frame in frames {
        let message = ChatRequest { request_id: "r".into(), frame: Some(frame.clone()) }.encode_to_vec();
        wire.put_u8(0);
        wire.put_u32(u32::try_from(message.len()).unwrap());
        wire.put_slice(&message);
    }
    wire.freeze()
}

#[tokio::test]
async fn a_panic_in_the_task_of_a_stream_ends_that_stream_with_a_failure_and_harms_no_other() {
    let core = Core::start().await;
    let mut other = core.open("alice").await;
    let (service, token) = service(&core);
    let identity = service.authenticator.token(&token).await.unwrap();
    let caller = session_caller(&identity).unwrap();
    let queue = Queue::new(service.queue);
    let mut events = QueueStream::new(queue.clone());
    let connection = Box::new(Connection::new(&service, identity, caller, queue, None));
    let typing = request::Frame::Typing(request::Typing { active: true });
    let body = wire(&[request::Frame::Open(request::Open::default()), typing]);
    let frames = Streaming::new_request(PanicsAfter(1), http_body_util::Full::new(body), None, None);
    let task = service.tasks.spawn(connection.run(frames));
    assert!(patiently("the panic", task).await.unwrap_err().is_panic());

    // What was queued before it is still delivered, and the last word is a failure that says nothing of its cause.
    let mut last = None;
    let mut opened = false;
    while let Some(event) = patiently("the end of the stream", events.next()).await {
        if let Ok(bytes) = &event {
            let event = ChatResponse::decode(bytes.clone()).unwrap().event;
            opened |= matches!(event, Some(Event::Opened(_)));
        }
        last = Some(event);
    }
    assert!(opened);
    assert_eq!(last.unwrap().unwrap_err().code, ErrorCode::Internal);

    let ack = other.send("m1", "unharmed").await;
    let turn = core.turn().await;
    turn.say("answer").await;
    turn.finish().await;
    assert_eq!((ack.seq, other.finished().await.text.as_str()), (1, "answer"));
    core.stop().await;
}
