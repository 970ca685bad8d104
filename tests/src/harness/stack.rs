//! Core and edge inside the test's own process, on free ports: fast to start, and every setting can be changed. Scenarios
//! whose subject is a crash or a signal use the binaries instead: [`pair`](super::pair), [`dev`](super::dev).

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_core::config::{KeyConfig, ModelConfig, ProviderConfig};
use chatbox_proto::{settings::Profile, token::Secret};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core},
    http::{Http, client},
    provider::Provider,
    proxy::Proxy,
    token::{Minter, claims},
    wait::{LIMIT, wait_for, within},
};

/// Signs the tokens of every stack.
pub const SECRET: &str = "a secret for tests alone, nobody else has it";

/// What a stack is started with.
#[derive(Debug)]
pub struct Setup {
    /// Settings of core.
    pub core: chatbox_core::config::Config,
    /// Settings of the edge. Where core is, is filled in at the start.
    pub edge: chatbox_edge::config::Config,
    /// Put a [`Proxy`] between edge and core.
    pub proxied: bool,
    folder: TempDir,
}

impl Setup {
    /// The `dev` profile on free ports with a new database, the demo model without its pauses, and a quick way out.
    ///
    /// # Errors
    /// When there is no folder for the data.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut setup = Self {
            core: chatbox_core::config::Config::default(),
            edge: chatbox_edge::config::Config::default(),
            proxied: false,
            folder,
        };
        let core = &mut setup.core;
        core.profile = Profile::Dev;
        core.listen.set_port(0);
        "127.0.0.1:0".clone_into(&mut core.metrics_listen);
        core.store.url = format!("sqlite:{}", setup.folder.path().join("chatbox.db").display());
        let key = Secret::new(chatbox_core::seal::KeyRing::generate_key());
        core.keys.ring = vec![KeyConfig { id: "test".to_owned(), key, key_file: String::new() }];
        core.token.secret = Secret::new(SECRET);
        core.models = vec![ModelConfig::demo()];
        "demo".clone_into(&mut core.default_model);
        if let Some(demo) = core.providers.get_mut("demo") {
            demo.word_delay = Duration::ZERO;
        }
        (core.drain.notice, core.drain.jitter) = (Duration::ZERO, Duration::ZERO);
        let edge = &mut setup.edge;
        edge.profile = Profile::Dev;
        edge.listen.set_port(0);
        "127.0.0.1:0".clone_into(&mut edge.metrics_listen);
        edge.token.secret = Secret::new(SECRET);
        (edge.drain.notice, edge.drain.jitter) = (Duration::ZERO, Duration::ZERO);
        Ok(setup)
    }

    /// Adds models that the scripted provider answers, the first of them as the default, with times that suit a test.
    #[must_use]
    pub fn with_models(self, provider: &Provider, models: &[&str]) -> Self {
        self.with_server(&provider.base_url(), models)
    }

    /// Adds models of any OpenAI-compatible server, the first of them as the default, with times that suit a test.
    #[must_use]
    pub fn with_server(mut self, base_url: &str, models: &[&str]) -> Self {
        let provider = ProviderConfig {
            base_url: base_url.to_owned(),
            first_byte_timeout: Duration::from_secs(2),
            chunk_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(60),
            backoff: Duration::from_millis(10),
            ..ProviderConfig::default()
        };
        let name = format!("server-{}", self.core.providers.len());
        self.core.providers.insert(name.clone(), provider);
        for (index, &id) in models.iter().enumerate() {
            let model = ModelConfig { id: id.to_owned(), provider: name.clone(), ..ModelConfig::default() };
            self.core.models.push(model);
            if index == 0 {
                id.clone_into(&mut self.core.default_model);
            }
        }
        self
    }

    /// Puts a proxy between edge and core.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }
}

/// A task that runs an app, and the way to end it.
#[derive(Debug)]
struct Running {
    task: JoinSet<Result<()>>,
    shutdown: CancellationToken,
}

impl Running {
    fn spawn<F: Future<Output = Result<()>> + Send + 'static>(run: impl FnOnce(CancellationToken) -> F) -> Self {
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(run(shutdown.clone()));
        Self { task, shutdown }
    }

    /// Asks the app to end and insists that it does, in time and without an error.
    async fn shutdown(mut self, name: &str) -> Result<()> {
        self.shutdown.cancel();
        let ended = within(&format!("{name} drains"), LIMIT * 2, self.task.join_next()).await?;
        ended.context("the app runs as one task")?.with_context(|| format!("{name} panicked"))??;
        Ok(())
    }
}

/// A running core and edge. [`Stack::shutdown`] ends them in good order; dropped, they end at once.
#[derive(Debug)]
pub struct Stack {
    addresses: Addresses,
    minter: Minter,
    edge: Running,
    core: Running,
    core_settings: chatbox_core::config::Config,
    proxy: Option<Proxy>,
    folder: TempDir,
}

impl Stack {
    /// Starts both and waits until the edge is ready.
    ///
    /// # Errors
    /// When one cannot be bound or does not get ready.
    pub async fn start(setup: Setup) -> Result<Self> {
        let Setup { core: mut core_settings, edge: mut edge_settings, proxied, folder } = setup;
        // Also installs the crypto provider, which the binaries do in `main`.
        let http = client();
        let core = chatbox_core::app::App::bind(core_settings.clone()).await?;
        let grpc = core.grpc_addr()?;
        // A core that is started again has to be found in the same place.
        core_settings.listen = grpc;
        let proxy = if proxied { Some(Proxy::start(grpc).await?) } else { None };
        edge_settings.core.url = format!("http://{}", proxy.as_ref().map_or(grpc, Proxy::address));
        let core = Running::spawn(|token| core.run(token));
        let edge = chatbox_edge::app::App::bind(edge_settings).await?;
        let addresses = Addresses { http: edge.http_addr()?, grpc };
        let mut edge = Running::spawn(|token| edge.run(token));
        let ready = format!("http://{}/chatbox/readyz", addresses.http);
        let answer = || async { http.get(&ready).send().await.ok().filter(|answer| answer.status().is_success()) };
        tokio::select! {
            ready = wait_for("the edge is ready", LIMIT, answer) => ready.map(drop)?,
            ended = edge.task.join_next() => bail!("the edge ended at once: {ended:?}"),
        }
        Ok(Self { addresses, minter: Minter::hs256(SECRET), edge, core, core_settings, proxy, folder })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The proxy between edge and core.
    ///
    /// # Errors
    /// When the setup did not ask for one.
    pub fn proxy(&self) -> Result<&Proxy> {
        self.proxy.as_ref().context("the stack was not set up with a proxy")
    }

    /// Where the data is.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// A token of this user.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str, role: &str) -> Result<String> {
        self.minter.mint(&claims(user, role))
    }

    /// A stream of a user, over any transport.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self, transport: Transport, user: &str) -> Result<Client> {
        Client::connect(transport, self.addresses, &self.token(user, "user")?).await
    }

    /// The routes of the edge as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn http(&self, user: &str) -> Result<Http> {
        Ok(Http::new(self.addresses.http, Some(&self.token(user, "user")?)))
    }

    /// The calls of core as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn core(&self, user: &str) -> Result<Core> {
        grpc::core(grpc::channel(self.addresses.grpc)?, Some(&self.token(user, "user")?))
    }

    /// Drains core and starts another one on the same data and address, while the edge stays.
    ///
    /// # Errors
    /// When it does not drain or cannot be bound again.
    pub async fn restart_core(&mut self) -> Result<()> {
        let idle = Running { task: JoinSet::new(), shutdown: CancellationToken::new() };
        std::mem::replace(&mut self.core, idle).shutdown("core").await?;
        let core = chatbox_core::app::App::bind(self.core_settings.clone()).await?;
        ensure!(core.grpc_addr()? == self.addresses.grpc, "core came back elsewhere");
        self.core = Running::spawn(|token| core.run(token));
        Ok(())
    }

    /// Ends both in good order.
    ///
    /// # Errors
    /// When one does not drain in time, or failed.
    pub async fn shutdown(self) -> Result<()> {
        self.edge.shutdown("edge").await?;
        self.core.shutdown("core").await
    }
}
