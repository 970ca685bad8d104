//! What reaches the terminal. Colours are left out where nobody sees them: `anstream` looks at `NO_COLOR` and at what the
//! stream is.

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};

/// Headings and names.
pub(crate) const STRONG: Style = Style::new().bold();
/// What matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// What can be typed or opened.
pub(crate) const LINK: Style = AnsiColor::Cyan.on_default();
/// What needs attention.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// What failed.
pub(crate) const FAILED: Style = AnsiColor::Red.on_default().bold();

/// Writes one line to standard output.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Says on standard error what failed. Without a standard error there is nobody to tell.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(anstream::stderr().lock(), "{FAILED}chatbox:{FAILED:#} {error:#}");
}
