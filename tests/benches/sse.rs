//! What a provider's stream costs to read: alone, with its JSON, and over HTTP. Beside it the least that could be done: looking
//! for the ends of lines, and serde for the one field that is wanted.

use std::{
    borrow::Cow,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use chatbox_core::llm::{
    Chunk, Prompt, PromptMessage, PromptRole, Provider as _,
    openai::{OpenAi, OpenAiSettings},
    sse::SseDecoder,
};
use chatbox_tests::harness::http;
use futures_util::StreamExt as _;
use memchr::memchr;
use serde::Deserialize;

use crate::measure::{
    machine::{Others, thread_cpu_time},
    options::Options,
    repeat::nanos,
    report::{Compare, Figure, Report},
};

/// What is read from a socket at once.
const READ: usize = 16 * 1024;
const DELTA: &str = r#"{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz0123","object":"chat.completion.chunk","created":1732280400,"model":"bench-2024-08-06","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" streaming"},"logprobs":null,"finish_reason":null}],"usage":null}"#;
const FINISH: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
/// Events of one pass over the stream.
const EVENTS: usize = 500;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Delta<'a>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Cow<'a, str>,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let chunks = chunks();
    let mut scan = Figure::new("events", "ns", "line scan", Compare::Ratio);
    let mut json = Figure::new("events and JSON", "ns", "line scan and serde", Compare::Ratio);
    let mut whole = Figure::new("openai provider over HTTP", "ns", "reqwest, line scan and serde", Compare::Ratio);
    let events = options.pick(100_000, 5_000);
    let server = serve(events)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let provider = OpenAi::new(&OpenAiSettings::new(format!("http://{server}/v1")))?;
    ensure!(decoded(&chunks, length) == scanned(&chunks, length), "different texts");
    let mut others = Vec::new();
    for round in 0..options.rounds {
        let watch = Others::watch(&[])?;
        let each = EVENTS as f64;
        let (product, reference) = nanos(1, || _ = decoded(&chunks, <[u8]>::len), || _ = scanned(&chunks, <[u8]>::len));
        scan.round(product / each, reference / each);
        let (product, reference) = nanos(1, || _ = decoded(&chunks, length), || _ = scanned(&chunks, length));
        json.round(product / each, reference / each);
        let mut times = [0.0; 2];
        for turn in 0..2 {
            let before = thread_cpu_time()?;
            let at = (turn + round) % 2;
            let texts = match at {
                0 => runtime.block_on(generate(&provider))?,
                _ => runtime.block_on(fetch(server))?,
            };
            ensure!(texts == events, "{texts} texts of {events}");
            times[at] = thread_cpu_time()?.saturating_sub(before).as_secs_f64() * 1e9 / events as f64;
        }
        whole.round(times[0], times[1]);
        others.push(watch.cores()?);
    }
    let setup =
        format!("ns per event of {} bytes, read {READ} bytes at a time; over HTTP by CPU time", DELTA.len() + 8);
    Ok(Report::new(setup, vec![scan, json, whole], others))
}

/// A stream as it comes from a socket.
fn chunks() -> Vec<Bytes> {
    let stream = Bytes::from(format!("data: {DELTA}\n\n").repeat(EVENTS));
    (0..stream.len()).step_by(READ).map(|from| stream.slice(from..stream.len().min(from + READ))).collect()
}

/// The product's decoder.
fn decoded(chunks: &[Bytes], each: impl Fn(&[u8]) -> usize) -> usize {
    let mut decoder = SseDecoder::default();
    let mut total = 0;
    for chunk in chunks {
        let mut input = chunk.clone();
        while let Ok(Some(event)) = decoder.decode(&mut input) {
            total += each(&event.data);
        }
    }
    total
}

/// The least: one line is one event, and what is not whole is copied.
fn scanned(chunks: &[Bytes], each: impl Fn(&[u8]) -> usize) -> usize {
    let mut lines = Lines::default();
    chunks.iter().map(|chunk| lines.scan(chunk, &each)).sum()
}

#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn scan(&mut self, mut input: &[u8], each: impl Fn(&[u8]) -> usize) -> usize {
        let mut total = 0;
        while let Some(end) = memchr(b'\n', input) {
            let line = if self.partial.is_empty() {
                &input[..end]
            } else {
                self.partial.extend_from_slice(&input[..end]);
                &self.partial
            };
            if let Some(data) = line.strip_prefix(b"data: ") {
                total += each(data);
            }
            self.partial.clear();
            input = &input[end + 1..];
        }
        self.partial.extend_from_slice(input);
        total
    }
}

/// Bytes of the text in an event; 0 for what is none.
fn length(data: &[u8]) -> usize {
    let event = serde_json::from_slice::<Event<'_>>(data);
    event.ok().and_then(|event| event.choices.first().map(|choice| choice.delta.content.len())).unwrap_or(0)
}

/// The product's provider: the number of texts.
async fn generate(provider: &OpenAi) -> Result<usize> {
    let messages = vec![PromptMessage { role: PromptRole::User, text: "hello".to_owned() }];
    let prompt = Prompt { upstream_model: "bench".to_owned(), messages, max_output_tokens: 1_000, ..Prompt::default() };
    let mut stream = provider.generate(prompt).await?;
    let mut texts = 0;
    while let Some(chunk) = stream.next().await {
        texts += usize::from(matches!(chunk?, Chunk::Text(_)));
    }
    Ok(texts)
}

/// The same without the product.
async fn fetch(server: SocketAddr) -> Result<usize> {
    let mut response = http::client().post(format!("http://{server}/v1/chat/completions")).body("{}").send().await?;
    let mut lines = Lines::default();
    let mut texts = 0;
    while let Some(chunk) = response.chunk().await? {
        texts += lines.scan(&chunk, |data| usize::from(length(data) > 0));
    }
    Ok(texts)
}

/// Answers every request with so many events, from a thread that ends with this process.
fn serve(events: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let block: Arc<str> = format!("data: {DELTA}\n\n").repeat(EVENTS).into();
    ensure!(events.is_multiple_of(EVENTS), "whole blocks");
    let _ends_with_the_process = thread::Builder::new().name("provider".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            // Whoever asked sees that the answer is not whole.
            let _ = stream.map_err(Into::into).and_then(|stream| answer(stream, &block, events / EVENTS));
        }
    })?;
    Ok(address)
}

fn answer(mut stream: std::net::TcpStream, block: &str, blocks: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    request.take(length).read_to_end(&mut Vec::new()).context("the body")?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
    for _ in 0..blocks {
        stream.write_all(block.as_bytes())?;
    }
    stream.write_all(format!("data: {FINISH}\n\ndata: [DONE]\n\n").as_bytes())?;
    Ok(())
}
