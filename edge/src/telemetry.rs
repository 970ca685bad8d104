//! The log of the process. Only `main` installs it.

use std::io::IsTerminal as _;

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Logs every frame with its payload, tokens and messages included, at its finest level: never shown, whatever the filter.
const SHOWS_PAYLOADS: &str = "tungstenite";

/// Installs the subscriber, and a panic hook that writes one line into it instead of to the terminal.
///
/// # Errors
/// For a filter that cannot be read, or when there is a subscriber already.
pub fn install(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let filter = filter.and(filter_fn(|line| !line.target().starts_with(SHOWS_PAYLOADS)));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        // The place only: the text of a panic may quote what was being handled.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(panic.place = place, panic.backtrace = %backtrace, "panicked");
    }));
    Ok(())
}
