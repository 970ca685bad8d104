//! `make chaos`: any number of rounds, each with a seed of its own that follows from the first. Without a setup every second
//! round is on one core and SQLite, the others on two cores, NATS, and MongoDB on one server or three.

use anyhow::{Context as _, Result, ensure};
use chatbox_tests::checker::{
    faults::Menu,
    faulty::{BUS_LIE, BusLie},
    round::{self, Plan},
    topology::{Cluster, Single, Topology},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().context("usage: chaos ROUNDS SEED [single|cluster-1|cluster-3|lossy]");
    let (rounds, first): (u64, u64) = (number()?.parse()?, number()?.parse()?);
    let only = number().ok();
    let mut broken = 0;
    for seed in first..first + rounds {
        let topology: Box<dyn Topology> = match only.as_deref() {
            Some("cluster-1") => Box::new(Cluster::start(2, 1).await?),
            Some("lossy") => {
                let vars = vec![(BUS_LIE.to_owned(), BusLie::Lost.name().to_owned())];
                Box::new(Cluster::start_as("faulty-core", vars, 2, 1).await?)
            }
            Some("cluster-3") => Box::new(Cluster::start(2, 3).await?),
            None if seed % 4 == 1 => Box::new(Cluster::start(2, 1).await?),
            None if seed % 4 == 3 => Box::new(Cluster::start(2, 3).await?),
            Some(_) | None => Box::new(Single::start("chatbox-core", Vec::new(), Menu::Single).await?),
        };
        let outcome = round::run(topology, Plan::drawn(seed)).await?;
        if outcome.violations.is_empty() {
            show(&outcome.summary());
        } else {
            broken += 1;
            show(&outcome.report());
        }
    }
    ensure!(broken == 0, "{broken} of {rounds} rounds broke a promise; first seed {first}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn show(text: &str) {
    print!("{text}");
}
