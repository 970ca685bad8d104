//! Text messages through Twilio's REST API (2010-04-01, Messages resource), or a service that speaks it.

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chatbox_proto::token::Secret;
use reqwest::{Client, Url, header::AUTHORIZATION, header::CONTENT_TYPE};

use super::{Channel, DeliveryError, Message, address, retry_after, webhook};

/// Where Twilio is.
pub const TWILIO: &str = "https://api.twilio.com";
/// Longest text that is sent, in characters: three segments of a long message in the 7-bit alphabet.
const MAX_TEXT: usize = 459;

/// One number that is told.
#[derive(Debug)]
pub struct Sms {
    client: Client,
    url: Url,
    account: String,
    token: Secret,
    from: String,
    to: String,
}

impl Sms {
    /// Sets one up. `allow_private` allows plain http and addresses that are not public.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(
        base_url: &str,
        account: String,
        token: Secret,
        from: String,
        to: String,
        allow_private: bool,
    ) -> Result<Self, &'static str> {
        let mut url = Url::parse(base_url).map_err(|_| "is not a URL")?;
        address::check(&url, allow_private)?;
        url.set_path(&format!("{}/2010-04-01/Accounts/{account}/Messages.json", url.path().trim_end_matches('/')));
        let client =
            webhook::client(&url, allow_private).map_err(|_| "has no usable certificate store on this machine")?;
        Ok(Self { client, url, account, token, from, to })
    }
}

/// A number as E.164 writes it, or the id of a messaging service.
#[must_use]
pub fn is_number(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
    })
}

#[async_trait]
impl Channel for Sms {
    async fn deliver(&self, message: &Message) -> Result<(), DeliveryError> {
        let text = format!("{}\n{}", message.subject, message.body);
        let text: String = text.chars().take(MAX_TEXT).collect();
        let mut form = Url::parse("form:").expect("a constant");
        form.query_pairs_mut().append_pair("To", &self.to).append_pair("From", &self.from).append_pair("Body", &text);
        let credentials = BASE64_STANDARD.encode(format!("{}:{}", self.account, self.token.expose()));
        let answer = self
            .client
            .post(self.url.clone())
            .header(AUTHORIZATION, format!("Basic {credentials}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            // Not used by Twilio; kept by gateways in between, which recognise a repetition by it.
            .header("idempotency-key", &message.id)
            .body(form.query().unwrap_or_default().to_owned())
            .send()
            .await
            .map_err(|error| webhook::failure(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let wait = retry_after(answer.headers());
        Err(DeliveryError::of_status(status.as_u16(), wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_e164_says() {
        assert!(is_number("+4915112345678") && is_number("+12025550123"));
        for junk in ["", "+", "4915112345678", "+0151123456", "+49 151", "+1234567890123456", "+49a51123456"] {
            assert!(!is_number(junk), "{junk}");
        }
    }
}
