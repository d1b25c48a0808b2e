//! `rhyolite-sim`: runs seeds, and shows what happened under one.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rhyolite_logic::lease::Guards;
use rhyolite_sim::cluster::rules::{self as cluster_rules, ClusterRules};
use rhyolite_sim::rules::{RULES, without};
use rhyolite_sim::{Scenario, run};

const HELP: &str = "\
Runs the simulated world (docs/sim.md).

  rhyolite-sim --seeds 100000 [--from 1] [--jobs 1]   run so many seeds; ends with 1 at the first that fails
               [--keep-going]                         and says what every seed that fails found
  rhyolite-sim --seed 17 [--trace]                    run one; with every line of what happened
               [--without RULE]                       with one rule switched off, to see what it is there for
               [--cluster]                            worlds in which the nodes form a cluster, with its rules
               [--forward]                            the same, with replicas that write through the primary
";

#[derive(Debug)]
struct Arguments {
    seeds: Option<u64>,
    from: u64,
    jobs: u64,
    seed: Option<u64>,
    trace: bool,
    keep_going: bool,
    rules: Rules,
}

/// The kind of world, and the rules in force.
#[derive(Clone, Copy, Debug)]
enum Rules {
    Writers(Guards),
    Cluster(ClusterRules),
    Forward(ClusterRules),
}

impl Rules {
    fn scenario(self, seed: u64) -> Scenario {
        match self {
            Self::Writers(guards) => Scenario::new(seed, guards),
            Self::Cluster(rules) => Scenario::cluster(seed, rules),
            Self::Forward(rules) => Scenario::forwarding_cluster(seed, rules),
        }
    }

    /// Those without the one of this name.
    fn without(is_cluster: bool, rule: &str) -> Result<Self, String> {
        let found = match is_cluster {
            true => cluster_rules::without(rule).map(Self::Cluster),
            false => without(rule).map(Self::Writers),
        };
        found.ok_or_else(|| {
            let names = match is_cluster {
                true => cluster_rules::RULES.map(|(name, _)| name).join(", "),
                false => RULES.map(|(name, _)| name).join(", "),
            };
            format!("no rule {rule:?}; there are {names}")
        })
    }
}

fn arguments() -> Result<Arguments, String> {
    let (seeds, seed, trace, keep_going) = (None, None, false, false);
    let rules = Rules::Writers(Guards::ALL);
    let mut found = Arguments { seeds, from: 1, jobs: 1, seed, trace, keep_going, rules };
    let (mut is_cluster, mut forwards, mut switched_off) = (false, false, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let mut number = || {
            let value = value()?;
            value.parse::<u64>().map_err(|_| format!("{word}: {value:?} is no number"))
        };
        match word.as_str() {
            "--seeds" => found.seeds = Some(number()?),
            "--from" => found.from = number()?,
            "--jobs" => found.jobs = number()?,
            "--seed" => found.seed = Some(number()?),
            "--without" => {
                switched_off = Some(value()?);
            }
            "--cluster" => is_cluster = true,
            "--forward" => (is_cluster, forwards) = (true, true),
            "--keep-going" => found.keep_going = true,
            "--trace" => found.trace = true,
            _ => return Err(format!("unknown argument {word:?}\n\n{HELP}")),
        }
    }
    found.rules = match &switched_off {
        Some(rule) => Rules::without(is_cluster, rule)?,
        None if is_cluster => Rules::Cluster(ClusterRules::ALL),
        None => rules,
    };
    if let Rules::Cluster(rules) = found.rules
        && forwards
    {
        found.rules = Rules::Forward(rules);
    }
    match (found.seed, found.seeds) {
        (Some(_), None) | (None, Some(1..)) if found.jobs > 0 => Ok(found),
        _ => Err(HELP.to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let report = run(arguments.rules.scenario(seed), arguments.trace);
    for line in &report.trace {
        println!("{line}");
    }
    match report.violation {
        Some(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
        None => {
            println!(
                "seed {seed}: everything held; {} acknowledgements{}",
                report.acknowledged,
                told(report.promised, report.forwarded)
            );
            ExitCode::SUCCESS
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let (from, count) = (arguments.from, arguments.seeds.unwrap_or(1));
    let begun = Instant::now();
    let (next, done, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (promised, forwarded) = (AtomicU64::new(0), AtomicU64::new(0));
    let (failed, first) = (AtomicBool::new(false), Mutex::new(None::<(u64, String)>));
    // A run that fails by a panic tells it in its report.
    std::panic::set_hook(Box::new(|_| {}));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            let report = run(arguments.rules.scenario(from + at), false);
            acknowledged.fetch_add(report.acknowledged, Ordering::Relaxed);
            promised.fetch_add(report.promised, Ordering::Relaxed);
            forwarded.fetch_add(report.forwarded, Ordering::Relaxed);
            if let Some(violation) = report.violation {
                if arguments.keep_going {
                    println!("seed {}: {violation}", from + at);
                }
                let mut first = first.lock().expect("nobody panics with this lock");
                if first.as_ref().is_none_or(|(seed, _)| from + at < *seed) {
                    *first = Some((from + at, violation));
                }
                failed.store(!arguments.keep_going, Ordering::Relaxed);
                continue;
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(1000) {
                eprintln!("{done} of {count} seeds, {:.0} s", begun.elapsed().as_secs_f64());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(work);
        }
    });
    let (done, acknowledged) = (done.into_inner(), acknowledged.into_inner());
    match first.into_inner().expect("nobody panics with this lock") {
        Some((seed, violation)) => {
            println!("seed {seed}: {violation}\nits trace: rhyolite-sim --seed {seed} --trace");
            ExitCode::FAILURE
        }
        None => {
            let told = told(promised.into_inner(), forwarded.into_inner());
            println!("{done} seeds from {from}, {acknowledged} acknowledgements{told}, 0 violations");
            ExitCode::SUCCESS
        }
    }
}

/// Only clusters promise anything, and commit what others have written.
fn told(promised: u64, forwarded: u64) -> String {
    let some = |count: u64, what: &str| if count == 0 { String::new() } else { format!(", {count} {what}") };
    some(promised, "promises") + &some(forwarded, "forwarded writes")
}
