//! Settings of the processes, as files.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::harness::{process::Process, stack::SECRET, tools::binary};

/// Between two checkpoints of a reply.
pub(super) const CHECKPOINT: Duration = Duration::from_millis(50);

/// Entries that `open` replays at most: small enough that some clients meet a gap.
pub(super) const REPLAY: u64 = 300;

/// Quick ways out, frequent heartbeats and checkpoints, and no limit of rate.
const DRAIN: &str = "drain.notice = \"0s\"\ndrain.jitter = \"0s\"\ndrain.deadline = \"10s\"\n";

/// A program with its settings: can be started again and again.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) binary: String,
    pub(super) folder: PathBuf,
    pub(super) vars: Vec<(String, String)>,
}

impl Program {
    /// Writes the settings. Its data is in `folder`, and so is its log.
    pub(super) fn new(name: &str, binary: &str, folder: &Path, settings: &str) -> Result<Self> {
        std::fs::write(folder.join(format!("{name}.toml")), settings)?;
        Ok(Self { name: name.to_owned(), binary: binary.to_owned(), folder: folder.to_owned(), vars: Vec::new() })
    }

    /// Starts it.
    pub(super) fn start(&self) -> Result<Process> {
        let mut command = Command::new(binary(&self.binary)?);
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .env("CHATBOX_CORE_SESSION_NAMING", "off")
            .envs(self.vars.iter().map(|(name, value)| (name, value)))
            .arg("--config")
            .arg(self.folder.join(format!("{}.toml", self.name)))
            .current_dir(&self.folder);
        Process::start(&self.name, command, &self.folder.join(format!("{}.log", self.name)))
    }
}

/// Where a process listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listens {
    pub(super) main: SocketAddr,
    pub(super) metrics: SocketAddr,
}

fn shared(listens: Listens) -> String {
    format!(
        "profile = \"dev\"\nlisten = \"{}\"\nmetrics_listen = \"{}\"\ntoken.secret = \"{SECRET}\"\n{DRAIN}",
        listens.main, listens.metrics
    )
}

/// Settings of a core over this store, whose model `m` is the scripted provider.
pub(super) fn core(listens: Listens, store: &str, key: &str, provider: &str) -> String {
    format!(
        "{}{store}\nkeys.ring = [{{id = \"k1\", key = \"{key}\"}}]\ndefault_model = \"m\"\n\
         limits.frames_per_second = 10000\nlimits.streams_per_user = 10000\nlimits.keepalive = \"1s\"\ndrain.grace = \"300ms\"\n\
         session.heartbeat = \"250ms\"\nsession.checkpoint = \"{}ms\"\nsession.replay_entries = {REPLAY}\n\
         [providers.scripted]\nbase_url = \"{provider}\"\n[[models]]\nid = \"m\"\nprovider = \"scripted\"\n",
        shared(listens),
        CHECKPOINT.as_millis()
    )
}

/// Settings of an edge that finds cores here.
pub(super) fn edge(listens: Listens, cores: &[SocketAddr]) -> String {
    let addresses: Vec<String> = cores.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "{}path_prefix = \"/chatbox\"\ncore.url = \"http://{}\"\ncore.addresses = [{}]\n\
         core.connect_timeout = \"1s\"\ncore.attach_timeout = \"3s\"\ncore.keepalive = \"1s\"\n\
         core.heartbeat = \"1s\"\ncore.health_interval = \"200ms\"\ncore.reopen_timeout = \"10s\"\n\
         limits.frames_per_second = 10000\nlimits.connections_per_user = 1000\nlimits.handshakes_per_ip = 10000\n",
        shared(listens),
        cores.first().map(ToString::to_string).unwrap_or_default(),
        addresses.join(", ")
    )
}
