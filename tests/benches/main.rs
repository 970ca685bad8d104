//! Speed and memory of the product, each figure beside its reference in the same run: `make bench`.
//!
//! One program for all benches, so that core, edge and the references are built once. References and product take turns in
//! every round, since figures of two runs cannot be compared on a machine that others use too. A goal that is missed is
//! shown, not failed: only a wrong answer ends the run.

mod bridge;
mod measure;
mod memory;
mod mongo;
mod sse;
mod store;
mod streaming;

use std::process::ExitCode;

use anyhow::Result;

use measure::{echo, options::Options, report};

/// A bench: its name on the command line, and what it measures.
type Bench = (&'static str, fn(&Options) -> Result<report::Report>);

/// Those that need no other process first: the others put this one on the core of the load generator.
const BENCHES: [Bench; 8] = [
    ("sse", sse::run),
    ("store", store::run),
    ("mongo", mongo::run),
    ("bridge", bridge::run),
    ("memory", memory::run),
    ("streaming", streaming::run),
    ("added", streaming::added::run),
    ("many", streaming::many::run),
];

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        // This program is the reference too, in a process of its own.
        Some(echo::ARGUMENT) => echo::serve(),
        _ => run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1), &BENCHES.map(|(name, _)| name))?;
    measure::machine::raise_file_limit()?;
    for (name, bench) in BENCHES {
        if options.wants(name) {
            bench(&options)?.print(name, &options)?;
        }
    }
    Ok(())
}
