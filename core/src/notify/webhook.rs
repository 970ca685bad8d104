//! Webhooks, signed as Standard Webhooks 1.0.0 says: `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is
//! HMAC-SHA256 over `{id}.{timestamp}.{body}`. Receivers drop repeated ids and old times.

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chatbox_proto::token::Secret;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, Url, header::CONTENT_TYPE};
use serde_json::json;
use sha2::Sha256;

use super::{
    Channel, DeliveryError, Message, address,
    outgoing::{client, send},
};
use crate::domain::time::Timestamp;

/// One receiver.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    url: Url,
    secret: Secret,
}

impl Webhook {
    /// Sets one up. `allow_private` allows plain http and addresses that are not public, for a receiver in the same network.
    ///
    /// # Errors
    /// What is wrong with the URL or the secret; neither is shown.
    pub fn new(url: &str, secret: Secret, allow_private: bool) -> Result<Self, &'static str> {
        let url = Url::parse(url).map_err(|_| "is not a URL")?;
        address::check(&url, allow_private)?;
        let client = client(&url, allow_private).map_err(|_| "has no usable certificate store on this machine")?;
        Ok(Self { client, url, secret })
    }

    fn signature(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.expose().as_bytes()).expect("HMAC takes any key");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[async_trait]
impl Channel for Webhook {
    async fn deliver(&self, message: &Message) -> Result<(), DeliveryError> {
        let body = json!({
            "type": message.event,
            "id": message.id,
            "timestamp": message.happened_at,
            "subject": message.subject,
            "text": message.body,
            "sessionId": message.session_id,
        })
        .to_string();
        let now = Timestamp::now().millis() / 1_000;
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", self.signature(&message.id, now, &body))
            .body(body);
        send(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret = Secret::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let webhook = Webhook::new("https://hooks.example.org/", secret, false).unwrap();
        let signature = webhook.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        // Computed with `openssl dgst -sha256 -hmac … -binary | base64`.
        assert_eq!(signature, "v1,ELhqG0Ku1gwOc1f4jyKdp3SFGFLAOdJ9bvpWLciCakI=");
    }

    #[test]
    fn neither_url_nor_secret_is_shown() {
        let webhook = Webhook::new("https://hooks.example.org/", Secret::new("hidden"), false).unwrap();
        assert!(!format!("{webhook:?}").contains("hidden"));
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let webhook = Webhook::new(&url, Secret::new("s"), false).unwrap();
        let message = Message {
            id: "0".repeat(32),
            event: "help_requested",
            subject: String::new(),
            body: String::new(),
            happened_at: 0,
            session_id: None,
        };
        let error = webhook.deliver(&message).await.unwrap_err();
        assert!(error.to_string().contains("not allowed"), "{error}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody came");
    }
}
