//! `make chaos`: any number of rounds, each with a seed of its own that follows from the first.

use anyhow::{Context as _, Result, ensure};
use chatbox_tests::checker::{
    faults::Menu,
    round::{self, Plan},
    topology::Single,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().context("usage: chaos ROUNDS SEED");
    let (rounds, first): (u64, u64) = (number()?.parse()?, number()?.parse()?);
    let mut broken = 0;
    for seed in first..first + rounds {
        let topology = Single::start("chatbox-core", Vec::new(), Menu::Single).await?;
        let outcome = round::run(Box::new(topology), Plan::drawn(seed)).await?;
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
