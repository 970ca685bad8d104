//! A real model: `SmolLM2` behind llama.cpp's own server.

use std::{net::SocketAddr, process::Command};

use anyhow::Result;
use tempfile::TempDir;

use super::{
    http::client,
    ports::free_port,
    process::Process,
    tools::{tool, workspace},
    wait::LIMIT,
};

/// A running llama.cpp server; ends when dropped.
#[derive(Debug)]
pub struct Llama {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Llama {
    /// Starts it and waits until the model is loaded.
    ///
    /// # Errors
    /// When it was not fetched or does not get ready.
    pub async fn start() -> Result<Self> {
        let address = free_port()?;
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("python3");
        command
            .arg(workspace().join("tests/scripts/llama_server.py"))
            .arg(tool("models/smollm2.gguf")?)
            .arg(address.port().to_string())
            .env("PYTHONPATH", tool("py/llama")?);
        let mut process = Process::start("llama", command, &folder.path().join("log"))?;
        let (http, url) = (client(), format!("http://{address}/health"));
        let ready = || async { http.get(&url).send().await.ok().filter(|answer| answer.status().is_success()) };
        process.wait_ready(LIMIT * 3, ready).await?;
        Ok(Self { address, _process: process, _folder: folder })
    }

    /// What a client takes as the base URL of the API.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn heavy_the_model_answers_in_a_stream() {
        let llama = Llama::start().await.unwrap();
        let body = json!({
            "model": "smollm2", "stream": true, "max_tokens": 8, "temperature": 0, "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "Say hello."}],
        });
        let url = format!("{}/chat/completions", llama.base_url());
        let answer = client().post(url).body(body.to_string()).send().await.unwrap().text().await.unwrap();
        assert!(
            answer.contains(r#""content":""#) && answer.contains("completion_tokens") && answer.contains("[DONE]"),
            "{answer}"
        );
    }
}
