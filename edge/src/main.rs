//! `chatbox-edge`: configuration, then telemetry, then [`App::bind`], then run, then a bounded drain.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use chatbox_edge::{App, Config, config::ROLE, telemetry};
use chatbox_proto::settings::{self, Vars};
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// What `sysexits.h` calls a usage error: starting again does not help.
const BAD_CONFIG: u8 = 64;

/// The edge of Chatbox: what browsers talk to.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// TOML file with the settings; every one is also a variable `CHATBOX_EDGE_…`.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective settings, secrets redacted, and exit.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask the running edge whether it is ready: exit code 0 when it is. For container health checks.
    Health,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if args.check_config {
        show(&settings::print(&config));
        return ExitCode::SUCCESS;
    }
    // One provider for the whole process; it fails only when there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = match args.command {
        Some(Command::Health) => health(&config),
        None => serve(config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn load(file: Option<&std::path::Path>) -> anyhow::Result<Config> {
    let text = file.map(std::fs::read_to_string).transpose();
    let text = text.with_context(|| format!("--config {}", file.unwrap_or("".as_ref()).display()))?;
    Ok(Config::load(text.as_deref(), &environment(), &|path| std::fs::read_to_string(path))?)
}

/// The one place where the environment is read.
fn environment() -> Vars {
    let readable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(readable).collect()
}

/// One thread: the work is forwarding, and a second one would cost more in wake-ups than it brings. Scale by number.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::install(&config.log)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let app = App::bind(config).await?;
        tracing::info!(role = ROLE, http.address = %app.http_addr()?, metrics.address = ?app.metrics_addr(), "listening");
        let shutdown = CancellationToken::new();
        let signals = signals(shutdown.clone())?;
        tokio::select! {
            result = app.run(shutdown) => result,
            () = signals => anyhow::bail!("second signal: leaving without draining"),
        }
    });
    // Whatever did not end in time ends here.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Cancels at the first signal and returns at the second.
fn signals(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
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

fn health(config: &Config) -> anyhow::Result<()> {
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let url = format!("http://{address}{}/readyz", config.path_prefix);
    runtime()?.block_on(async {
        // Plain HTTP to a listener of its own: nobody's certificate is checked, and an image may have no roots.
        let client =
            reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(4)).build()?;
        let status = client.get(&url).send().await?.status();
        anyhow::ensure!(status.is_success(), "not ready: {status}");
        Ok(())
    })
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn show(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn complain(error: &anyhow::Error) {
    eprintln!("chatbox-edge: {error:#}");
}
