//! What reaches the terminal. Colours are left out where nobody sees them: `anstream` looks at `NO_COLOR` and at what the
//! stream is.

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};

use crate::plain_text::plain_line;

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

/// Columns as wide as what is in them. Cells hold text of strangers: it is made harmless here.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    head: [&'static str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(head: [&'static str; COLUMNS]) -> Self {
        Self { head, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [&str; COLUMNS]) {
        self.rows.push(cells.map(plain_line));
    }

    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or_default()
        };
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        let line = |cells: [&str; COLUMNS]| {
            let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let head = format!("{FAINT}{}{FAINT:#}", line(self.head));
        let rows = self.rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
        std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_harmless() {
        let mut table = Table::new(["A", "LONG"]);
        table.row(["väl\u{1b}[2Jue", "x"]);
        table.row(["y", ""]);
        assert_eq!(anstream::adapter::strip_str(&table.text()).to_string(), "A      LONG\nvälue  x\ny");
    }
}
