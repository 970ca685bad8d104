//! The log of the process. Only `main` installs it.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::{Filter, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Libraries that log what they carry (headers, frames) when asked for details. No filter reaches below this for them.
const CARRIERS: [&str; 9] =
    ["tungstenite", "tokio_tungstenite", "hyper", "hyper_util", "h2", "tonic", "reqwest", "rustls", "axum"];

/// The filter of a configuration.
///
/// # Errors
/// When it cannot be read.
pub fn filter(text: &str) -> anyhow::Result<impl Filter<Registry> + use<>> {
    let wanted = EnvFilter::try_new(text)?;
    let shown = filter_fn(|line| *line.level() <= Level::INFO || !is_of_a_carrier(line));
    // Without the hint every trace-level line of the libraries would be looked at, on each frame of each socket.
    let shown = shown.with_max_level_hint(wanted.max_level_hint().unwrap_or(LevelFilter::TRACE));
    Ok(wanted.and(shown))
}

fn is_of_a_carrier(line: &Metadata<'_>) -> bool {
    let library = line.target().split("::").next().unwrap_or_default();
    CARRIERS.contains(&library)
}

/// Installs the subscriber, and a panic hook that writes one line into it instead of to the terminal.
///
/// # Errors
/// For a filter that cannot be read, or when there is a subscriber already.
pub fn install(config: &LogConfig) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter(&config.filter)?)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        // The place only: the text of a panic may quote what was being handled.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(panic.place = place, panic.backtrace = %backtrace, "panicked");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn no_filter_makes_libraries_log_what_they_carry() {
        for text in
            ["trace", "trace,tungstenite=trace,h2=trace", "info,hyper=debug", "tungstenite::protocol=trace,h2=warn"]
        {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
            let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter(text).unwrap()));
            tracing::subscriber::with_default(subscriber, || {
                assert!(!tracing::enabled!(target: "tungstenite::protocol", Level::TRACE), "{text}");
                assert!(!tracing::enabled!(target: "h2::codec", Level::TRACE), "{text}");
                assert!(!tracing::enabled!(target: "hyper::proto", Level::DEBUG), "{text}");
                assert!(tracing::enabled!(target: "h2", Level::WARN), "{text}");
            });
        }
    }
}
