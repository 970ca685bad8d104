//! The log of the process. Only `main` installs it.

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{LogConfig, LogFormat};

/// Installs the subscriber, and a panic hook that writes one line into it instead of to the terminal.
///
/// # Errors
/// For a filter that cannot be read, or when there is a subscriber already.
pub fn install(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(shows_no_payload));
    match config.format {
        LogFormat::Text => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()?,
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()?;
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        // The place only: the text of a panic may quote what was being handled.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(panic.place = place, panic.backtrace = %backtrace, "panicked");
    }));
    Ok(())
}

/// Below info, the WebSocket library writes whole frames: texts and tokens. No filter of an operator's may bring them out.
fn shows_no_payload(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !metadata.target().starts_with("tungstenite")
}
