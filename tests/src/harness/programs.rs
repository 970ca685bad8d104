//! Foreign clients that are run once: grpcurl, buf, the Autobahn cases.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{tools::tool, wait::within};

/// What a program said.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a fetched program to its end; it is ended when that takes longer than `limit`.
///
/// # Errors
/// When it was not fetched, cannot be started or takes too long.
pub async fn run(program: &str, arguments: &[&str], stdin: &str, limit: Duration) -> Result<Output> {
    let mut command = Command::new(tool(program)?);
    command.args(arguments);
    finish(command, stdin, limit).await.with_context(|| format!("{program} {arguments:?}"))
}

async fn finish(mut command: Command, stdin: &str, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("standard input is piped")?;
    let write = async {
        // A program that ends without reading all of it says so by its status.
        let _ = input.write_all(stdin.as_bytes()).await;
        drop(input);
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = within("the program ends", limit, both).await??;
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// How a peer did in one case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// `OK`, `NON-STRICT`, `INFORMATIONAL`, `FAILED` ..
    pub behavior: String,
    /// The same for how the connection was closed.
    pub behavior_close: String,
}

impl CaseResult {
    /// Whether the peer did nothing that RFC 6455 forbids.
    #[must_use]
    pub fn conforms(&self) -> bool {
        let fine = |behavior: &str| matches!(behavior, "OK" | "NON-STRICT" | "INFORMATIONAL");
        fine(&self.behavior) && fine(&self.behavior_close)
    }
}

/// Runs the cases of the Autobahn suite, those for compression left out, against an echo at `path`. `cases` are patterns
/// like `1.*`; none: all 301.
///
/// # Errors
/// When the suite was not fetched or does not come to its end.
pub async fn autobahn(
    address: SocketAddr,
    path: &str,
    cases: &[&str],
    reports: &Path,
) -> Result<BTreeMap<String, CaseResult>> {
    let mut command = Command::new("python3");
    command.args(["-c", "from kosoku._cli import main; main()", "-p", "2", "-x", "12.*", "-x", "13.*"]);
    for case in cases {
        command.args(["-i", case]);
    }
    command.arg("-o").arg(reports).arg(format!("{address}{path}")).env("PYTHONPATH", tool("py/kosoku")?);
    let output = finish(command, "", Duration::from_secs(120)).await.context("the Autobahn cases")?;
    let index = reports.join("index.json");
    let text = std::fs::read_to_string(&index)
        .with_context(|| format!("{} after {}: {}{}", index.display(), output.status, output.stdout, output.stderr))?;
    let agents: BTreeMap<String, BTreeMap<String, CaseResult>> = serde_json::from_str(&text)?;
    ensure!(agents.len() == 1, "one peer was tested, {} are reported", agents.len());
    agents.into_values().next().context("no peer is reported")
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::{net::TcpListener, task::JoinSet};
    use tokio_tungstenite::accept_async;

    use super::*;
    use crate::harness::wait::LIMIT;

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_output_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo no >&2; exit 4"]);
        let output = finish(command, "yes", LIMIT).await.unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.status.code()), ("yes", "no\n", Some(4)));
    }

    #[tokio::test]
    async fn foreign_clients_are_there() {
        let output = run("bin/grpcurl", &["-version"], "", LIMIT).await.unwrap();
        assert!(output.status.success() && output.stderr.contains("grpcurl"), "{output:?}");
        let output = run("bin/buf", &["--version"], "", LIMIT).await.unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    }

    /// An echo of tungstenite; with `honest` false it answers other bytes than it got.
    async fn echo(honest: bool) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut socket) = accept_async(stream).await else { return };
                    while let Some(Ok(message)) = socket.next().await {
                        if message.is_text() || message.is_binary() {
                            let answer = if honest { message } else { "something else".into() };
                            let _ = socket.send(answer).await;
                        }
                    }
                });
            }
        });
        (address, server)
    }

    #[tokio::test]
    async fn the_autobahn_cases_tell_a_good_echo_from_a_bad_one() {
        let reports = tempfile::tempdir().unwrap();
        let (good, _server) = echo(true).await;
        let results = autobahn(good, "/", &["1.1.*"], &reports.path().join("good")).await.unwrap();
        assert!(results.len() == 8 && results.values().all(CaseResult::conforms), "{results:?}");
        let (bad, _server) = echo(false).await;
        let results = autobahn(bad, "/", &["1.1.2"], &reports.path().join("bad")).await.unwrap();
        assert!(!results["1.1.2"].conforms(), "{results:?}");
    }
}
