//! A reply while it is generated: what of it is on the screen, where nothing can be taken back.

/// A running reply.
#[derive(Debug)]
pub(super) struct RunningReply {
    pub(super) message_id: String,
    /// Seq of the entry that started it.
    pub(super) started_seq: u64,
    /// What was shown.
    text: String,
    /// What was shown is not what the server has: nothing more is shown before the end.
    diverged: bool,
}

impl RunningReply {
    pub(super) fn new(message_id: &str, started_seq: u64) -> Self {
        Self { message_id: message_id.to_owned(), started_seq, text: String::new(), diverged: false }
    }

    /// Whether it can be continued from [`next_offset`](Self::next_offset).
    pub(super) fn is_sound(&self) -> bool {
        !self.diverged
    }

    /// How much of it we have, in bytes.
    pub(super) fn next_offset(&self) -> u32 {
        u32::try_from(self.text.len()).unwrap_or(u32::MAX)
    }

    /// What a delta or a snapshot adds to what was shown. Deltas continue where the one before ended; after a resume a
    /// piece may begin earlier. A piece that begins later is not shown: the terminal entry has what is missing.
    pub(super) fn piece(&mut self, offset: u32, text: &str) -> Option<String> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if self.diverged || offset > self.text.len() {
            return None;
        }
        let known = self.text.get(offset..);
        match known.map(|known| (text.strip_prefix(known), known.starts_with(text))) {
            Some((Some(new), _)) if !new.is_empty() => {
                self.text.push_str(new);
                Some(new.to_owned())
            }
            Some((Some(_), _) | (None, true)) => None,
            Some((None, false)) | None => {
                self.diverged = true;
                None
            }
        }
    }

    /// What the whole text adds. `None`: what was shown is something else. An interrupted reply may be shorter than what
    /// was streamed of it; what was shown stays.
    pub(super) fn rest<'a>(&self, whole: &'a str) -> Option<&'a str> {
        if self.diverged {
            return None;
        }
        whole.strip_prefix(self.text.as_str()).or_else(|| self.text.starts_with(whole).then_some(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pieces: &[(u32, &str)]) -> (RunningReply, String) {
        let mut reply = RunningReply::new("m", 2);
        let shown = pieces.iter().filter_map(|(offset, text)| reply.piece(*offset, text)).collect();
        (reply, shown)
    }

    #[test]
    fn a_piece_that_begins_earlier_adds_only_what_is_new() {
        for pieces in [
            &[(0, "hé"), (3, "llo")][..],
            &[(0, "hé"), (0, "héllo")],
            &[(0, "héllo"), (3, "l"), (0, "")],
            &[(0, "hé"), (1, "éll"), (5, "o")],
        ] {
            let (reply, shown) = after(pieces);
            assert_eq!((shown.as_str(), reply.next_offset()), ("héllo", 6), "{pieces:?}");
            assert_eq!(reply.rest("héllo!"), Some("!"));
        }
    }

    #[test]
    fn what_is_missing_comes_with_the_whole_text() {
        let (reply, shown) = after(&[(0, "a"), (2, "c"), (3, "d")]);
        assert_eq!((shown.as_str(), reply.rest("abcd")), ("a", Some("bcd")));
    }

    #[test]
    fn what_does_not_fit_stops_the_stream_of_text_until_the_end() {
        for pieces in [&[(0, "abc"), (1, "x"), (3, "d")][..], &[(0, "é"), (1, "x"), (2, "y")]] {
            let (reply, shown) = after(pieces);
            assert_eq!(shown, pieces[0].1);
            assert!(!reply.is_sound() && reply.rest("abcd").is_none());
        }
    }

    #[test]
    fn a_shorter_whole_text_takes_nothing_back() {
        let (reply, _) = after(&[(0, "abc")]);
        assert_eq!((reply.rest("ab"), reply.rest("abx")), (Some(""), None));
    }
}
