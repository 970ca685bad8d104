//! What the product adds to a call of its provider: to the first token of one reply, from question to screen, and to every
//! token of many replies at the same time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Bench, MILLISECOND, PATIENCE, PERIOD, direct::Direct};
use crate::measure::{
    machine::{Others, Place},
    options::Options,
    report::{Compare, Figure, Goal, Report},
    sample::percentile,
};

pub(crate) fn run(options: &Options) -> Result<Report> {
    Place::Load.enter()?;
    let questions = options.pick(300, 20);
    let replies = options.pick(100, 10);
    let deltas = options.pick(250, 50);
    let mut one = Bench::start(1, "")?;
    let mut many = Bench::start(replies, "")?;
    let mut direct_one = Direct::connect(one.provider.address()?, 1)?;
    let mut direct_many = Direct::connect(many.provider.address()?, replies)?;
    let figure =
        |name: &'static str, most| Figure::new(name, "ms", "direct", Compare::Difference).goal(Goal::AtMost(most));
    let mut first = [figure("first token, p50", 0.5), figure("first token, p99", 2.0)];
    let mut each =
        [Figure::new("each token, p50", "ms", "direct", Compare::Difference), figure("each token, p99", 1.0)];
    let mut others = Vec::new();
    one.first_tokens(5)?;
    many.round(10)?;
    for round in 0..options.rounds {
        let watch = Others::watch(&[one.product.edge(), one.product.core(), many.product.edge(), many.product.core()])?;
        let (mut product, mut direct) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for turn in 0..2 {
            if (turn + round) % 2 == 0 {
                product = (one.first_tokens(questions)?, many.round(deltas)?.latencies);
            } else {
                direct = (
                    one.first_tokens_of(&mut direct_one, questions)?,
                    many.tokens_of(&mut direct_many, replies, deltas)?,
                );
            }
        }
        others.push(watch.cores()?);
        for (at, share) in [0.5, 0.99].into_iter().enumerate() {
            first[at].round(percentile(&mut product.0, share), percentile(&mut direct.0, share));
            each[at].round(percentile(&mut product.1, share), percentile(&mut direct.1, share));
        }
    }
    one.product.check()?;
    many.product.check()?;
    let setup = format!(
        "first token: one question after the other, from its frame to the first delta, the message stored with a sync; each \
         token: {replies} replies at 50 deltas/s, from the time it was due; edge and core on core 0, provider and clients on core 1"
    );
    Ok(Report::new(setup, first.into_iter().chain(each).collect(), others))
}

impl Bench {
    /// Milliseconds from a question to the first delta of its reply, so many times.
    fn first_tokens(&mut self, questions: usize) -> Result<Vec<f64>> {
        let mut took = Vec::with_capacity(questions);
        for _ in 0..questions {
            self.begin(1);
            let frame = self.question()?;
            let asked = Instant::now();
            self.load.send(0, &frame)?;
            let mut seen = super::Delivered::default();
            let number =
                self.answering(asked, |bench| bench.receive(Duration::ZERO, &mut super::Delivered::default()))?;
            self.provider.delta(number, Instant::now())?;
            while seen.frames == 0 {
                ensure!(asked.elapsed() < PATIENCE, "no delta came");
                self.receive(Duration::ZERO, &mut seen)?;
            }
            took.push(asked.elapsed().as_secs_f64() * 1e3);
            self.provider.finish(number)?;
            self.finished()?;
        }
        Ok(took)
    }

    /// The same at the provider itself.
    fn first_tokens_of(&mut self, direct: &mut Direct, questions: usize) -> Result<Vec<f64>> {
        let mut took = Vec::with_capacity(questions);
        for _ in 0..questions {
            let asked = Instant::now();
            direct.ask(0)?;
            let number = self.answering(asked, |_| direct.receive(Duration::ZERO, |_, _| {}))?;
            self.provider.delta(number, Instant::now())?;
            let mut seen = false;
            while !seen {
                ensure!(asked.elapsed() < PATIENCE, "no delta came");
                direct.receive(Duration::ZERO, |_, _| seen = true)?;
            }
            took.push(asked.elapsed().as_secs_f64() * 1e3);
            self.provider.finish(number)?;
        }
        Ok(took)
    }

    /// The one connection of the provider that is asked something.
    fn answering(&mut self, asked: Instant, mut wait: impl FnMut(&mut Self) -> Result<()>) -> Result<usize> {
        loop {
            self.provider.serve(Duration::ZERO)?;
            if let [number] = self.provider.answering()[..] {
                return Ok(number);
            }
            ensure!(asked.elapsed() < PATIENCE, "no question came");
            wait(self)?;
        }
    }

    /// Milliseconds from the time a delta was due to its arrival, at clients of the provider itself.
    fn tokens_of(&mut self, direct: &mut Direct, replies: usize, deltas: u32) -> Result<Vec<f64>> {
        for number in 0..replies {
            direct.ask(number)?;
        }
        let asked = Instant::now();
        while self.provider.answering().len() < replies {
            ensure!(asked.elapsed() < PATIENCE, "questions are missing");
            self.provider.serve(MILLISECOND)?;
        }
        let answering = self.provider.answering();
        let count = u32::try_from(replies)?;
        let start = Instant::now() + MILLISECOND;
        let due = |number: u32| start + PERIOD * (number / count) + PERIOD * (number % count) / count;
        let (mut sent, mut latencies) = (0, Vec::new());
        while latencies.len() < (count * deltas) as usize {
            ensure!(start.elapsed() < PERIOD * deltas + PATIENCE, "deltas are missing");
            while sent < count * deltas && due(sent) <= Instant::now() {
                self.provider.delta(answering[(sent % count) as usize], due(sent))?;
                sent += 1;
            }
            let provider = &self.provider;
            direct.receive(MILLISECOND, |_, due| {
                let now = provider.elapsed(Instant::now());
                latencies.push(now.saturating_sub(due).as_secs_f64() * 1e3);
            })?;
        }
        for number in answering {
            self.provider.finish(number)?;
        }
        Ok(latencies)
    }
}
