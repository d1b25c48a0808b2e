//! Runs with every rule in force.

use rhyolite_logic::lease::Guards;
use rhyolite_sim::{Scenario, run};

#[test]
fn two_hundred_seeds_hold() {
    let mut acknowledged = 0;
    for seed in 1..=200 {
        let report = run(Scenario::new(seed, Guards::ALL), false);
        assert_eq!(report.violation, None, "seed {seed}");
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 5_000, "the nodes got to write: {acknowledged}");
}

#[test]
fn a_seed_gives_one_trace() {
    for seed in [3, 7, 21, 24] {
        let first = run(Scenario::new(seed, Guards::ALL), true);
        let second = run(Scenario::new(seed, Guards::ALL), true);
        assert!(first.trace.len() > 100, "something happens under seed {seed}");
        assert_eq!(first.trace.join("\n"), second.trace.join("\n"), "seed {seed}");
        assert_eq!(first, second, "seed {seed}");
        let quiet = run(Scenario::new(seed, Guards::ALL), false);
        assert_eq!(
            (quiet.violation, quiet.acknowledged),
            (first.violation, first.acknowledged),
            "looking changes nothing"
        );
    }
}
