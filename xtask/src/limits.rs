//! How long a run of a torture test lasts, how many lanes it has, and the seed of its choices.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::args::Args;
use crate::error::{Context, Outcome};
use crate::rng::Rng;

/// A run that finds this many faults has proved its point.
pub(crate) const FAULTS_MAX: u64 = 10;

/// When to stop, and what decides what happens until then.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Seconds that the run lasts.
    pub(crate) seconds: u64,
    /// Lanes that run side by side.
    pub(crate) lanes: u64,
    /// Decides all choices.
    pub(crate) seed: u64,
    cycles: u64,
    began: Instant,
    begun: AtomicU64,
}

impl Limits {
    /// Takes `--minutes N` or `--seconds N`, `--cycles N`, `--seed S` and `--lanes N`. The time runs from here on.
    pub(crate) fn take(args: &mut Args) -> Outcome<Self> {
        let seconds = match args.option::<u64>("--seconds")? {
            Some(seconds) => seconds,
            None => 60 * args.option_or::<u64>("--minutes", 1)?,
        };
        let cycles = args.option_or("--cycles", u64::MAX)?;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        let seed = args.option_or("--seed", clock.as_millis() as u64)?;
        let lanes = args.option_or("--lanes", 2)?;
        Ok(Self { seconds, lanes, seed, cycles, began: Instant::now(), begun: AtomicU64::new(0) })
    }

    /// The time runs anew: what was prepared meanwhile does not count.
    pub(crate) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The choices of a lane, counted from 0.
    pub(crate) fn lane_rng(&self, lane: u64) -> Rng {
        Rng::new(self.seed ^ (lane + 1).wrapping_mul(0x51_7C_C1_B7_27_22_0A_95))
    }

    /// Whether another cycle may begin when so many `faults` were found; counts it when so.
    pub(crate) fn begin_cycle(&self, faults: u64) -> bool {
        self.elapsed() < Duration::from_secs(self.seconds)
            && faults < FAULTS_MAX
            && self.begun.fetch_add(1, Ordering::Relaxed) < self.cycles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(line: &str) -> Limits {
        Limits::take(&mut Args::new(line.split_whitespace().map(str::to_owned))).unwrap()
    }

    #[test]
    fn time_cycles_and_faults_end_a_run() {
        let of_cycles = limits("--minutes 5 --cycles 2");
        assert_eq!(of_cycles.seconds, 300);
        assert!(of_cycles.begin_cycle(0) && of_cycles.begin_cycle(0) && !of_cycles.begin_cycle(0));
        assert!(!limits("--seconds 0").begin_cycle(0));
        assert!(limits("").begin_cycle(FAULTS_MAX - 1) && !limits("").begin_cycle(FAULTS_MAX));
    }
}
