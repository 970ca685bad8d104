//! What a provider sends: what comes out does not depend on where the network cut it, and no event is larger than allowed.

use bytes::Bytes;
use chatbox_core::llm::{
    Chunk, ProviderError, openai,
    sse::{EventTooLarge, SseDecoder, SseEvent},
};

/// Beyond this length not every place is tried as a cut.
const CUT_EVERYWHERE: usize = 256;
const NO_LIMIT: usize = usize::MAX / 2;

/// Server-sent events: the first byte chooses the limit, the rest is the stream.
pub fn sse(data: &[u8]) {
    let Some((&first, stream)) = data.split_first() else { return };
    let expected = reference(stream);
    let (all, error) = events([stream], NO_LIMIT);
    assert_eq!((&all, error), (&expected, false), "not what the HTML standard says");
    let limit = usize::from(first);
    let whole = events([stream], limit);
    assert!(expected.starts_with(&whole.0), "a limit only ends a stream");
    assert!(whole.0.iter().all(|event| event.data.len() + event.name.len() <= limit));
    for (one, other) in cuts(stream) {
        assert_eq!(events([one, other], limit), whole, "cut after {} bytes", one.len());
    }
    assert_eq!(events(stream.chunks(1), limit), whole, "byte by byte");
}

/// All events, and whether the stream was refused in the end.
fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<SseEvent>, bool) {
    let mut decoder = SseDecoder::new(limit);
    let mut out = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event)) => out.push(event),
                Ok(None) => break,
                Err(EventTooLarge) => {
                    assert_eq!(decoder.decode(&mut Bytes::from_static(b"data: more\n\n")), Err(EventTooLarge));
                    return (out, true);
                }
            }
        }
        assert!(input.is_empty(), "input is used up before more is asked for");
    }
    (out, false)
}

fn cuts(stream: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let step = (stream.len() / CUT_EVERYWHERE).max(1);
    (0..=stream.len()).step_by(step).map(|at| stream.split_at(at))
}

/// The event stream of the HTML standard (9.2.6), written for clarity, over a whole stream.
fn reference(stream: &[u8]) -> Vec<SseEvent> {
    let mut rest = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let (mut out, mut event, mut lines) = (Vec::new(), SseEvent::default(), Vec::<Vec<u8>>::new());
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let (line, after) = rest.split_at(end);
        rest = after.strip_prefix(b"\r\n").unwrap_or(&after[1..]);
        if line.is_empty() {
            let name = std::mem::take(&mut event.name);
            if !lines.is_empty() {
                let data = std::mem::take(&mut lines).join(&b'\n').into();
                out.push(SseEvent { name, id: event.id.clone(), data });
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => lines.push(value.to_vec()),
            b"event" => event.name = Bytes::copy_from_slice(value),
            b"id" if !value.contains(&0) => event.id = Bytes::copy_from_slice(value),
            _ => {}
        }
    }
    out
}

/// The answer of an OpenAI-compatible server.
pub fn chunks(data: &[u8]) {
    let whole = decoded([data]);
    for (one, other) in cuts(data).step_by(1 + data.len() / 64) {
        assert_eq!(decoded([one, other]), whole, "cut after {} bytes", one.len());
    }
    assert_eq!(decoded(data.chunks(1)), whole, "byte by byte");
    let (chunks, outcome) = whole;
    let finished = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Finished(_))).count();
    assert_eq!(finished, usize::from(outcome.is_ok()), "an answer is complete when it says so, once");
    assert!(outcome.is_err() || matches!(chunks.last(), Some(Chunk::Finished(_))), "the end comes last");
    assert!(chunks.iter().filter(|chunk| matches!(chunk, Chunk::RequestId(_))).count() <= 1);
    for chunk in &chunks {
        match chunk {
            Chunk::Text(text) => assert!(!text.is_empty()),
            Chunk::RequestId(id) => assert!(!id.is_empty() && id.len() <= 200 && id.is_ascii()),
            Chunk::Usage(_) | Chunk::Finished(_) | Chunk::Reasoning => {}
            Chunk::Model(_) | Chunk::Conversation(_) => unreachable!("this format has none"),
        }
    }
    if let Err(ProviderError::Event(name)) = outcome {
        assert!(name.len() <= 32, "what a server calls its error is not passed on: {name}");
    }
}

fn decoded<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Chunk>, Result<(), ProviderError>) {
    openai::decode_recorded(pieces.into_iter().map(Bytes::copy_from_slice), 4096)
}
