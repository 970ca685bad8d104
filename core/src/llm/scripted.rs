//! A raw HTTP/1.1 server on loopback that does as it is told, for tests of providers: it can be rude in ways that a
//! library would not allow.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the server does next in answer to a request.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Writes these bytes as they are.
    Raw(Vec<u8>),
    /// Writes a head that announces a chunked body.
    Head(&'static str),
    /// Writes one chunk of the body.
    Data(Vec<u8>),
    /// Ends the body; the connection stays for the next request.
    End,
    /// Does nothing until the client closes the connection.
    Hang,
    /// Writes body until the client closes the connection.
    Flood,
    /// Breaks the connection with RST.
    Reset,
    /// Closes the connection, wherever the body is.
    Close,
}

/// A head for an event stream.
pub(crate) const STREAM: Step =
    Step::Head("200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req-7");

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    scripts: Mutex<VecDeque<Vec<Step>>>,
    received: Mutex<Vec<Received>>,
}

/// The server. Ends when dropped.
#[derive(Debug)]
pub(crate) struct ScriptedServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    connections: watch::Receiver<usize>,
    closed_by_client: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl ScriptedServer {
    /// Answers one request after the other with these scripts.
    pub(crate) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared { scripts: Mutex::new(scripts.into()), ..Shared::default() });
        let (connected, connections) = watch::channel(0);
        let (closed, closed_by_client) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let for_task = shared.clone();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("accept");
                connected.send_modify(|n| *n += 1);
                serving.spawn(serve(socket, for_task.clone(), closed.clone()));
            }
        });
        Self { address, shared, connections, closed_by_client, _tasks: tasks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("lock").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until the client has closed this many connections in the middle of an answer.
    pub(crate) async fn closed_by_client(&self, count: usize) {
        let mut closed = self.closed_by_client.clone();
        let wait = closed.wait_for(|n| *n >= count);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the client closes the connection")
            .expect("server");
    }
}

async fn serve(mut socket: TcpStream, shared: Arc<Shared>, closed: watch::Sender<usize>) {
    socket.set_nodelay(true).expect("nodelay");
    while let Some(request) = read_request(&mut socket).await {
        shared.received.lock().expect("lock").push(request);
        let Some(script) = shared.scripts.lock().expect("lock").pop_front() else { return };
        for step in script {
            match perform(&mut socket, step).await {
                Ok(Connection::Stays) => {}
                Ok(Connection::Ends) => return,
                Err(_) => {
                    closed.send_modify(|n| *n += 1);
                    return;
                }
            }
        }
    }
}

enum Connection {
    Stays,
    Ends,
}

/// `Err`: the client closed the connection.
async fn perform(socket: &mut TcpStream, step: Step) -> std::io::Result<Connection> {
    match step {
        Step::Raw(bytes) => socket.write_all(&bytes).await?,
        Step::Head(head) => {
            let head = format!("HTTP/1.1 {head}\r\ntransfer-encoding: chunked\r\n\r\n");
            socket.write_all(head.as_bytes()).await?;
        }
        Step::Data(data) => socket.write_all(&http_chunk(&data)).await?,
        Step::End => socket.write_all(b"0\r\n\r\n").await?,
        Step::Flood => loop {
            socket.write_all(&http_chunk(&[b'x'; 16 * 1024])).await?;
        },
        Step::Hang => {
            let mut byte = [0];
            let read = socket.read(&mut byte).await?;
            assert_eq!(read, 0, "the client sends in the middle of an answer");
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        Step::Reset => {
            socket2::SockRef::from(&*socket).set_linger(Some(Duration::ZERO))?;
            return Ok(Connection::Ends);
        }
        Step::Close => return Ok(Connection::Ends),
    }
    Ok(Connection::Stays)
}

fn http_chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// `None`: the client closed the connection instead.
async fn read_request(socket: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).expect("ASCII head").to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("length").parse().expect("number");
    let mut body = bytes.split_off(head_end);
    while body.len() < length {
        if socket.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Received { head, body })
}
