//! Canonical protobuf JSON with errors that name the field.
//!
//! Source of the form: <https://protobuf.dev/programming-guides/json/>: lowerCamelCase names (snake_case is accepted too),
//! 64-bit integers as strings, enums by name, RFC 3339 timestamps.

use serde::{Serialize, de::DeserializeOwned};

use crate::status::Failure;

/// Longest field path that is shown, in characters.
const MAX_PATH: usize = 128;

/// Reads a message; unknown fields are ignored, since a client may be newer than we are.
///
/// # Errors
/// [`Failure::invalid`] that names the field and the rule.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        invalid(path, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| invalid(".".to_owned(), &error))?;
    Ok(value)
}

/// Reads a message and refuses unknown fields: for unary bodies, where a misspelt field would otherwise be lost silently.
///
/// # Errors
/// [`Failure::invalid`] that names the field and the rule.
pub fn from_slice_strict<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    let mut unknown = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let result: Result<T, _> = serde_ignored::deserialize(tracked, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let value = result.map_err(|error| invalid(track.path().to_string(), &error))?;
    deserializer.end().map_err(|error| invalid(".".to_owned(), &error))?;
    match unknown {
        Some(path) => Err(Failure::invalid(path.chars().take(MAX_PATH).collect::<String>(), "no such field")),
        None => Ok(value),
    }
}

/// An enum value as the generated code writes it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum EnumValue<T> {
    /// One that we know.
    Name(T),
    /// One that only a newer peer knows.
    Number(i32),
}

/// Writes a message of our own making. Fields with their default value are left out.
#[must_use]
pub fn to_string<T: Serialize>(message: &T) -> String {
    serde_json::to_string(message).expect("generated messages have string keys and do not fail to serialize")
}

/// Writes a message that somebody else made; `None` when it holds a value without a JSON form, like a duration whose parts
/// have different signs.
#[must_use]
pub fn try_to_string<T: Serialize>(message: &T) -> Option<String> {
    serde_json::to_string(message).ok()
}

/// Like [`to_string`], into bytes.
#[must_use]
pub fn to_vec<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("generated messages have string keys and do not fail to serialize")
}

/// The text of serde's error may quote the value of a string field, which is a stranger's message text: only its class is
/// passed on.
fn invalid(path: String, error: &serde_json::Error) -> Failure {
    // A path is made of the contract's names, until a stranger's own field comes into it.
    let field = if path == "." { "frame".to_owned() } else { path.chars().take(MAX_PATH).collect() };
    let rule = match error.classify() {
        serde_json::error::Category::Syntax => {
            format!("not valid JSON at line {} column {}", error.line(), error.column())
        }
        serde_json::error::Category::Eof => "the JSON text ends too early".to_owned(),
        serde_json::error::Category::Data => {
            format!("not of the field's type, or given twice, at line {} column {}", error.line(), error.column())
        }
        serde_json::error::Category::Io => "not readable".to_owned(),
    };
    Failure::invalid(field, rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ChatRequest, CreateSessionRequest, chat_request};

    #[test]
    fn the_field_is_named_and_the_value_is_not() {
        let failure =
            from_slice::<ChatRequest>(br#"{"send":{"clientMessageId":"a","text":{"secret":1}}}"#).unwrap_err();
        assert_eq!(failure.violations[0].0, "send.text");
        let failure = from_slice::<ChatRequest>(br#"{"read":{"seq":"secret"}}"#).unwrap_err();
        assert_eq!(failure.violations[0].0, "read.seq");
        assert!(!failure.to_string().contains("secret"));
    }

    #[test]
    fn both_spellings_are_read_and_64_bit_numbers_are_strings() {
        for text in [r#"{"requestId":"r","open":{"afterSeq":"7"}}"#, r#"{"request_id":"r","open":{"after_seq":7}}"#] {
            let frame: ChatRequest = from_slice(text.as_bytes()).unwrap();
            assert_eq!(frame.request_id, "r");
            let Some(chat_request::Frame::Open(open)) = &frame.frame else { panic!("not an open frame") };
            assert_eq!(open.after_seq, Some(7));
            assert_eq!(to_string(&frame), r#"{"requestId":"r","open":{"afterSeq":"7"}}"#);
        }
    }

    #[test]
    fn unknown_fields_are_ignored_in_frames_and_refused_in_bodies() {
        assert!(from_slice::<ChatRequest>(br#"{"detach":{},"later":1}"#).is_ok());
        let failure = from_slice_strict::<CreateSessionRequest>(br#"{"modle":"x"}"#).unwrap_err();
        assert_eq!(failure.violations[0].0, "modle");
    }

    #[test]
    fn an_enum_value_of_a_newer_peer_is_written_as_its_number() {
        let error = crate::v1::Error { code: 4_711, ..crate::v1::Error::default() };
        assert_eq!(to_string(&error), r#"{"code":4711}"#);
    }

    #[test]
    fn text_after_the_value_is_refused() {
        assert!(from_slice::<ChatRequest>(b"{} {}").is_err());
    }
}
