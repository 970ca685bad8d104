//! Small things, many times: for code that is too short to be timed once.

use std::time::Instant;

use super::sample::median;

/// Batches of each side; they take turns, and the middle one counts, so that being interrupted now and then is not measured.
const BATCHES: usize = 41;

/// Nanoseconds that one call of each takes. `calls` should take well below a millisecond together.
pub(crate) fn nanos<A: FnMut(), B: FnMut()>(calls: u32, mut product: A, mut reference: B) -> (f64, f64) {
    let mut times = [Vec::with_capacity(BATCHES), Vec::with_capacity(BATCHES)];
    for _ in 0..BATCHES {
        times[0].push(batch(calls, &mut product));
        times[1].push(batch(calls, &mut reference));
    }
    (median(&times[0]), median(&times[1]))
}

fn batch(calls: u32, call: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}
