//! `chatbox dev`: core and edge in one process on an embedded database. The only command that knows either.

mod banner;
mod settings;

use std::{
    convert::Infallible,
    error::Error as _,
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use chatbox_core::{
    store::{StoreError, StoreErrorKind},
    telemetry::{self, PanicReport},
};
use chatbox_proto::{settings::Vars, token::Role};
use tokio_util::sync::CancellationToken;

pub(crate) use self::banner::Started;
use self::settings::{Listeners, Settings};
use crate::{
    args::DevArgs,
    data_dir::DataDir,
    local_models::{self, LocalServer},
    terminal,
    token::{Minter, Subject},
};

/// The user of the printed link. Longer than a working day, so that nobody is sent away from a page that is open.
const LINK_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Both are on this machine: what takes longer does not come.
const READY_WITHIN: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &DevArgs, vars: Vars) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(Box::pin(serve(args, vars)));
    // Whatever did not end in time ends here.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: &DevArgs, vars: Vars) -> Result<()> {
    let shutdown = CancellationToken::new();
    let signals = signals(shutdown.clone())?;
    let prepared = Prepared::new(args, vars).await?;
    telemetry::init(&prepared.settings.core.log)?;
    telemetry::install_panic_hook(PanicReport::LogOnly);
    let dev = Dev::bind(prepared).await?;
    let announcing = announce(dev.started.clone(), args.json, shutdown.clone());
    tokio::select! {
        result = dev.run(shutdown) => result,
        () = signals => bail!("second signal: leaving without draining"),
        result = announcing => match result? {},
    }
}

/// Everything that is decided before something is opened.
#[derive(Debug)]
pub(crate) struct Prepared {
    data: DataDir,
    settings: Settings,
    found: Vec<LocalServer>,
    /// The folder as it was named.
    folder: String,
    core_url_is_set: bool,
}

impl Prepared {
    /// Looks for model servers, makes the data folder where it is missing, and reads the settings.
    ///
    /// # Errors
    /// One line that says what to do about it; settings that are wrong all at once.
    pub(crate) async fn new(args: &DevArgs, vars: Vars) -> Result<Self> {
        let listeners = Listeners::new(args, &vars);
        ensure_free("--http", listeners.http)?;
        ensure_free("--grpc", listeners.grpc)?;
        let data = DataDir::open(&args.data.data)?;
        let found = if args.no_local_models {
            Vec::new()
        } else {
            local_models::find(&local_models::candidates(&[listeners.http, listeners.grpc])).await
        };
        let settings = Settings::load(args, &vars, &data, &found)?;
        let (folder, core_url_is_set) = (args.data.data.display().to_string(), settings::chooses_core_url(&vars));
        Ok(Self { data, settings, found, folder, core_url_is_set })
    }
}

/// Core and edge, bound and not running yet. Nothing is process-wide but the log, so several fit into one process.
#[derive(Debug)]
pub(crate) struct Dev {
    core: chatbox_core::app::App,
    edge: chatbox_edge::App,
    pub(crate) started: Started,
}

impl Dev {
    /// Binds the listeners and opens the store.
    ///
    /// # Errors
    /// One line that says what to do about it.
    pub(crate) async fn bind(prepared: Prepared) -> Result<Self> {
        let Prepared { data, settings: Settings { core, mut edge }, found, folder, core_url_is_set } = prepared;
        let minter = Minter::new(core.token.clone());
        let (default_model, models) =
            (core.default_model.clone(), core.models.iter().map(|model| model.id.clone()).collect());
        let scheme = if core.tls.is_enabled() { "https" } else { "http" };
        let prefix = edge.path_prefix.clone();
        let core = Box::pin(chatbox_core::app::App::bind(core)).await.map_err(|error| explain(error, &data))?;
        let grpc = core.grpc_addr()?;
        if !core_url_is_set {
            edge.core.url = format!("{scheme}://{}", settings::reachable(grpc));
        }
        let edge = Box::pin(chatbox_edge::App::bind(edge)).await?;
        let http = edge.http_addr()?;

        let token = minter?.mint(&Subject {
            user_id: "you".to_owned(),
            display_name: "You".to_owned(),
            roles: vec![Role::User],
            scopes: Vec::new(),
            lifetime: LINK_LIFETIME,
        })?;
        let started = Started {
            http,
            grpc,
            url: format!("http://{}{prefix}/#token={token}", settings::reachable(http)),
            token,
            data: data.path().to_owned(),
            edge_metrics: edge.metrics_addr(),
            core_metrics: core.metrics_addr(),
            default_model,
            models,
            page: chatbox_edge::page_is_built(),
            folder,
            servers: found.iter().map(|server| format!("{} at {}", server.title, server.base_url)).collect(),
        };
        Ok(Self { core, edge, started })
    }

    /// Serves until `shutdown`, then drains: the edge first, so that its sockets hear of it from the edge, then core.
    /// Each of them keeps to its own deadline.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let Self { core, edge, .. } = self;
        let edge_gone = CancellationToken::new();
        let core_failed = shutdown.child_token();
        let edge = async {
            let result = edge.run(core_failed.clone()).await;
            edge_gone.cancel();
            result.context("edge")
        };
        let core = async {
            let result = core.run(edge_gone.clone()).await;
            core_failed.cancel();
            result.context("core")
        };
        let (edge, core) = tokio::join!(Box::pin(edge), Box::pin(core));
        core.and(edge)
    }
}

/// Says which flag chooses another address, before anything is opened. The listeners themselves are bound later, so this
/// is a courtesy and no promise.
fn ensure_free(flag: &str, address: SocketAddr) -> Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{address} is in use by another program: stop it, or choose another address with {flag}")
        }
        Err(error) => bail!("cannot listen on {address}: {error}; choose another address with {flag}"),
        Ok(_) => Ok(()),
    }
}

/// The store refuses a database that is open elsewhere; here that is another `chatbox dev`.
fn explain(error: anyhow::Error, data: &DataDir) -> anyhow::Error {
    let refused = error.chain().filter_map(|cause| cause.downcast_ref::<StoreError>()).any(|error| {
        // The other refusal is a database that a newer version made.
        error.kind() == StoreErrorKind::Refused && error.source().is_some_and(|why| why.to_string().contains("another"))
    });
    if refused {
        let folder = data.path().display();
        return anyhow::anyhow!("another chatbox dev runs on {folder}: stop it, or choose another folder with --data");
    }
    error
}

/// Prints where everything is, as soon as it answers. Never returns but with a failure to print.
async fn announce(started: Started, json: bool, shutdown: CancellationToken) -> Result<Infallible> {
    tokio::select! {
        () = shutdown.cancelled() => {}
        ready = ready(&started) => {
            ready?;
            let text = if json { serde_json::to_string(&started)? } else { started.banner() };
            terminal::line(&text)?;
        }
    }
    shutdown.cancelled().await;
    if !json {
        terminal::line("  Stopping. Ctrl-C again stops at once.")?;
    }
    std::future::pending().await
}

/// Waits until the instance says that it is ready.
pub(crate) async fn ready(started: &Started) -> Result<()> {
    let url = started.url.split('#').next().unwrap_or_default();
    let url = format!("{url}readyz");
    let client = reqwest::Client::builder().no_proxy().timeout(READY_WITHIN).build()?;
    let asking = async {
        loop {
            if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            tokio::time::sleep(READY_POLL).await;
        }
    };
    let answered = tokio::time::timeout(READY_WITHIN, asking).await;
    ensure!(answered.is_ok(), "not ready after {} s; -v shows what happens", READY_WITHIN.as_secs());
    Ok(())
}

/// Cancels at the first signal and returns at the second.
fn signals(shutdown: CancellationToken) -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.cancel();
        }
    })
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
