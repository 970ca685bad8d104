//! Server-sent events, decoded incrementally.
//!
//! Pure: bytes in, events out, no I/O. Lines end with LF, CR or CRLF; a byte order mark at the very start is skipped; an
//! event that is not closed by a blank line before the end of the stream is dropped, as the HTML standard says. What
//! comes out does not depend on where the input was split.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// Bytes of one event, its unfinished line included, beyond which the stream is refused.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One event. The parts are bytes: whoever reads text out of them checks that they are UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    /// From `event:`; empty means `message`.
    pub name: Bytes,
    /// The last `id:` of the stream so far.
    pub id: Bytes,
    /// From `data:`, lines joined with LF.
    pub data: Bytes,
}

/// An event is larger than allowed. The decoder yields nothing more after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event too large")]
pub struct EventTooLarge;

/// Decodes one stream.
#[derive(Debug)]
pub struct SseDecoder {
    max_event_bytes: usize,
    /// The start of a line whose end has not come yet.
    partial: BytesMut,
    /// The last line ended with CR, so an LF that comes next belongs to it.
    skip_lf: bool,
    at_start: bool,
    failed: bool,
    name: Bytes,
    id: Bytes,
    data: Data,
}

/// The `data:` of the event so far. One line, the usual case, is a slice of the input and costs no copy.
#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    Line(Bytes),
    Lines(BytesMut),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Line(line) => line.len(),
            Self::Lines(lines) => lines.len(),
        }
    }

    fn push(&mut self, line: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::Line(line),
            Self::Line(first) => Self::Lines(joined(BytesMut::from(first), &line)),
            Self::Lines(lines) => Self::Lines(joined(lines, &line)),
        };
    }

    fn take(&mut self) -> Option<Bytes> {
        match std::mem::take(self) {
            Self::None => None,
            Self::Line(line) => Some(line),
            Self::Lines(lines) => Some(lines.freeze()),
        }
    }
}

fn joined(mut lines: BytesMut, line: &[u8]) -> BytesMut {
    lines.reserve(line.len() + 1);
    lines.extend_from_slice(b"\n");
    lines.extend_from_slice(line);
    lines
}

impl SseDecoder {
    /// Decodes a stream whose events are at most `max_event_bytes` long.
    #[must_use]
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            partial: BytesMut::new(),
            skip_lf: false,
            at_start: true,
            failed: false,
            name: Bytes::new(),
            id: Bytes::new(),
            data: Data::None,
        }
    }

    /// Takes the next event out of `input`. `None`: the input is used up, more is needed. At the end of the stream
    /// nothing has to be called: what is left is an unfinished event, which is dropped.
    ///
    /// # Errors
    /// An event exceeds the limit; every later call says the same.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<SseEvent>, EventTooLarge> {
        if self.failed {
            return Err(EventTooLarge);
        }
        while let Some(line) = self.next_line(input)? {
            if line.is_empty() {
                if let Some(event) = self.finish_event() {
                    return Ok(Some(event));
                }
            } else {
                self.field(&line);
            }
        }
        Ok(None)
    }

    fn next_line(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, EventTooLarge> {
        if self.skip_lf && !input.is_empty() {
            self.skip_lf = false;
            if input[0] == b'\n' {
                input.advance(1);
            }
        }
        let Some(end) = memchr2(b'\n', b'\r', input) else {
            self.check_size(input.len())?;
            self.partial.extend_from_slice(input);
            input.clear();
            return Ok(None);
        };
        self.check_size(end)?;
        let mut line = input.split_to(end);
        self.skip_lf = input[0] == b'\r';
        input.advance(1);
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&line);
            line = self.partial.split().freeze();
        }
        if std::mem::take(&mut self.at_start) && line.starts_with(BYTE_ORDER_MARK) {
            line.advance(BYTE_ORDER_MARK.len());
        }
        Ok(Some(line))
    }

    fn check_size(&mut self, added: usize) -> Result<(), EventTooLarge> {
        if self.partial.len() + self.data.len() + self.name.len() + added > self.max_event_bytes {
            self.failed = true;
            self.partial = BytesMut::new();
            self.data = Data::None;
            return Err(EventTooLarge);
        }
        Ok(())
    }

    /// One line that is not empty: a comment, a field with a value, or a field name alone.
    fn field(&mut self, line: &Bytes) {
        let colon = memchr(b':', line).unwrap_or(line.len());
        let mut value = line.slice((colon + 1).min(line.len())..);
        if value.first() == Some(&b' ') {
            value.advance(1);
        }
        match &line[..colon] {
            b"data" => self.data.push(value),
            b"event" => self.name = value,
            // The standard: an id with NUL in it is ignored.
            b"id" if memchr(0, &value).is_none() => self.id = value,
            // A comment (no name), `retry`, and whatever is not known.
            _ => {}
        }
    }

    fn finish_event(&mut self) -> Option<SseEvent> {
        let name = std::mem::take(&mut self.name);
        let data = self.data.take()?;
        Some(SseEvent { name, id: self.id.clone(), data })
    }
}

impl Default for SseDecoder {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_EVENT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything a stream yields when it arrives in these pieces.
    fn decode_pieces<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
        limit: usize,
    ) -> Vec<Result<SseEvent, EventTooLarge>> {
        let mut decoder = SseDecoder::new(limit);
        let mut out = Vec::new();
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(event)) => out.push(Ok(event)),
                    Ok(None) => break,
                    Err(error) => {
                        out.push(Err(error));
                        return out;
                    }
                }
            }
            assert!(input.is_empty(), "input is used up before more is asked for");
        }
        out
    }

    fn decode_whole(stream: &[u8]) -> Vec<SseEvent> {
        decode_pieces([stream], 1000).into_iter().map(|event| event.expect("within the limit")).collect()
    }

    fn data_of(stream: &[u8]) -> Vec<String> {
        decode_whole(stream).iter().map(|event| String::from_utf8(event.data.to_vec()).expect("UTF-8")).collect()
    }

    #[test]
    fn all_three_line_ends_close_lines_and_events() {
        for stream in [
            "data: a\n\ndata: b\n\n",
            "data: a\r\rdata: b\r\r",
            "data: a\r\n\r\ndata: b\r\n\r\n",
            "data: a\r\n\ndata: b\n\r\n",
        ] {
            assert_eq!(data_of(stream.as_bytes()), ["a", "b"], "{stream:?}");
        }
    }

    #[test]
    fn several_data_lines_are_joined_with_line_feeds() {
        assert_eq!(data_of(b"data: a\ndata\ndata:  b\ndata:\n\n"), ["a\n\n b\n"]);
    }

    #[test]
    fn comments_and_unknown_fields_are_ignored() {
        assert_eq!(data_of(b": ping\n\n:\n\nretry: 10\nfoo: bar\ndata: a\n: inside\n\n"), ["a"]);
    }

    #[test]
    fn only_one_space_after_the_colon_is_removed() {
        assert_eq!(data_of(b"data:x\n\ndata: x\n\ndata:  x\n\ndata:\tx\n\n"), ["x", "x", " x", "\tx"]);
    }

    #[test]
    fn an_event_without_data_yields_nothing_and_forgets_its_name() {
        let events = decode_whole(b"event: gone\n\ndata: a\n\n");
        assert_eq!(events, [SseEvent { data: "a".into(), ..SseEvent::default() }]);
    }

    #[test]
    fn name_belongs_to_one_event_and_id_stays() {
        let events = decode_whole(b"event: delta\nid: 7\ndata: a\n\ndata: b\n\nid: bad\0\ndata: c\n\nid\ndata: d\n\n");
        let expect = |name: &'static str, id: &'static str, data: &'static str| SseEvent {
            name: name.into(),
            id: id.into(),
            data: data.into(),
        };
        assert_eq!(
            events,
            [expect("delta", "7", "a"), expect("", "7", "b"), expect("", "7", "c"), expect("", "", "d")]
        );
    }

    #[test]
    fn an_event_without_its_blank_line_is_dropped_at_the_end() {
        assert_eq!(data_of(b"data: a\n\ndata: b\n"), ["a"]);
        assert_eq!(data_of(b"data: a\n\ndata: b"), ["a"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_start_only() {
        assert_eq!(data_of(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n"), ["a"]);
    }

    #[test]
    fn an_event_above_the_limit_is_an_error_and_stays_one() {
        let line = [b"data: ".as_slice(), &[b'x'; 94], b"\n"].concat();
        let fits = [line.as_slice(), b"\n"].concat();
        assert_eq!(decode_pieces([fits.as_slice()], 100).len(), 1);
        // One line too long, with and without an end; a long comment; many short lines.
        let long = [b'x'; 101];
        let comment = [b":".as_slice(), &[b'x'; 100], b"\n"].concat();
        for stream in [&long[..], &comment, &b"data: 34567890\n".repeat(20)] {
            assert_eq!(decode_pieces([stream], 100), [Err(EventTooLarge)]);
        }
        let mut decoder = SseDecoder::new(3);
        assert_eq!(decoder.decode(&mut Bytes::from_static(b"data")), Err(EventTooLarge));
        assert_eq!(decoder.decode(&mut Bytes::from_static(b"\n\n")), Err(EventTooLarge));
    }

    #[test]
    fn data_inside_one_piece_is_not_copied() {
        let mut input = Bytes::from(b"data: hello\n\n".to_vec());
        let place = input.as_ptr() as usize;
        let event = SseDecoder::default().decode(&mut input).expect("small").expect("complete");
        assert_eq!(event.data.as_ptr() as usize, place + 6);
    }

    const SAMPLE: &[u8] =
        b"\xEF\xBB\xBF: hi\r\nevent: delta\rid: 1\ndata: {\"t\":\"\xC3\xBC\xF0\x9F\x98\x80\"}\r\n\r\n\
        data: a\ndata: b\r\rdata: [DONE]\n\nrest: x";

    #[test]
    fn splitting_at_every_index_gives_the_same_events() {
        let whole = decode_pieces([SAMPLE], 1000);
        assert_eq!(whole.len(), 3);
        for at in 0..=SAMPLE.len() {
            let (head, tail) = SAMPLE.split_at(at);
            assert_eq!(decode_pieces([head, tail], 1000), whole, "split at {at}");
        }
        assert_eq!(decode_pieces(SAMPLE.chunks(1), 1000), whole, "byte by byte");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_events(
            stream in proptest::collection::vec(
                prop_oneof![
                    3 => Just(b'\n'), 2 => Just(b'\r'), 2 => Just(b':'), 1 => Just(b' '), 1 => Just(0_u8),
                    4 => proptest::sample::select(b"dataeventid".to_vec()), 2 => any::<u8>(),
                ],
                0..200,
            ),
            cuts in proptest::collection::vec(0_usize..200, 0..6),
            limit in 1_usize..80,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            cuts.push(stream.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> = cuts.into_iter().map(|to| &stream[std::mem::replace(&mut from, to)..to]).collect();
            prop_assert_eq!(decode_pieces(pieces, limit), decode_pieces([stream.as_slice()], limit));
        }

        #[test]
        fn any_lines_of_data_come_back_joined(lines in proptest::collection::vec("[^\r\n]{0,20}", 1..5)) {
            let mut stream: String = lines.iter().map(|line| format!("data: {line}\n")).collect();
            stream.push('\n');
            prop_assert_eq!(data_of(stream.as_bytes()), vec![lines.join("\n")]);
        }
    }
}
