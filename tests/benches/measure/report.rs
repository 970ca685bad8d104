//! Figures beside their references, and whether they reach their goals.

use std::io::Write as _;

use anyhow::Result;
use serde_json::json;

use super::{
    options::Options,
    sample::{median, range},
};

/// How a figure is compared with its reference, round by round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// The product's value over the reference's.
    Ratio,
    /// The product's value less the reference's.
    Difference,
    /// The product's value alone.
    Alone,
}

/// What the comparison should reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One figure over all rounds.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    reference: &'static str,
    compare: Compare,
    goal: Option<Goal>,
    rounds: Vec<(f64, Option<f64>)>,
}

impl Figure {
    /// A figure in some unit beside what it is compared with.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, reference: &'static str, compare: Compare) -> Self {
        Self { name: name.into(), unit, reference, compare, goal: None, rounds: Vec::new() }
    }

    /// What it should reach.
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Adds the values of one round.
    pub(crate) fn round(&mut self, product: f64, reference: f64) {
        self.rounds.push((product, Some(reference)));
    }

    /// Adds a round's value that has no reference.
    pub(crate) fn alone(&mut self, product: f64) {
        self.rounds.push((product, None));
    }

    fn product(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.0).collect::<Vec<_>>())
    }

    fn reference(&self) -> Option<f64> {
        let values: Vec<f64> = self.rounds.iter().filter_map(|round| round.1).collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// The comparison in each round: what changes on the machine between rounds cancels out.
    fn compared(&self) -> Vec<f64> {
        let compare = |&(product, reference): &(f64, Option<f64>)| match (self.compare, reference) {
            (Compare::Ratio, Some(reference)) => product / reference,
            (Compare::Difference, Some(reference)) => product - reference,
            (Compare::Alone, _) | (Compare::Ratio | Compare::Difference, None) => product,
        };
        self.rounds.iter().map(compare).collect()
    }

    fn reached(&self) -> Option<bool> {
        let value = median(&self.compared());
        self.goal.map(|goal| match goal {
            Goal::AtMost(limit) => value <= limit,
            Goal::AtLeast(limit) => value >= limit,
        })
    }

    fn row(&self) -> [String; 7] {
        let compared = self.compared();
        let (low, high) = range(&compared);
        let sign = match self.compare {
            Compare::Ratio => "x",
            Compare::Difference | Compare::Alone => "",
        };
        let plus = if self.compare == Compare::Difference { "+" } else { "" };
        let comparison = match self.compare {
            Compare::Alone => String::new(),
            Compare::Ratio | Compare::Difference => format!("{plus}{}{sign}", short(median(&compared))),
        };
        let verdict = self.reached().map_or("", |reached| if reached { "PASS" } else { "MISS" });
        [
            self.name.clone(),
            format!("{} {}", short(self.product()), self.unit),
            self.reference().map(|value| format!("{} {}", short(value), self.reference)).unwrap_or_default(),
            comparison,
            format!("{}..{}{sign}", short(low), short(high)),
            match self.goal {
                Some(Goal::AtMost(limit)) => format!("<= {}{sign}", short(limit)),
                Some(Goal::AtLeast(limit)) => format!(">= {}{sign}", short(limit)),
                None => String::new(),
            },
            verdict.to_owned(),
        ]
    }

    fn json(&self, bench: &str, others: f64, options: &Options) -> String {
        let compared = self.compared();
        let (low, high) = range(&compared);
        let goal = self.goal.map(|goal| match goal {
            Goal::AtMost(limit) => json!({"at_most": limit}),
            Goal::AtLeast(limit) => json!({"at_least": limit}),
        });
        let compare = match self.compare {
            Compare::Ratio => "ratio",
            Compare::Difference => "difference",
            Compare::Alone => "alone",
        };
        json!({
            "bench": bench, "figure": self.name, "unit": self.unit, "product": self.product(),
            "reference": self.reference(), "reference_name": self.reference, "compare": compare,
            "value": median(&compared), "low": low, "high": high, "goal": goal, "reached": self.reached(),
            "rounds": self.rounds.len(), "others_cores": others, "quick": options.quick,
            "debug": cfg!(debug_assertions),
        })
        .to_string()
    }
}

/// What one bench found.
#[derive(Debug)]
pub(crate) struct Report {
    setup: String,
    figures: Vec<Figure>,
    others: Vec<f64>,
}

impl Report {
    /// Figures, how they were taken, and how many cores others used in each round.
    pub(crate) fn new(setup: impl Into<String>, figures: Vec<Figure>, others: Vec<f64>) -> Self {
        Self { setup: setup.into(), figures, others }
    }

    /// To standard output.
    pub(crate) fn print(&self, bench: &str, options: &Options) -> Result<()> {
        let others = median(&self.others);
        let mut out = std::io::stdout().lock();
        if options.json {
            for figure in &self.figures {
                writeln!(out, "{}", figure.json(bench, others, options))?;
            }
            return Ok(());
        }
        let build = if cfg!(debug_assertions) { "debug build, figures mean nothing; " } else { "" };
        let (_, most) = range(&self.others);
        writeln!(
            out,
            "\n{bench}: {}\n{build}medians of {} rounds, others used {others:.2} cores (at most {most:.2})",
            self.setup,
            self.figures.iter().map(|figure| figure.rounds.len()).max().unwrap_or(0),
        )?;
        let head = ["figure", "product", "reference", "compared", "low..high", "goal", ""].map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(head).chain(self.figures.iter().map(Figure::row)).collect();
        let mut widths = [0; 7];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(out, "  {}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Three digits, or all before the point.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// To standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    // Where there is nobody to tell, nothing is lost.
    let _ = writeln!(std::io::stderr(), "bench: {error:#}");
}
