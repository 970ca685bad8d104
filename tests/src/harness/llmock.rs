//! llmock: an independent stand-in for providers, with faults and a verdict on how its client behaved.

use std::{net::SocketAddr, process::Command};

use anyhow::{Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{http::client, ports::free_port, process::Process, tools::tool, wait::LIMIT};

/// A running llmock; ends when dropped.
#[derive(Debug)]
pub struct Llmock {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Llmock {
    /// Starts it.
    ///
    /// # Errors
    /// When it was not fetched or does not get ready.
    pub async fn start() -> Result<Self> {
        let address = free_port()?;
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("python3");
        command
            .args(["-m", "llmock.cli", "serve", "--port", &address.port().to_string(), "--stream-chunk-delay-ms", "5"])
            .env("PYTHONPATH", tool("py/llmock")?)
            .env("NO_COLOR", "1");
        let mut process = Process::start("llmock", command, &folder.path().join("log"))?;
        let (http, url) = (client(), format!("http://{address}/_llmock/scenario"));
        let ready = || async { http.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
        process.wait_ready(LIMIT * 2, ready).await?;
        Ok(Self { address, _process: process, _folder: folder })
    }

    /// What a client takes as the base URL of the API.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Replaces the scenario. Behaviours of different kinds merge into one answer: give one at a time.
    ///
    /// # Errors
    /// When llmock does not take it.
    pub async fn scenario(&self, scenario: &Value) -> Result<()> {
        self.post("reset", "").await?;
        self.post("scenario", &scenario.to_string()).await
    }

    /// What llmock thinks of its client, as text.
    ///
    /// # Errors
    /// When llmock does not say.
    pub async fn verdict(&self) -> Result<String> {
        Ok(client().get(format!("http://{}/_llmock/verdict?format=text", self.address)).send().await?.text().await?)
    }

    async fn post(&self, what: &str, body: &str) -> Result<()> {
        let url = format!("http://{}/_llmock/{what}", self.address);
        let answer = client().post(url).header("content-type", "application/json").body(body.to_owned()).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "llmock says {status} to {what}: {}", answer.text().await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn it_streams_and_does_what_the_scenario_says() {
        let llmock = Llmock::start().await.unwrap();
        let ask = || async {
            let body = json!({"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
            let url = format!("{}/chat/completions", llmock.base_url());
            let request = client().post(url).header("content-type", "application/json").bearer_auth("any");
            request.body(body.to_string()).send().await.unwrap()
        };
        assert!(ask().await.text().await.unwrap().contains("[DONE]"));
        llmock.scenario(&json!({"behaviors": [{"type": "fail", "status": 429, "retry_after": 1}]})).await.unwrap();
        let refused = ask().await;
        assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (429, &b"1"[..]));
        assert!(!llmock.verdict().await.unwrap().is_empty());
    }
}
