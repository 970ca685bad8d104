//! The subset of AIP-160 that the audit trail is filtered by: `actor = "ann" AND create_time >= "2026-01-01T00:00:00Z"`.

use chatbox_proto::{status::Failure, time::Timestamp as WireTime};

use crate::{domain::time::Timestamp, grpc::convert, store::AuditQuery};

/// Conditions of one filter.
const MAX_CONDITIONS: usize = 10;
/// Characters of one filter.
const MAX_FILTER: usize = 1_000;

const RULE: &str =
    "conditions joined by AND: actor, action or session_id = \"value\", create_time >= or < \"RFC 3339 time\"";

/// The query that a filter stands for.
pub(super) fn audit(filter: &str) -> Result<AuditQuery, Failure> {
    let mut query = AuditQuery::default();
    if filter.trim().is_empty() {
        return Ok(query);
    }
    convert::bounded("filter", filter, MAX_FILTER)?;
    let mut rest = filter;
    for _ in 0..MAX_CONDITIONS {
        let (field, operator, value, after) = condition(rest).ok_or_else(bad)?;
        apply(&mut query, field, operator, value)?;
        let after = after.trim_start();
        if after.is_empty() {
            return Ok(query);
        }
        rest = after.strip_prefix("AND").filter(|rest| rest.starts_with(char::is_whitespace)).ok_or_else(bad)?;
    }
    Err(Failure::invalid("filter", "at most 10 conditions"))
}

fn bad() -> Failure {
    Failure::invalid("filter", RULE)
}

/// `field operator "value"`, and what comes after.
fn condition(text: &str) -> Option<(&str, &str, &str, &str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_lowercase() && c != '_')?;
    let (field, text) = text.split_at(end);
    let text = text.trim_start();
    let end = text.find(|c: char| !"<>=".contains(c))?;
    let (operator, text) = text.split_at(end);
    let text = text.trim_start().strip_prefix('"')?;
    let end = text.find('"')?;
    Some((field, operator, &text[..end], &text[end + 1..]))
}

fn apply(query: &mut AuditQuery, field: &str, operator: &str, value: &str) -> Result<(), Failure> {
    let once = |free: bool| if free { Ok(()) } else { Err(Failure::invalid("filter", "each field once")) };
    match (field, operator) {
        ("actor", "=") => {
            once(query.actor.is_none())?;
            query.actor = Some(value.to_owned());
        }
        ("action", "=") => {
            once(query.action.is_none())?;
            query.action = Some(value.to_owned());
        }
        ("session_id", "=") => {
            once(query.session_id.is_none())?;
            query.session_id = Some(convert::session_id("filter", value)?);
        }
        ("create_time", ">=") => {
            once(query.from.is_none())?;
            query.from = Some(time(value)?);
        }
        ("create_time", "<") => {
            once(query.until.is_none())?;
            query.until = Some(time(value)?);
        }
        _ => return Err(bad()),
    }
    Ok(())
}

fn time(value: &str) -> Result<Timestamp, Failure> {
    let quoted = serde_json::Value::String(value.to_owned());
    let time: WireTime = serde_json::from_value(quoted).map_err(|_| bad())?;
    let millis = time.seconds.checked_mul(1_000).ok_or_else(bad)?;
    Ok(Timestamp::from_millis(millis + i64::from(time.nanos / 1_000_000)))
}

#[cfg(test)]
mod tests {
    use chatbox_proto::ids::SessionId;

    use super::*;

    #[test]
    fn every_condition_is_understood_and_all_of_them_together() {
        let id = SessionId::generate();
        let filter = format!(
            "actor = \"ann b\" AND action=\"TakeOver\"  AND session_id = \"{id}\" AND \
             create_time >= \"2026-01-01T00:00:00Z\" AND create_time < \"2026-01-01T00:00:01.5Z\""
        );
        let expected = AuditQuery {
            actor: Some("ann b".into()),
            action: Some("TakeOver".into()),
            session_id: Some(id),
            from: Some(Timestamp::from_millis(1_767_225_600_000)),
            until: Some(Timestamp::from_millis(1_767_225_601_500)),
            ..AuditQuery::default()
        };
        assert_eq!(audit(&filter), Ok(expected));
        assert_eq!(audit("  "), Ok(AuditQuery::default()));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for bad in [
            "actor",
            "actor =",
            "actor = ann",
            "actor = \"ann",
            "actor != \"ann\"",
            "reason = \"x\"",
            "actor = \"a\" OR actor = \"b\"",
            "actor = \"a\" ANDactor = \"b\"",
            "actor = \"a\" AND actor = \"b\"",
            "actor = \"a\" AND",
            "session_id = \"x\"",
            "create_time > \"2026-01-01T00:00:00Z\"",
            "create_time >= \"yesterday\"",
            &format!("actor = \"{}\"", "x".repeat(2_000)),
        ] {
            assert_eq!(audit(bad).unwrap_err().violations[0].0, "filter", "{bad}");
        }
    }
}
