//! Many at once, in the short form: `make bench ARGS='churn slow resume'` is the long one, with figures. Here it is about what
//! must hold at any size: nobody loses anything, memory stays bounded, figures end where they began.

use std::time::{Duration, Instant};

use chatbox_proto::v1::{
    chat_request::{Frame, Open, Read},
    chat_response::Event,
};
use futures_util::future::join_all;

use crate::harness::{
    churn::Churn,
    client::{Answer, Client, Transport},
    pair::{Pair, Role, Settings},
    stack::SECRET,
    token::Minter,
    wait::{LIMIT, wait_for, within},
    ws::Encoding,
};

/// What memory may grow by at this size beside the share that the long form allows: pages of allocators and caches of a
/// debug build.
const SLACK: u64 = 8 << 20;

/// What one reader that does not read may cost.
const ONE_READER: u64 = 32 << 20;

fn settings() -> Settings {
    let drain = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\n";
    let limits = "limits.frames_per_second = 10000\n";
    Settings {
        core: format!("{drain}{limits}session.heartbeat = \"5s\"\n"),
        edge: format!("{drain}{limits}core.heartbeat = \"5s\"\nlimits.handshakes_per_ip = 100000\n"),
        vars: Vec::new(),
    }
}

async fn becomes(pair: &Pair, role: Role, name: &str, value: f64) {
    let so_many = || async { (pair.metric(role, name).await.ok()? == value).then_some(()) };
    wait_for(&format!("{name} is {value}"), LIMIT, so_many).await.unwrap();
}

async fn attached(pair: &Pair, count: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(count);
    for batch in 0..count.div_ceil(50) {
        let opening = (batch * 50..count.min(batch * 50 + 50)).map(|number| async move {
            let transport = Transport::Socket(Encoding::ALL[number % 2]);
            let mut client = pair.connect(transport, &format!("user-{number}")).await.unwrap();
            client.open(Open::default()).await.unwrap();
            client.caught_up().await.unwrap();
            client
        });
        clients.extend(join_all(opening).await);
    }
    clients
}

async fn is_acknowledged(client: &mut Client) {
    let answer = client.request(Frame::Read(Read::default())).await.unwrap();
    assert!(matches!(answer, Answer::Ack(_)), "{answer:?}");
}

#[tokio::test]
async fn heavy_sockets_that_come_and_go_leave_nothing_behind() {
    let mut pair = Pair::start(settings()).await.unwrap();
    let churn = |sockets| Churn {
        address: pair.addresses().http,
        minter: Minter::hs256(SECRET),
        sockets,
        lives: Duration::from_millis(600),
    };
    let (first, then) = (churn(150), churn(150));
    let resident = |pair: &mut Pair| Role::ALL.map(|role| pair.process(role).resident_bytes().unwrap());
    let mut sockets = first.run(Duration::from_secs(4)).await.unwrap();
    let before = resident(&mut pair);
    sockets += then.run(Duration::from_secs(8)).await.unwrap();
    let after = resident(&mut pair);
    assert!(sockets > 450, "only {sockets} sockets came");
    for (role, (before, after)) in Role::ALL.into_iter().zip(before.into_iter().zip(after)) {
        let most = before + before / 10 + SLACK;
        assert!(after <= most, "{}: {before} bytes, and {after} after {sockets} sockets", role.binary());
    }
    becomes(&pair, Role::Edge, "chatbox_edge_connections", 0.0).await;
    for name in ["chatbox_core_subscribers", "chatbox_core_replies_running", "chatbox_core_sessions_live"] {
        becomes(&pair, Role::Core, name, 0.0).await;
    }
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_a_reader_that_does_not_read_costs_the_many_others_nothing() {
    let mut pair = Pair::start(settings()).await.unwrap();
    let mut others = attached(&pair, 300).await;
    let mut slow = pair.connect(Transport::Socket(Encoding::Proto), "slow").await.unwrap();
    slow.open(Open::default()).await.unwrap();
    let before = Role::ALL.map(|role| pair.process(role).resident_bytes().unwrap());
    // Asks for as long as it is let, and reads no answer.
    let flood = async {
        let mut asked = 0_u64;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let ask = slow.send(Frame::Read(Read::default()));
            match tokio::time::timeout(Duration::from_millis(200), ask).await {
                Ok(Ok(_)) => asked += 1,
                // Held back, or closed for it: both are as it should be.
                Err(_) => {}
                Ok(Err(_)) => break,
            }
        }
        asked
    };
    let served = async {
        for _ in 0..10 {
            join_all(others.iter_mut().map(is_acknowledged)).await;
        }
    };
    let (asked, ()) = tokio::join!(flood, served);
    assert!(asked > 1_000, "it asked {asked} times only");
    for (role, before) in Role::ALL.into_iter().zip(before) {
        let more = pair.process(role).resident_bytes().unwrap().saturating_sub(before);
        assert!(more < ONE_READER, "{}: {more} bytes more", role.binary());
    }
    join_all(others.iter_mut().map(is_acknowledged)).await;
    drop((slow, others));
    becomes(&pair, Role::Edge, "chatbox_edge_connections", 0.0).await;
    becomes(&pair, Role::Core, "chatbox_core_subscribers", 0.0).await;
    pair.shutdown().await.unwrap();
}

#[tokio::test]
async fn heavy_hundreds_of_sockets_outlive_the_death_of_core_and_each_has_its_answer() {
    const CLIENTS: usize = 500;
    let mut pair = Pair::start(settings()).await.unwrap();
    let mut clients = attached(&pair, CLIENTS).await;
    for (number, client) in clients.iter_mut().enumerate().step_by(10) {
        client.say(&format!("m{number}"), "before").await.unwrap();
    }
    pair.kill_and_restart(Role::Core).unwrap();
    // Asked of a core that is gone: each answer comes from the stream that took the lost one's place.
    let answered = clients.iter_mut().enumerate().map(|(number, client)| async move {
        is_acknowledged(client).await;
        if number % 10 == 0 {
            let repeat = client.say(&format!("m{number}"), "before").await.unwrap();
            assert!(repeat.duplicate, "{number}");
            let seqs: Vec<u64> = client.entries().iter().map(|entry| entry.seq).collect();
            assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{number}");
        }
        client.until("a heartbeat", |event| matches!(event, Event::Heartbeat(_)).then_some(())).await.unwrap();
    });
    within("all have an answer", LIMIT * 3, join_all(answered)).await.unwrap();
    becomes(&pair, Role::Edge, "chatbox_edge_connections", CLIENTS as f64).await;
    becomes(&pair, Role::Core, "chatbox_core_subscribers", CLIENTS as f64).await;
    drop(clients);
    becomes(&pair, Role::Edge, "chatbox_edge_connections", 0.0).await;
    pair.shutdown().await.unwrap();
}
