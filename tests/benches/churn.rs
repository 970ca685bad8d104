//! Sockets that come and go for minutes: what stays resident.

use std::time::{Duration, Instant};

use anyhow::Result;
use chatbox_tests::harness::churn::Churn;

use crate::measure::{
    machine::{Others, Place, resident},
    options::Options,
    product::{Product, Setup},
    report::{Compare, Figure, Goal, Report},
};

pub(crate) fn run(options: &Options) -> Result<Report> {
    let sockets = options.pick(10_000, 100);
    let (first, rest) = options
        .pick((Duration::from_mins(1), Duration::from_mins(4)), (Duration::from_secs(2), Duration::from_secs(4)));
    let lives = options.pick(Duration::from_secs(20), Duration::from_millis(500));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let product = Product::start_as(&Setup { place: Place::Anywhere, ..Setup::default() })?;
    let churn = Churn { address: product.address(), minter: Product::minter(), sockets, lives };
    let watch = Others::watch(&product.pids())?;
    let looks = async {
        let all = [product.edge(), product.core()];
        let mut seen = Vec::new();
        let mut at = tokio::time::interval_at((Instant::now() + first).into(), rest);
        for _ in 0..2 {
            at.tick().await;
            seen.push(all.map(resident));
        }
        seen
    };
    let (connections, seen) = runtime.block_on(async { tokio::join!(churn.run(first + rest + lives), looks) });
    let connections = connections?;
    let mut figures = ["edge", "core"].map(|name| {
        Figure::new(format!("{name}, resident at the end"), "B", "after the first part", Compare::Ratio)
            .goal(Goal::AtMost(1.1))
    });
    let [before, after]: [[_; 2]; 2] = seen.try_into().map_err(|_| anyhow::anyhow!("two looks"))?;
    for ((figure, before), after) in figures.iter_mut().zip(before).zip(after) {
        figure.round(after? as f64, before? as f64);
    }
    let [edge, core] = figures;
    let mut total = Figure::new("sockets in all", "", "", Compare::Alone);
    total.alone(connections as f64);
    let setup = format!(
        "{sockets} sockets at a time, each for at most {} ms, then reset, dropped or closed; looked at after {} s and {} s",
        lives.as_millis(),
        first.as_secs(),
        (first + rest).as_secs()
    );
    Ok(Report::new(setup, vec![edge, core, total], vec![watch.cores()?]))
}
