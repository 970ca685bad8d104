//! The log of the process, and what becomes of a panic. Only `main` calls this, and a test that wants to see the log.
//!
//! The subscriber and the panic hook are the two things of this module that are global to the process, because they
//! cannot be otherwise.

use std::{
    backtrace::Backtrace,
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt as _,
};

use crate::config::{LogConfig, LogFormat};

static PANICS: AtomicU64 = AtomicU64::new(0);
static HOOK: Once = Once::new();

/// The filter cannot be read. [`Config::check`](crate::config::Config::check) refuses such a one.
#[derive(Debug, thiserror::Error)]
#[error("log.filter cannot be read")]
pub struct FilterError(#[from] tracing_subscriber::filter::ParseError);

/// Sends the log to standard error. If there is a subscriber already, it stays and nothing changes.
///
/// # Errors
/// For a filter that cannot be read.
pub fn init(log: &LogConfig) -> Result<(), FilterError> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    // Without the hint every trace-level span of the libraries would be made and dropped, on each frame of each stream.
    let payloads =
        filter_fn(shows_no_payload).with_max_level_hint(filter.max_level_hint().unwrap_or(LevelFilter::TRACE));
    // An error means that there is one: a second server in this process, or a test with its own.
    let subscriber = Registry::default().with(lines.with_filter(filter)).with(payloads);
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Below info, the WebSocket library (an edge may run in this process) writes whole frames: texts and tokens. No filter of
/// an operator's may bring them out.
fn shows_no_payload(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || !metadata.target().starts_with("tungstenite")
}

/// What is done with a panic besides logging and counting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicReport {
    /// Nothing: the line in the log is the report.
    LogOnly,
    /// Whatever was done before; tests need it to say why they failed.
    LogAndPrevious,
}

/// From now on a panic anywhere in the process is one error event with its backtrace, and is counted. The first call
/// counts, later ones change nothing.
pub fn install_panic_hook(report: PanicReport) {
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            log_panic(info);
            if report == PanicReport::LogAndPrevious {
                previous(info);
            }
        }));
    });
}

/// How many panics there were in this process since the hook was installed.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    // A formatted message may quote what was being handled, a user's text for instance; a literal cannot.
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    let thread = std::thread::current();
    tracing::error!(
        panic.message = message,
        panic.place = place,
        panic.thread = thread.name().unwrap_or_default(),
        panic.backtrace = %Backtrace::force_capture(),
        "panicked"
    );
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(
        subscriber_of: impl FnOnce(Lines) -> Box<dyn tracing::Subscriber + Send + Sync>,
        act: impl FnOnce(),
    ) -> String {
        let lines = Lines::default();
        tracing::subscriber::with_default(subscriber_of(lines.clone()), act);
        String::from_utf8(lines.0.lock().expect("lock").clone()).expect("UTF-8")
    }

    #[test]
    fn a_panic_is_one_counted_event_with_a_backtrace_and_without_its_text() {
        install_panic_hook(PanicReport::LogAndPrevious);
        install_panic_hook(PanicReport::LogAndPrevious);
        let before = panics();
        let text = shown(
            |lines| Box::new(tracing_subscriber::fmt().json().with_writer(move || lines.clone()).finish()),
            || {
                let secret = "what the user wrote";
                panic::catch_unwind(|| panic!("cannot handle {secret}")).expect_err("panicked");
                panic::catch_unwind(|| panic!("a literal")).expect_err("panicked");
            },
        );
        assert_eq!((panics() - before, text.lines().count()), (2, 2));
        assert!(!text.contains("what the user wrote"), "{text}");
        assert!(
            text.contains("a literal") && text.contains("telemetry.rs:") && text.contains("catch_unwind"),
            "{text}"
        );
    }

    #[test]
    fn a_second_init_is_fine_and_a_bad_filter_is_not() {
        let log = LogConfig { format: LogFormat::Json, ..LogConfig::default() };
        init(&log).expect("first");
        init(&LogConfig::default()).expect("second");
        assert!(init(&LogConfig { filter: "=,=".to_owned(), ..log }).is_err());
    }
}
