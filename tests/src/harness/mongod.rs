//! MongoDB: the server that the tests were started beside, and replica sets of a test's own, to be killed and stopped.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use tempfile::TempDir;

use super::{
    ports::free_port,
    process::Process,
    proxy::Proxy,
    tools::tool,
    wait::{LIMIT, wait_for},
};

/// How long a server may be silent before it counts as not there.
const PROBE: Duration = Duration::from_millis(500);
/// Elections take their time on a machine that does much else.
const ELECTION: Duration = Duration::from_secs(60);

/// The URI of a database of its own on the server that the tests were started beside.
///
/// # Errors
/// When there is none: a missing server is a failure, never a skipped test.
pub fn shared_uri(database: &str) -> Result<String> {
    #[expect(clippy::disallowed_methods, reason = "where the servers are, is a fact about the machine")]
    let uri = std::env::var("CHATBOX_TEST_MONGODB").context(
        "CHATBOX_TEST_MONGODB is not set: use `make test`, or `tests/scripts/servers.py run mongo -- COMMAND`",
    )?;
    Ok(uri.replacen("/?", &format!("/{database}?"), 1))
}

/// A database on the shared server, dropped by [`Database::drop_it`].
#[derive(Debug)]
pub struct Database {
    /// The URI with its name.
    pub uri: String,
    name: String,
}

impl Database {
    /// A name that nobody else has.
    ///
    /// # Errors
    /// When there is no server.
    pub fn new() -> Result<Self> {
        let name = format!("test-{}", chatbox_proto::ids::SessionId::generate());
        Ok(Self { uri: shared_uri(&name)?, name })
    }

    /// Removes it.
    ///
    /// # Errors
    /// When the server does not.
    pub async fn drop_it(self) -> Result<()> {
        Ok(Client::with_uri_str(&self.uri).await?.database(&self.name).drop().await?)
    }
}

/// A replica set of a test's own; its servers end when dropped, their data too.
#[derive(Debug)]
pub struct ReplicaSet {
    nodes: Vec<Node>,
    /// The way to each server, for everybody but the test itself; empty when there is nothing in between.
    networks: Vec<Proxy>,
    folder: TempDir,
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    process: Process,
    admin: Client,
}

impl Node {
    async fn hello(&self) -> Option<Document> {
        self.admin.database("admin").run_command(doc! { "hello": 1 }).await.ok()
    }

    async fn is(&self, role: &str) -> bool {
        self.hello().await.is_some_and(|hello| hello.get_bool(role).unwrap_or(false))
    }
}

impl ReplicaSet {
    /// Starts so many servers and waits for a primary.
    ///
    /// # Errors
    /// When `mongod` was not fetched or does not get ready.
    pub async fn start(count: usize) -> Result<Self> {
        Self::start_as(count, false).await
    }

    /// The same with a network before each server that clients and the other servers go through.
    ///
    /// # Errors
    /// When `mongod` was not fetched or does not get ready.
    pub async fn start_behind_networks(count: usize) -> Result<Self> {
        Self::start_as(count, true).await
    }

    async fn start_as(count: usize, behind_networks: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut nodes = Vec::with_capacity(count);
        let mut networks = Vec::new();
        for number in 0..count {
            let address = free_port()?;
            let process = launch(folder.path(), number, address)?;
            let mut options = ClientOptions::parse(format!("mongodb://{address}/?directConnection=true")).await?;
            options.server_selection_timeout = Some(PROBE);
            options.connect_timeout = Some(PROBE);
            nodes.push(Node { address, process, admin: Client::with_options(options)? });
            if behind_networks {
                networks.push(Proxy::start(address).await?);
            }
        }
        for node in &mut nodes {
            let admin = node.admin.clone();
            let up = || {
                let admin = admin.clone();
                async move { admin.database("admin").run_command(doc! { "ping": 1 }).await.ok() }
            };
            node.process.wait_ready(LIMIT, up).await?;
        }
        let set = Self { nodes, networks, folder };
        let members: Vec<Document> =
            set.hosts().zip(0_i32..).map(|(host, number)| doc! { "_id": number, "host": host.to_string() }).collect();
        let settings = doc! { "electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": "rs0", "members": members, "settings": settings };
        set.nodes[0].admin.database("admin").run_command(doc! { "replSetInitiate": config }).await?;
        set.settled().await?;
        Ok(set)
    }

    /// Where others find the servers.
    fn hosts(&self) -> impl Iterator<Item = SocketAddr> {
        let direct = self.nodes.iter().map(|node| node.address);
        direct.enumerate().map(|(number, address)| self.networks.get(number).map_or(address, Proxy::address))
    }

    /// The network before a server.
    #[must_use]
    pub fn network(&self, number: usize) -> Option<&Proxy> {
        self.networks.get(number)
    }

    /// Waits until one is the primary and all others follow.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn settled(&self) -> Result<()> {
        wait_for("a primary that all follow", ELECTION, || async {
            let mut primaries = 0;
            for node in &self.nodes {
                let primary = node.is("isWritablePrimary").await;
                if !primary && !node.is("secondary").await {
                    return None;
                }
                primaries += usize::from(primary);
            }
            (primaries == 1).then_some(())
        })
        .await
    }

    /// The URI of all servers.
    #[must_use]
    pub fn uri(&self, database: &str) -> String {
        let hosts: Vec<String> = self.hosts().map(|host| host.to_string()).collect();
        format!("mongodb://{}/{database}?replicaSet=rs0", hosts.join(","))
    }

    /// Where a server listens.
    #[must_use]
    pub fn address(&self, number: usize) -> SocketAddr {
        self.nodes[number].address
    }

    /// The number of the primary, once there is one other than `not`.
    ///
    /// # Errors
    /// When nobody is elected.
    pub async fn primary(&self, not: Option<usize>) -> Result<usize> {
        wait_for("a primary", ELECTION, || async {
            for (number, node) in self.nodes.iter().enumerate() {
                if Some(number) != not && node.is("isWritablePrimary").await {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// The process of a server, for signals.
    pub fn process(&mut self, number: usize) -> &mut Process {
        &mut self.nodes[number].process
    }

    /// Starts a server again, on its data, after it has ended; does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.nodes[number].process = launch(self.folder.path(), number, self.nodes[number].address)?;
        Ok(())
    }
}

fn launch(folder: &Path, number: usize, address: SocketAddr) -> Result<Process> {
    let data = folder.join(format!("data{number}"));
    std::fs::create_dir_all(&data)?;
    let mut command = Command::new(tool("bin/mongod")?);
    command.arg("--dbpath").arg(&data).arg("--port").arg(address.port().to_string());
    command.args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "rs0", "--oplogSize", "64"]);
    // The journal's files are allocated in advance: 8 MB instead of 100 MB each.
    command.args(["--wiredTigerCacheSizeGB", "0.25", "--wiredTigerEngineConfigString", "log=(file_max=8MB)"]);
    command.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
    command.args(["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"]);
    Process::start("mongod", command, &folder.join(format!("log{number}")))
}
