//! What `chatbox dev` says when it is ready.

use std::{fmt, fmt::Write as _, net::SocketAddr, path::PathBuf};

use serde::Serialize;

use super::settings;
use crate::terminal::{FAINT, LINK, STRONG, WARNING};

/// Everything that somebody needs to use a running instance. As JSON it is what `--json` prints.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Started {
    /// Where browsers connect to.
    pub(crate) http: SocketAddr,
    /// Where gRPC clients connect to.
    pub(crate) grpc: SocketAddr,
    /// The page, with the token in the fragment: it reaches no server and no log.
    pub(crate) url: String,
    /// A token of the user `you`.
    pub(crate) token: String,
    /// The folder.
    pub(crate) data: PathBuf,
    /// Where metrics of the edge are, if they are served.
    pub(crate) edge_metrics: Option<SocketAddr>,
    /// Where metrics of core are, if they are served.
    pub(crate) core_metrics: Option<SocketAddr>,
    /// Id of the model that answers.
    pub(crate) default_model: String,
    /// Ids of all models.
    pub(crate) models: Vec<String>,
    /// Whether the page is part of this build.
    pub(crate) page: bool,
    /// What a person calls the folder.
    #[serde(skip)]
    pub(super) folder: String,
    /// Model servers that were found.
    #[serde(skip)]
    pub(super) servers: Vec<String>,
}

/// Without the token: this may end up in a log.
impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("http", &self.http).field("grpc", &self.grpc).finish_non_exhaustive()
    }
}

impl Started {
    /// For people.
    pub(super) fn banner(&self) -> String {
        let mut text = format!("\n  {STRONG}Chatbox is ready.{STRONG:#}\n\n");
        let mut row = |name: &str, value: &str| {
            let _ = writeln!(text, "  {FAINT}{name:<9}{FAINT:#}{value}");
        };
        row("Open", &format!("{LINK}{}{LINK:#}", self.url));
        if !self.page {
            row(
                "",
                &format!("{WARNING}The web page is not part of this build: run `make web` and build again.{WARNING:#}"),
            );
            row("", "Everything else works, WebSocket and HTTP included.");
        }
        row("Terminal", &format!("{LINK}chatbox chat{}{LINK:#}", self.flags(true)));
        row("gRPC", &format!("{LINK}{}{LINK:#}", self.grpcurl()));
        row("Model", &self.model());
        row("Data", &self.data.display().to_string());
        row("Stop", "Ctrl-C");
        text
    }

    fn model(&self) -> String {
        let default = &self.default_model;
        let others = self.models.len().saturating_sub(1);
        let mut text = match default.as_str() {
            "demo" => "the built-in demo, which does not think".to_owned(),
            _ => format!("{default} by default"),
        };
        if others > 0 {
            let _ = write!(text, "; {others} more: chatbox models{}", self.flags(true));
        }
        if !self.servers.is_empty() {
            let _ = write!(text, " (found {})", self.servers.join(" and "));
        }
        text
    }

    /// The flags that another command needs to reach this instance.
    fn flags(&self, grpc: bool) -> String {
        let mut flags = String::new();
        if grpc && self.grpc != settings::GRPC {
            let _ = write!(flags, " --grpc http://{}", settings::reachable(self.grpc));
        }
        if self.folder != ".chatbox" {
            let _ = write!(flags, " --data {}", quoted(&self.folder));
        }
        flags
    }

    fn grpcurl(&self) -> String {
        format!(
            "grpcurl -plaintext -H \"authorization: Bearer $(chatbox token --sub you{})\" {} chatbox.v1.ChatCore/ListModels",
            self.flags(false),
            settings::reachable(self.grpc)
        )
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(grpc: &str, folder: &str) -> Started {
        Started {
            http: "127.0.0.1:8080".parse().unwrap(),
            grpc: grpc.parse().unwrap(),
            url: "http://127.0.0.1:8080/chatbox/#token=a.b.c".to_owned(),
            token: "a.b.c".to_owned(),
            data: PathBuf::from("/data"),
            edge_metrics: None,
            core_metrics: None,
            default_model: "demo".to_owned(),
            models: vec!["demo".to_owned()],
            page: true,
            folder: folder.to_owned(),
            servers: Vec::new(),
        }
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        let text = started("127.0.0.1:50051", ".chatbox").banner();
        let text = anstream::adapter::strip_str(&text).to_string();
        for line in [
            "http://127.0.0.1:8080/chatbox/#token=a.b.c\n",
            "chatbox chat\n",
            "$(chatbox token --sub you)\" 127.0.0.1:50051 chatbox.v1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let text = started("0.0.0.0:7000", "/my data").banner();
        let text = anstream::adapter::strip_str(&text).to_string();
        for line in
            ["chatbox chat --grpc http://127.0.0.1:7000 --data '/my data'\n", "--data '/my data')\" 127.0.0.1:7000 "]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_build_without_the_page_says_so() {
        let started = Started { page: false, ..started("127.0.0.1:50051", ".chatbox") };
        assert!(started.banner().contains("make web"));
        assert!(!Started { page: true, ..started }.banner().contains("make web"));
    }

    #[test]
    fn the_token_is_for_whoever_reads_the_output_and_for_no_log() {
        let started = started("127.0.0.1:50051", ".chatbox");
        assert!(!format!("{started:?}").contains("a.b.c"));
        let json = serde_json::to_value(&started).unwrap();
        assert_eq!(
            (&json["token"], &json["grpc"], &json["page"]),
            (&"a.b.c".into(), &"127.0.0.1:50051".into(), &true.into())
        );
    }
}
