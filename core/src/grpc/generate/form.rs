//! The form of a `start`: every field checked, each mistake named.

use chatbox_proto::{
    status::Failure,
    v1::generate_request::{Parameters, PromptMessage as WireMessage, PromptRole as WireRole},
};

use crate::{
    grpc::convert::bounded,
    llm::{ModelInfo, PromptMessage, PromptRole, Sampling, StopStrings},
};

const MAX_STOPS: usize = 4;
const MAX_STOP_CHARS: usize = 64;

/// The messages of a start. `first`: they begin the conversation.
pub(super) fn messages(wire: Vec<WireMessage>, first: bool) -> Result<Vec<PromptMessage>, Failure> {
    if wire.is_empty() {
        return Err(Failure::invalid("start.messages", "at least one"));
    }
    wire.into_iter().enumerate().map(|(index, wire)| message(index, wire, first)).collect()
}

fn message(index: usize, wire: WireMessage, first: bool) -> Result<PromptMessage, Failure> {
    let field = |name: &str| format!("start.messages[{index}].{name}");
    let role = match WireRole::try_from(wire.role) {
        Ok(WireRole::User) => PromptRole::User,
        Ok(WireRole::Assistant) => PromptRole::Assistant,
        Ok(WireRole::System) if first && index == 0 => PromptRole::System,
        Ok(WireRole::System) => {
            let rule = "PROMPT_ROLE_SYSTEM is for the first message of the conversation only";
            return Err(Failure::invalid(field("role"), rule));
        }
        Ok(WireRole::Unspecified) | Err(_) => return Err(Failure::invalid(field("role"), "must be a known role")),
    };
    if !wire.file_ids.is_empty() {
        return Err(Failure::invalid(field("file_ids"), "files are not available yet"));
    }
    let mut text = wire.text;
    // As in sessions: providers do not agree on NUL, everything else stays.
    text.retain(|c| c != '\0');
    if text.is_empty() {
        return Err(Failure::invalid(field("text"), "at least one character"));
    }
    Ok(PromptMessage { role, text })
}

/// What the parameters ask of this model: its limit of output, and how it picks its words.
pub(super) fn parameters(wire: Option<Parameters>, model: &ModelInfo) -> Result<(u32, Sampling), Failure> {
    let Parameters { max_output_tokens, temperature, top_p, stop } = wire.unwrap_or_default();
    let most = model.max_output_tokens;
    let tokens = max_output_tokens.unwrap_or(most);
    if tokens == 0 || tokens > most {
        return Err(Failure::invalid("start.parameters.max_output_tokens", format!("1 to {most} for this model")));
    }
    if temperature.is_some_and(|value| !(0.0..=2.0).contains(&value)) {
        return Err(Failure::invalid("start.parameters.temperature", "0 to 2"));
    }
    if top_p.is_some_and(|value| !(value > 0.0 && value <= 1.0)) {
        return Err(Failure::invalid("start.parameters.top_p", "above 0, at most 1"));
    }
    if stop.len() > MAX_STOPS {
        return Err(Failure::invalid("start.parameters.stop", format!("at most {MAX_STOPS}")));
    }
    for text in &stop {
        if text.is_empty() {
            return Err(Failure::invalid("start.parameters.stop", format!("1 to {MAX_STOP_CHARS} characters each")));
        }
        bounded("start.parameters.stop", text, MAX_STOP_CHARS)?;
    }
    Ok((tokens, Sampling { temperature, top_p, stop: StopStrings(stop) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(role: WireRole, text: &str) -> WireMessage {
        WireMessage { role: role.into(), text: text.to_owned(), file_ids: Vec::new() }
    }

    fn field<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        result.unwrap_err().violations.first().map(|(field, _)| field.to_string()).unwrap_or_default()
    }

    #[test]
    fn every_bad_message_is_named_by_its_place() {
        let good = || wire(WireRole::User, "x");
        let file = WireMessage { file_ids: vec!["f".to_owned()], ..good() };
        for (list, first, expect) in [
            (vec![], true, "start.messages"),
            (vec![good(), wire(WireRole::Unspecified, "x")], true, "start.messages[1].role"),
            (vec![WireMessage { role: 99, ..good() }], true, "start.messages[0].role"),
            (vec![good(), wire(WireRole::System, "x")], true, "start.messages[1].role"),
            (vec![wire(WireRole::System, "x")], false, "start.messages[0].role"),
            (vec![wire(WireRole::User, "")], true, "start.messages[0].text"),
            (vec![wire(WireRole::Assistant, "\0")], true, "start.messages[0].text"),
            (vec![good(), file], false, "start.messages[1].file_ids"),
        ] {
            assert_eq!(field(messages(list, first)), expect);
        }
    }

    #[test]
    fn text_loses_nul_and_nothing_else() {
        let text = "<b> & \"q\" \0 ünï\r\n\u{202e}";
        let list = messages(vec![wire(WireRole::System, text), wire(WireRole::Assistant, "a")], true).unwrap();
        assert_eq!((list[0].text.as_str(), list[0].role), ("<b> & \"q\"  ünï\r\n\u{202e}", PromptRole::System));
        assert_eq!(list[1].role, PromptRole::Assistant);
    }

    #[test]
    fn every_bad_parameter_is_named_and_the_ends_of_each_range_pass() {
        let model = ModelInfo { max_output_tokens: 100, ..ModelInfo::default() };
        let check = |wire: Parameters| parameters(Some(wire), &model);
        for tokens in [0, 101] {
            let wire = Parameters { max_output_tokens: Some(tokens), ..Parameters::default() };
            assert_eq!(field(check(wire)), "start.parameters.max_output_tokens");
        }
        for bad in [-0.1, 2.1, f32::NAN, f32::INFINITY] {
            let wire = Parameters { temperature: Some(bad), ..Parameters::default() };
            assert_eq!(field(check(wire)), "start.parameters.temperature", "{bad}");
        }
        for bad in [0.0, -1.0, 1.1, f32::NAN] {
            assert_eq!(
                field(check(Parameters { top_p: Some(bad), ..Parameters::default() })),
                "start.parameters.top_p"
            );
        }
        for bad in [vec![String::new()], vec!["x".repeat(65)], vec!["x".to_owned(); 5]] {
            assert_eq!(field(check(Parameters { stop: bad, ..Parameters::default() })), "start.parameters.stop");
        }
        let most = Parameters {
            max_output_tokens: Some(100),
            temperature: Some(2.0),
            top_p: Some(1.0),
            stop: vec!["ü".repeat(64); 4],
        };
        let (tokens, sampling) = check(most).unwrap();
        assert_eq!((tokens, sampling.temperature, sampling.stop.0.len()), (100, Some(2.0), 4));
        assert_eq!(parameters(None, &model).unwrap(), (100, Sampling::default()));
    }
}
