//! Makes text of strangers harmless for a terminal. What a model or another person writes may hold escape sequences that
//! move the cursor, retitle the window or write to the clipboard: nothing of them is passed on.

/// Where in an escape sequence the text is (ECMA-48 section 5, and what xterm adds to it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    /// After ESC.
    Escape,
    /// Parameters of a control sequence.
    Control,
    /// A control string: a title, a clipboard. `true`: the last character was ESC.
    Text(bool),
}

/// Removes control characters and escape sequences, except line feed and tab. Keeps its place between the pieces of a
/// text, so that a sequence cut in two is still seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlainText(State);

impl PlainText {
    /// The harmless part of the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        let mut plain = String::with_capacity(piece.len());
        for c in piece.chars() {
            self.next(c, &mut plain);
        }
        plain
    }

    fn next(&mut self, c: char, plain: &mut String) {
        // No sequence crosses the end of a line: one that was never closed must not swallow the rest of the text.
        if c == '\n' {
            self.0 = State::Ground;
        }
        match (self.0, c) {
            (State::Ground, '\n' | '\t') => plain.push(c),
            // The introducers have one-character forms, and each ends what came before.
            (State::Ground | State::Escape | State::Control, '\u{1b}') => self.0 = State::Escape,
            (State::Ground | State::Escape | State::Control, '\u{9b}') => self.0 = State::Control,
            (State::Ground | State::Escape | State::Control, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => {
                self.0 = State::Text(false);
            }
            (State::Ground, _) if c.is_control() => {}
            (State::Ground, _) => plain.push(c),

            (State::Escape, '[') => self.0 = State::Control,
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => self.0 = State::Text(false),
            // Intermediate characters; the sequence goes on.
            (State::Escape, ' '..='/') => {}
            (State::Escape, '0'..='~') => self.0 = State::Ground,

            (State::Control, ' '..='?') => {}
            (State::Control, '@'..='~') => self.0 = State::Ground,

            // BEL, ST, CAN and SUB end a string.
            (State::Text(_), '\u{7}' | '\u{9c}' | '\u{18}' | '\u{1a}') | (State::Text(true), '\\') => {
                self.0 = State::Ground;
            }
            (State::Text(_), _) => self.0 = State::Text(c == '\u{1b}'),

            // Not part of any sequence: it belongs to the text.
            (State::Escape | State::Control, _) => {
                self.0 = State::Ground;
                if !c.is_control() || c == '\t' {
                    plain.push(c);
                }
            }
        }
    }
}

/// A whole text, harmless.
pub(crate) fn plain(text: &str) -> String {
    PlainText::default().push(text)
}

/// A name or a reason, harmless and on one line.
pub(crate) fn plain_line(text: &str) -> String {
    plain(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequences_go_and_the_text_around_them_stays() {
        for (text, expected) in [
            ("plain äöü 漢字 🙂", "plain äöü 漢字 🙂"),
            ("a\tb\r\nc\u{7}\u{8}\u{0}\u{7f}d", "a\tb\ncd"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[2J\u{1b}[1;1Hx", "x"),
            ("\u{9b}31mred", "red"),
            ("\u{1b}]0;title\u{7}x", "x"),
            ("\u{1b}]52;c;aGk=\u{1b}\\x", "x"),
            ("\u{9d}0;title\u{9c}x", "x"),
            ("\u{1b}Pq#0\u{1b}\\x", "x"),
            ("\u{1b}(0x\u{1b}cy", "xy"),
            ("\u{1b}\u{1b}[1mx", "x"),
            // Never closed: the line is lost, the text is not.
            ("\u{1b}]0;title\nrest", "\nrest"),
            ("\u{1b}[31\nrest", "\nrest"),
            ("\u{1b}é\u{1b}[é", "éé"),
            ("\u{1b}", ""),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
        assert_eq!(plain_line(" a\u{1b}[1m\n\tb  c "), "a b c");
    }

    /// Texts that are mostly made of what sequences are made of.
    fn nasty() -> impl Strategy<Value = String> {
        let parts = prop_oneof![
            Just("\u{1b}"),
            Just("["),
            Just("]"),
            Just("\u{9b}"),
            Just("\u{9d}"),
            Just("\u{7}"),
            Just("\\"),
            Just("31"),
            Just(";"),
            Just("m"),
            Just("P"),
            Just("\n"),
            Just("\t"),
            Just("\r"),
            Just("é"),
            Just("word "),
            Just("\u{18}")
        ];
        prop_oneof![prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat()), any::<String>()]
    }

    proptest! {
        #[test]
        fn nothing_that_controls_a_terminal_is_left(text in nasty()) {
            prop_assert!(plain(&text).chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        }

        #[test]
        fn how_the_text_was_cut_makes_no_difference(text in nasty(), cut in any::<prop::sample::Index>()) {
            let at = cut.index(text.chars().count() + 1);
            let (first, second): (String, String) = (text.chars().take(at).collect(), text.chars().skip(at).collect());
            let mut pieces = PlainText::default();
            let joined = pieces.push(&first) + &pieces.push(&second);
            prop_assert_eq!(joined, plain(&text));
        }

        #[test]
        fn text_without_control_characters_is_unchanged(text in "[^\\p{Cc}]*(\n[^\\p{Cc}]*)*") {
            prop_assert_eq!(plain(&text), text);
        }
    }
}
