//! Subject and text of an alert: words of the operator with places for facts.

use std::fmt::Write as _;

use super::AlertEvent;

/// Longest value that is put in, in characters.
const MAX_VALUE: usize = 500;
/// Longest subject, in characters: what fits into the line of a mail program.
pub const MAX_SUBJECT: usize = 150;
/// Longest text, in characters.
pub const MAX_BODY: usize = 4_000;

/// What can be put in.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The session.
    pub session: String,
    /// Who asks.
    pub user: String,
    /// Why, in the visitor's words.
    pub reason: String,
    /// What it is about besides.
    pub detail: String,
    /// When it happened, RFC 3339 in UTC.
    pub time: String,
    /// Where to act.
    pub link: String,
}

impl Facts {
    fn get(&self, name: &str) -> Option<&str> {
        Some(match name {
            "session" => &self.session,
            "user" => &self.user,
            "reason" => &self.reason,
            "detail" => &self.detail,
            "time" => &self.time,
            "link" => &self.link,
            _ => return None,
        })
    }
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(String),
}

/// A text with places like `{session}`; `{{` is a brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("a } without its {; a brace in the text is written twice".to_owned());
            }
            let (name, after) =
                rest.split_once('}').ok_or("a { without its }; a brace in the text is written twice")?;
            if Facts::default().get(name).is_none() {
                return Err(format!("{{{name}}} is none of session, user, reason, detail, time, link"));
            }
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Place(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The built-in subject and text of an event.
    #[must_use]
    pub fn built_in(event: AlertEvent) -> (Self, Self) {
        let (subject, body) = match event {
            AlertEvent::HelpRequested => (
                "A visitor asks for a person",
                "{user} asks for a person since {time}.\nReason: {reason}\nSession: {session}\n{link}",
            ),
            AlertEvent::ProviderDown => (
                "The model provider {detail} fails",
                "Since {time} the provider {detail} is left alone after too many failures. It is tried again by itself.",
            ),
            AlertEvent::StoreDown => (
                "The chat store did not answer",
                "From {time} on the store did not answer for {detail}. Nothing that was acknowledged is lost.",
            ),
            AlertEvent::CrashLoop => {
                ("Chat cores start again and again", "{detail} starts of core within a short time, the last at {time}.")
            }
            AlertEvent::AbnormalTraffic => (
                "Unusual traffic at the chat service",
                "At {time} one core refused {detail} calls and frames within a minute.",
            ),
        };
        let parse = |text| Self::parse(text).expect("the built-in templates are well formed");
        (parse(subject), parse(body))
    }

    /// With the facts put in: one line, at most [`MAX_SUBJECT`] characters.
    #[must_use]
    pub fn line(&self, facts: &Facts) -> String {
        let text = self.text(facts).replace('\n', " ");
        text.trim().chars().take(MAX_SUBJECT).collect()
    }

    /// With the facts put in: at most [`MAX_BODY`] characters. A value is one line whatever it holds.
    #[must_use]
    pub fn text(&self, facts: &Facts) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Place(name) => {
                    let _ = write!(text, "{}", clean(facts.get(name).unwrap_or_default()));
                }
            }
        }
        text.chars().take(MAX_BODY).collect()
    }
}

/// One line of at most [`MAX_VALUE`] visible characters: no line ends, no control characters, nothing that turns the
/// direction of what follows (Unicode TR 9, also used to disguise links).
fn clean(value: &str) -> String {
    let spaced = value.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let visible = spaced.filter(|c| {
        let turns =
            matches!(*c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        !c.is_control() && !turns
    });
    let mut text: String = visible.take(MAX_VALUE + 1).collect();
    if let Some((at, _)) = text.char_indices().nth(MAX_VALUE) {
        text.truncate(at);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(template: &str, facts: &Facts) -> String {
        Template::parse(template).unwrap().text(facts)
    }

    #[test]
    fn places_are_filled_and_doubled_braces_are_braces() {
        let facts = Facts { session: "s1".to_owned(), user: "Ann".to_owned(), ..Facts::default() };
        assert_eq!(rendered("{user} in {session}: {{x}} {reason}.", &facts), "Ann in s1: {x} .");
        assert_eq!(rendered("", &facts), "");
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said() {
        for (text, wrong) in [("{sesion}", "{sesion} is none of"), ("a {", "a { without"), ("a } b", "a } without")] {
            assert!(Template::parse(text).unwrap_err().contains(wrong), "{text}");
        }
    }

    #[test]
    fn a_value_cannot_bring_lines_headers_or_places_of_its_own() {
        let reason = "help\r\nBcc: all@example.org\n\n{session}\u{202e}gpj\u{7}".to_owned();
        let facts = Facts { reason, session: "secret".to_owned(), ..Facts::default() };
        assert_eq!(rendered("Reason: {reason}", &facts), "Reason: help  Bcc: all@example.org  {session}gpj");
        assert_eq!(Template::parse("{reason}").unwrap().line(&facts).lines().count(), 1);
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let facts = Facts { reason: "ä".repeat(10_000), ..Facts::default() };
        assert_eq!(rendered("{reason}", &facts), "ä".repeat(MAX_VALUE) + "…");
        assert_eq!(Template::parse("{reason}").unwrap().line(&facts).chars().count(), MAX_SUBJECT);
        assert_eq!(rendered(&"{reason}".repeat(20), &facts).chars().count(), MAX_BODY);
    }

    #[test]
    fn every_event_has_a_text_that_is_well_formed() {
        for event in AlertEvent::ALL {
            let (subject, body) = Template::built_in(event);
            assert!(!subject.line(&Facts::default()).is_empty() && !body.text(&Facts::default()).is_empty());
            assert_eq!(AlertEvent::from_name(event.name()), Some(event));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_template_or_refused_and_any_value_is_one_line(text in ".*", value in "(?s).*") {
            let facts = Facts { reason: value, ..Facts::default() };
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(template.line(&facts).contains(['\n', '\r']), text.contains('\r') && template.line(&facts).contains('\r'));
            }
            prop_assert_eq!(rendered("{reason}", &facts).lines().count() <= 1, true);
        }
    }
}
