//! The command line.

use anyhow::{Context as _, Result, bail, ensure};

/// What to measure, and how long.
#[derive(Debug)]
pub(crate) struct Options {
    /// Few and short rounds: whether everything still works, not how fast it is.
    pub(crate) quick: bool,
    /// One JSON object a figure instead of a table.
    pub(crate) json: bool,
    /// Rounds, each with the product and its reference.
    pub(crate) rounds: usize,
    only: Vec<String>,
}

impl Options {
    /// `[NAME..] [--quick] [--json] [--rounds N]`.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>, names: &[&str]) -> Result<Self> {
        let mut options = Self { quick: false, json: false, rounds: 0, only: Vec::new() };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // Says cargo to every bench.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                "--rounds" => options.rounds = arguments.next().context("--rounds: how many?")?.parse()?,
                name if names.contains(&name) => options.only.push(argument),
                other => bail!("{other:?} is neither a bench ({}) nor --quick, --json, --rounds N", names.join(", ")),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 2 } else { 5 };
        }
        ensure!(options.rounds <= 1_000, "--rounds: at most 1,000");
        Ok(options)
    }

    /// Whether this bench was asked for; none named: all.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// The first when there is time, the second when it is only about whether it works.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
