//! `chatbox-core`: configuration, then telemetry, then [`App::bind`], then run, then a bounded drain.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use chatbox_core::{
    app::{self, App},
    config::Config,
    telemetry::{self, PanicReport},
};
use chatbox_proto::settings::{self, Vars};
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// What `sysexits.h` calls a usage error: starting again does not help.
const BAD_CONFIG: u8 = 64;

/// The core of Chatbox: sessions, generation, storage, behind gRPC.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// TOML file with the settings; every one is also a variable `CHATBOX_CORE_…` or `CHATBOX_…`.
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
    /// Ask the running core whether it is ready: exit code 0 when it is. For container health checks.
    Health,
    /// Keys that what is stored is sealed with.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// The audit trail: what admins have read and done.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Follow the chain of the audit trail: exit code 1 when a record was changed, taken out or does not open. Changes
    /// nothing. A core on an embedded store has to be stopped first.
    Verify,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Print a new key: base64 of 32 random bytes, for keys.ring.
    Generate,
    /// Open and read everything that is sealed in the store: exit code 1 when something is not sealed, does not open, or is
    /// missing. Changes nothing. A core on an embedded store has to be stopped first.
    Verify,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Keys { command: KeysCommand::Generate }) = args.command {
        show(&format!("{}\n", chatbox_core::seal::KeyRing::generate_key()));
        return ExitCode::SUCCESS;
    }
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
        Some(Command::Keys { command: KeysCommand::Verify }) => verify(&config),
        Some(Command::Audit { command: AuditCommand::Verify }) => verify_audit(&config),
        // Answered before the configuration is read.
        Some(Command::Keys { command: KeysCommand::Generate }) | None => serve(config),
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

/// One thread beside the store's own: the work is small pieces, and a second one would cost more in wake-ups than it
/// brings. Scale by number.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log)?;
    telemetry::install_panic_hook(PanicReport::LogOnly);
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let app = App::bind(config).await?;
        tracing::info!(grpc.address = %app.grpc_addr()?, metrics.address = ?app.metrics_addr(), "listening");
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

fn verify(config: &Config) -> anyhow::Result<()> {
    let mut counter = Counter::default();
    let verified = runtime()?.block_on(app::verify_payloads(config, |now, finding| {
        if let Some(finding) = finding {
            show(&format!("{finding}\n"));
        }
        counter.show(now.sessions);
    }));
    counter.clear();
    let app::Verified { sessions, entries, erased, findings } = verified?;
    show(&format!("{sessions} sessions ({erased} erased), {entries} entries, {findings} findings\n"));
    anyhow::ensure!(findings == 0, "{findings} values are not as they were sealed");
    Ok(())
}

fn verify_audit(config: &Config) -> anyhow::Result<()> {
    let app::Audited { records, faults, faulty } = runtime()?.block_on(app::verify_audit(config))?;
    for (seq, fault) in faults {
        show(&format!("record {seq}: {fault}\n"));
    }
    show(&format!("{records} records, {faulty} faults\n"));
    anyhow::ensure!(faulty == 0, "{faulty} records are not as they were written");
    Ok(())
}

/// Tells a person how far it has come; nobody else.
#[derive(Default)]
struct Counter {
    shown: Option<std::time::Instant>,
}

impl Counter {
    fn show(&mut self, sessions: u64) {
        let due = self.shown.is_none_or(|at| at.elapsed() > Duration::from_millis(200));
        if due && std::io::stderr().is_terminal() {
            self.shown = Some(std::time::Instant::now());
            let _ = write!(std::io::stderr(), "\r{sessions} sessions verified");
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[2K");
        }
    }
}

fn health(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(!config.metrics_listen.is_empty(), "metrics_listen: must be set for health checks");
    let url =
        format!("http://{}/readyz", config.metrics_listen.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]"));
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
    eprintln!("chatbox-core: {error:#}");
}
