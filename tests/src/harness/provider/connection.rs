//! One connection of the scripted provider: one request, one answer, close.

use std::{collections::HashMap, io, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{Dialect, Recorded, Script, State, Step};

/// Larger bodies are a defect of the client.
const MAX_BODY: usize = 64 << 20;

/// How a script ended.
enum End {
    /// All steps are done.
    Through,
    /// The client left first.
    Left,
    /// A step closed the connection without ending the body.
    Cut,
    /// A step asked for a reset.
    Reset,
}

pub(super) async fn serve(socket: TcpStream, state: Arc<State>) {
    // Answers leave as they are written, so that the client sees the pieces that the script made.
    let _ = socket.set_nodelay(true);
    let (read, write) = socket.into_split();
    let mut reader = BufReader::new(read);
    let Ok(Some(request)) = read_request(&mut reader).await else { return };
    let (script, dialect, id) = match Dialect::of(&request.path) {
        Some(dialect) => {
            let (script, id) = state.take(request);
            (script, dialect, id)
        }
        None if request.path.ends_with("/stop") => {
            state.stopped(request);
            (Script::status(200, &json!({"result": "success"})), Dialect::Dify, 0)
        }
        None => (models(), Dialect::OpenAi, 0),
    };
    let steps = dialect.render(&script, id);
    let mut answer = Answer { reader, write };
    match answer.follow(script, steps).await {
        Ok(End::Through | End::Cut) => {}
        // A dropped half would say the end of the stream in good order first.
        Ok(End::Reset) => answer.write.forget(),
        Ok(End::Left) | Err(_) => state.left.send_modify(|count| *count += 1),
    }
}

/// What is asked beside completions: the list of models.
fn models() -> Script {
    Script::status(200, &json!({"object": "list", "data": [{"id": "scripted", "object": "model"}]}))
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Recorded>> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if length > MAX_BODY {
        return Err(io::Error::other("the request body is too large"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Some(Recorded { path, headers, body }))
}

struct Answer {
    reader: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Answer {
    async fn follow(&mut self, script: Script, steps: Vec<Step>) -> io::Result<End> {
        for step in &script.before_head {
            match self.step(step).await? {
                End::Through => {}
                end @ (End::Left | End::Cut | End::Reset) => return Ok(end),
            }
        }
        let mut head =
            format!("HTTP/1.1 {} Scripted\r\ntransfer-encoding: chunked\r\nconnection: close\r\n", script.status);
        for (name, value) in &script.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.write.write_all(head.as_bytes()).await?;
        for step in &steps {
            match self.step(step).await? {
                End::Through => {}
                end @ (End::Left | End::Cut | End::Reset) => return Ok(end),
            }
        }
        self.write.write_all(b"0\r\n\r\n").await?;
        self.write.shutdown().await?;
        Ok(End::Through)
    }

    async fn step(&mut self, step: &Step) -> io::Result<End> {
        match step {
            Step::Bytes(bytes) if bytes.is_empty() => Ok(End::Through),
            Step::Part(_) => Err(io::Error::other("a part was not put into words")),
            Step::Bytes(bytes) => {
                let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
                chunk.extend_from_slice(bytes);
                chunk.extend_from_slice(b"\r\n");
                self.write.write_all(&chunk).await?;
                Ok(End::Through)
            }
            Step::Gate(gate) => tokio::select! {
                () = gate.pass() => Ok(End::Through),
                () = client_leaves(&mut self.reader) => Ok(End::Left),
            },
            Step::Pause(pause) => tokio::select! {
                _ = tokio::time::timeout(*pause, std::future::pending::<()>()) => Ok(End::Through),
                () = client_leaves(&mut self.reader) => Ok(End::Left),
            },
            Step::Hang => {
                client_leaves(&mut self.reader).await;
                Ok(End::Left)
            }
            Step::Reset => {
                let socket: &TcpStream = self.write.as_ref();
                socket.set_zero_linger()?;
                Ok(End::Reset)
            }
            Step::Truncate => Ok(End::Cut),
        }
    }
}

/// A client sends nothing after its request: whatever arrives is its end. Cancel-safe: it keeps nothing.
async fn client_leaves(reader: &mut BufReader<OwnedReadHalf>) {
    let mut byte = [0];
    while matches!(reader.read(&mut byte).await, Ok(1..)) {}
}
