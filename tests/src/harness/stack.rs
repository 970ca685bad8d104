//! Core and edge inside the test's own process, on free ports: fast to start, and every setting can be changed. Scenarios
//! whose subject is a crash or a signal use the binaries instead: [`pair`](super::pair), [`dev`](super::dev).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use chatbox_core::{
    config::{KeyConfig, ModelConfig, ProviderConfig},
    llm::Models,
    telemetry::{PanicReport, install_panic_hook, panics},
};
use chatbox_proto::{settings::Profile, token::Secret};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core, Team},
    http::{Http, client},
    metrics::gauge,
    provider::Provider,
    proxy::Proxy,
    served::Served,
    token::{Minter, claims},
    wait::{LIMIT, wait_for},
};

/// Signs the tokens of every stack.
pub const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM"; // gitleaks:allow

/// What a stack is started with.
#[derive(Debug)]
pub struct Setup {
    /// Settings of core.
    pub core: chatbox_core::config::Config,
    /// Settings of the edge. Where core is, is filled in at the start.
    pub edge: chatbox_edge::config::Config,
    /// Instead of the models of the settings.
    pub models: Option<Models>,
    /// Put a [`Proxy`] between edge and core.
    pub proxied: bool,
    folder: TempDir,
}

impl Setup {
    /// The `dev` profile on free ports with a new database, the demo model without its pauses, limits that do not come in
    /// the way, and a quick way out.
    ///
    /// # Errors
    /// When there is no folder for the data.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut core = chatbox_core::config::Config { profile: Profile::Dev, ..Default::default() };
        core.listen.set_port(0);
        "127.0.0.1:0".clone_into(&mut core.metrics_listen);
        core.store.url = format!("sqlite:{}", folder.path().join("chatbox.db").display()).into();
        let key = Secret::new(chatbox_core::seal::KeyRing::generate_key());
        core.keys.ring = vec![KeyConfig { id: "test".to_owned(), key, key_file: String::new() }];
        core.token.secret = Secret::new(SECRET);
        core.models = vec![ModelConfig::demo()];
        core.default_model.clone_from(&core.models[0].id);
        if let Some(demo) = core.providers.get_mut("demo") {
            demo.word_delay = Duration::ZERO;
        }
        // Scenarios count entries and what providers are asked.
        core.session.naming = chatbox_core::config::Naming::Off;
        (core.limits.frames_per_second, core.limits.streams_per_user) = (1_000, 200);
        (core.drain.notice, core.drain.jitter) = (Duration::ZERO, Duration::ZERO);
        let mut edge = chatbox_edge::config::Config { profile: Profile::Dev, ..Default::default() };
        edge.listen.set_port(0);
        "127.0.0.1:0".clone_into(&mut edge.metrics_listen);
        edge.token.secret = Secret::new(SECRET);
        (edge.limits.frames_per_second, edge.limits.connections_per_user) = (1_000, 200);
        (edge.limits.handshakes_per_ip, edge.limits.shared_per_ip) = (1_000, 1_000);
        (edge.drain.notice, edge.drain.jitter) = (Duration::ZERO, Duration::ZERO);
        Ok(Self { core, edge, models: None, proxied: false, folder })
    }

    /// Changes the settings in place.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Adds models that the scripted provider answers, the first of them as the default.
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

    /// The demo model pauses this long before each word, so that a reply runs for a while.
    #[must_use]
    pub fn with_word_delay(mut self, delay: Duration) -> Self {
        if let Some(demo) = self.core.providers.get_mut("demo") {
            demo.word_delay = delay;
        }
        self
    }

    /// Puts a proxy between edge and core.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Where the data will be.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// A running core and edge. [`Stack::shutdown`] ends them in good order.
#[derive(Debug)]
pub struct Stack {
    addresses: Addresses,
    metrics: Metrics,
    minter: Minter,
    edge: Served,
    core: Option<Served>,
    core_settings: chatbox_core::config::Config,
    models: Option<Models>,
    proxy: Option<Proxy>,
    panics_before: u64,
    folder: TempDir,
}

/// Where figures are served.
#[derive(Debug, Clone, Copy)]
struct Metrics {
    core: SocketAddr,
    edge: SocketAddr,
}

impl Stack {
    /// Starts both and waits until the edge is ready, which it is when core is.
    ///
    /// # Errors
    /// When one cannot be bound or does not get ready.
    pub async fn start(setup: Setup) -> Result<Self> {
        let Setup { core: mut core_settings, edge: mut edge_settings, models, proxied, folder } = setup;
        install_panic_hook(PanicReport::LogAndPrevious);
        // Also installs the crypto provider, which the binaries do in `main`.
        let http = client();
        let ((grpc, core_metrics), core) = serve_core(core_settings.clone(), models.clone()).await?;
        // A core that is started again has to be found in the same place.
        core_settings.listen = grpc;
        core_settings.metrics_listen = core_metrics.to_string();
        let proxy = if proxied { Some(Proxy::start(grpc).await?) } else { None };
        let scheme = if core_settings.tls.is_enabled() { "https" } else { "http" };
        edge_settings.core.url = format!("{scheme}://{}", proxy.as_ref().map_or(grpc, Proxy::address));
        let prefix = edge_settings.path_prefix.clone();
        let ((public, edge_metrics), edge) = serve_edge(edge_settings).await?;
        let addresses = Addresses { http: public, grpc };
        let ready = format!("http://{public}{prefix}/readyz");
        let answer = || async { http.get(&ready).send().await.ok().filter(|answer| answer.status().is_success()) };
        wait_for("the edge is ready", LIMIT, answer).await?;
        Ok(Self {
            addresses,
            metrics: Metrics { core: core_metrics, edge: edge_metrics },
            minter: Minter::hs256(SECRET),
            edge,
            core: Some(core),
            core_settings,
            models,
            proxy,
            panics_before: panics(),
            folder,
        })
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

    /// A token of this user that lives for an hour.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str, role: &str) -> Result<String> {
        self.token_of(&claims(user, role))
    }

    /// A token with these claims, signed with the key of the stack.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token_of(&self, claims: &Value) -> Result<String> {
        self.minter.mint(claims)
    }

    /// A stream of a user, over any transport.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self, transport: Transport, user: &str) -> Result<Client> {
        Client::connect(transport, self.addresses, &self.token(user, "user")?).await
    }

    /// A stream of an admin.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect_admin(&self, transport: Transport, user: &str) -> Result<Client> {
        Client::connect(transport, self.addresses, &self.token(user, "chat_admin")?).await
    }

    /// The team's calls as this admin.
    ///
    /// # Errors
    /// When there is no token.
    pub fn team(&self, user: &str) -> Result<Team> {
        grpc::team(grpc::channel(self.addresses.grpc)?, &self.token(user, "chat_admin")?)
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

    /// A figure of core by its full name, labels included when it has some.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn core_metric(&self, name: &str) -> Result<f64> {
        gauge(self.metrics.core, name).await
    }

    /// A figure of the edge by its full name, labels included when it has some.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn edge_metric(&self, name: &str) -> Result<f64> {
        gauge(self.metrics.edge, name).await
    }

    /// Drains core and leaves it down, while the edge stays.
    ///
    /// # Errors
    /// When it does not drain.
    pub async fn stop_core(&mut self) -> Result<()> {
        self.core.take().context("core is down already")?.shutdown().await
    }

    /// Starts core again on the same data and address.
    ///
    /// # Errors
    /// When it cannot be bound again.
    pub async fn start_core(&mut self) -> Result<()> {
        ensure!(self.core.is_none(), "core runs already");
        let ((grpc, _), core) = serve_core(self.core_settings.clone(), self.models.clone()).await?;
        ensure!(grpc == self.addresses.grpc, "core came back elsewhere");
        self.core = Some(core);
        Ok(())
    }

    /// Drains core and starts another one on the same data and address, while the edge stays.
    ///
    /// # Errors
    /// When it does not drain or cannot be bound again.
    pub async fn restart_core(&mut self) -> Result<()> {
        self.stop_core().await?;
        self.start_core().await
    }

    /// Asks both to end, without waiting. Asking twice changes nothing.
    pub fn cancel(&self) {
        self.edge.cancel();
        if let Some(core) = &self.core {
            core.cancel();
        }
    }

    /// Ends both in good order, and insists that they drained, left no task behind and that nothing panicked.
    ///
    /// # Errors
    /// When that is not so.
    pub async fn shutdown(self) -> Result<()> {
        self.shutdown_after_panics(0).await
    }

    /// Like [`Stack::shutdown`], when the scenario itself has made so many panics happen.
    ///
    /// # Errors
    /// When one does not drain in time, or failed, or there were more or fewer panics.
    pub async fn shutdown_after_panics(self, expected: u64) -> Result<()> {
        self.edge.shutdown().await?;
        if let Some(core) = self.core {
            core.shutdown().await?;
        }
        let counted = panics() - self.panics_before;
        ensure!(counted == expected, "{counted} panics instead of {expected}");
        Ok(())
    }
}

/// Runs a core with these settings. Returns where it listens and where its figures are.
///
/// # Errors
/// When it cannot be bound.
pub async fn serve_core(
    settings: chatbox_core::config::Config,
    models: Option<Models>,
) -> Result<((SocketAddr, SocketAddr), Served)> {
    Served::start("core", move || async move {
        let app = match models {
            None => chatbox_core::app::App::bind(settings).await?,
            Some(models) => chatbox_core::app::App::bind_with(settings, models).await?,
        };
        let metrics = app.metrics_addr().context("core serves figures")?;
        Ok(((app.grpc_addr()?, metrics), |token| app.run(token)))
    })
    .await
}

/// Runs an edge with these settings. Returns where it listens and where its figures are.
///
/// # Errors
/// When it cannot be bound.
pub async fn serve_edge(settings: chatbox_edge::config::Config) -> Result<((SocketAddr, SocketAddr), Served)> {
    Served::start("edge", move || async move {
        let app = chatbox_edge::App::bind(settings).await?;
        let metrics = app.metrics_addr().context("the edge serves figures")?;
        Ok(((app.http_addr()?, metrics), |token| app.run(token)))
    })
    .await
}
