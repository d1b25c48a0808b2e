//! Each rule is switched off, and the simulator finds what it is there for; with the rule the same seeds hold.

use rhyolite_logic::lease::Guards;
use rhyolite_sim::rules::without;
use rhyolite_sim::scenario::Mood;
use rhyolite_sim::{Scenario, run};

/// Switches `rule` off in the worlds of `seeds`, until one fails with a text that holds one of `expected`. Any other failure is one of the test.
fn check(rule: &str, mood: Mood, seeds: std::ops::RangeInclusive<u64>, expected: &[&str]) {
    let guards = without(rule).expect("there is such a rule");
    for seed in seeds.clone() {
        let whole = run(Scenario::of_mood(seed, Guards::ALL, mood), false);
        assert_eq!(whole.violation, None, "{rule}: seed {seed} with every rule");
        if let Some(found) = run(Scenario::of_mood(seed, guards, mood), false).violation {
            assert!(
                expected.iter().any(|text| found.contains(text)),
                "{rule}: seed {seed} found another thing: {found}"
            );
            return;
        }
    }
    panic!("{rule}: nothing fails without it within seeds {seeds:?}");
}

const TWO_HOLDERS: &str = "have the right at the same time";
const CONTRADICTION: &str = "contradicts";
const NOT_IN_THE_LOG: &str = "was acknowledged, and is not in the log";

#[test]
fn request_ids() {
    check("request_ids", Mood::Slow, 51..=150, &[TWO_HOLDERS]);
}

#[test]
fn right_since_sent() {
    check("right_since_sent", Mood::Freezing, 1..=100, &[TWO_HOLDERS]);
}

#[test]
fn wait_for_expiry() {
    check("wait_for_expiry", Mood::Mixed, 1..=1, &[TWO_HOLDERS]);
}

#[test]
fn nonces() {
    check("nonces", Mood::Deadly, 1..=100, &[NOT_IN_THE_LOG, CONTRADICTION]);
}

#[test]
fn void_rule() {
    check("void_rule", Mood::Ahead, 1..=100, &["are missing on the way", CONTRADICTION, NOT_IN_THE_LOG]);
}

#[test]
fn writers_that_run_ahead_do_no_harm() {
    for seed in 1..=300 {
        assert_eq!(run(Scenario::of_mood(seed, Guards::ALL, Mood::Ahead), false).violation, None, "seed {seed}");
    }
}

#[test]
fn fence() {
    check("fence", Mood::Freezing, 651..=750, &["counts after epoch"]);
}

#[test]
fn manifest_epoch() {
    check("manifest_epoch", Mood::Freezing, 1..=100, &[CONTRADICTION, "two checksums", NOT_IN_THE_LOG]);
}

#[test]
fn reread_before_delete() {
    check("reread_before_delete", Mood::Meddled, 1..=100, &["and missing", "is missing"]);
}

#[test]
fn right_at_answer() {
    check("right_at_answer", Mood::Freezing, 951..=1050, &[NOT_IN_THE_LOG]);
}
