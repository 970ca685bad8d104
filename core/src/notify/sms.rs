//! Text messages through Twilio's REST API (2010-04-01, Messages resource), or a service that speaks it.

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chatbox_proto::token::Secret;
use reqwest::{Client, Url, header::AUTHORIZATION, header::CONTENT_TYPE};

use super::{
    Channel, DeliveryError, Message, address,
    outgoing::{client, send},
};

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
        let client = client(&url, allow_private).map_err(|_| "has no usable certificate store on this machine")?;
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
        let request = self
            .client
            .post(self.url.clone())
            .header(AUTHORIZATION, format!("Basic {credentials}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            // Not used by Twilio; kept by gateways in between, which recognise a repetition by it.
            .header("idempotency-key", &message.id)
            .body(form.query().unwrap_or_default().to_owned());
        send(request).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes one request, answers it with this, and gives what it was.
    async fn serve(listener: tokio::net::TcpListener, answer: &str) -> String {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"%3Dalle") {
            assert!(socket.read_buf(&mut request).await.unwrap() > 0, "the request is whole");
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    async fn deliver(answer: &str) -> (Result<(), DeliveryError>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (from, to) = ("+12025550123".to_owned(), "+4915112345678".to_owned());
        let sms = Sms::new(&url, "AC1".to_owned(), Secret::new("token"), from, to, true).unwrap();
        let message = Message {
            id: "0".repeat(32),
            event: "help_requested",
            subject: "Hilfe & mehr".to_owned(),
            body: "für=alle".to_owned(),
            happened_at: 0,
            session_id: None,
        };
        tokio::join!(sms.deliver(&message), serve(listener, answer))
    }

    #[tokio::test]
    async fn a_message_is_posted_as_the_api_says() {
        let (done, request) = deliver("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(done, Ok(()));
        assert!(request.starts_with("POST /2010-04-01/Accounts/AC1/Messages.json HTTP/1.1\r\n"), "{request}");
        // `AC1:token`, and a form in which nothing of the text is syntax.
        assert!(request.contains("authorization: Basic QUMxOnRva2Vu\r\n"), "{request}");
        let form = "To=%2B4915112345678&From=%2B12025550123&Body=Hilfe+%26+mehr%0Af%C3%BCr%3Dalle";
        assert!(request.ends_with(form), "{request}");
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_a_refusal_is_not() {
        let (busy, _) = deliver("HTTP/1.1 429 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n").await;
        let retry_after = Some(std::time::Duration::from_secs(7));
        assert_eq!(busy, Err(DeliveryError::Temporary { reason: "answered 429".to_owned(), retry_after }));
        let (refused, _) = deliver("HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(refused, Err(DeliveryError::Permanent("answered 400".to_owned())));
    }

    #[test]
    fn numbers_are_written_as_e164_says() {
        assert!(is_number("+4915112345678") && is_number("+12025550123"));
        for junk in ["", "+", "4915112345678", "+0151123456", "+49 151", "+1234567890123456", "+49a51123456"] {
            assert!(!is_number(junk), "{junk}");
        }
    }
}
