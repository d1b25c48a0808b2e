//! What replicas cost the primary: the rate of an application that commits without a pause, with three replicas over none.
//!
//! All of it shares the processors of one machine, which in a cluster each replica has for itself. So the ratio is measured again with application and
//! primary on one processor, and the replicas on another: what is left of it then is what the primary itself does for them.

use std::process::Command;
use std::thread;
use std::time::Duration;

use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;

use crate::lab::{LIMIT, Lab, figure, make_database};
use crate::measure::{cpu_seconds, spread, spread_text};
use crate::table::Row;

const RATE_MIN: f64 = 0.9;
const REPLICAS: usize = 3;
const PAIRS: usize = 5;

/// Who may use which processors.
#[derive(Clone, Copy, Debug)]
enum Processors {
    /// All of them everybody.
    Shared,
    /// The application and the primary the first one, the replicas the second one.
    Apart,
}

/// One run.
struct Run {
    per_second: f64,
    /// Microseconds of processors for each commit: of the application, of the primary, and of the replicas together.
    cost_us: [f64; 3],
}

/// Measures the ratio in pairs, both ways.
pub(crate) fn rows(lab: &Lab) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for processors in [Processors::Shared, Processors::Apart] {
        let (mut ratios, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let without = run(lab, 0, processors)?;
            let with = run(lab, REPLICAS, processors)?;
            ratios.push(with.per_second / without.per_second);
            costs.push((without.cost_us, with.cost_us));
        }
        let detail = match processors {
            Processors::Shared => "all on one machine",
            Processors::Apart => "application and primary on one processor, the replicas on another",
        };
        let is_goal = matches!(processors, Processors::Shared);
        let place = if is_goal { "" } else { ", replicas on a processor of their own" };
        rows.push(Row {
            what: format!("primary's write rate with {REPLICAS} replicas / with none{place}"),
            figure: spread_text(&ratios, 2),
            goal: if is_goal { "≥ 0.9" } else { "" },
            met: is_goal.then(|| spread(&ratios).0 >= RATE_MIN),
            detail: format!("{PAIRS} pairs, commits of one row without a pause, {detail}"),
        });
        if is_goal {
            rows.push(cost_row(&costs));
        }
    }
    Ok(rows)
}

/// Processor time for each commit of the application, the primary and the replicas together, in microseconds: without replicas, and with them.
type Costs = ([f64; 3], [f64; 3]);

fn cost_row(costs: &[Costs]) -> Row {
    let median = |of: &dyn Fn(&Costs) -> f64| spread(&costs.iter().map(of).collect::<Vec<_>>()).0;
    let primary = median(&|(without, with)| with[1] - without[1]);
    let replicas = median(&|(_, with)| with[2] / REPLICAS as f64);
    Row {
        what: "processor time of a replica per commit: of the replica, and of the primary for it".to_owned(),
        figure: format!("{replicas:.1} µs, {:.1} µs", primary / REPLICAS as f64),
        goal: "",
        met: None,
        detail: format!(
            "the same runs; a commit costs the application {:.1} µs, and the primary {:.1} µs without replicas",
            median(&|(without, _)| without[0]),
            median(&|(without, _)| without[1])
        ),
    }
}

/// Starts something with the threads that it will have on these processors.
fn on<T>(processors: Processors, number: usize, start: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let Processors::Apart = processors else { return start() };
    let before = affinity()?;
    // SAFETY: a set of processors is plain bits, for which zeros are a value.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is far below the size of the set.
    unsafe { libc::CPU_SET(number, &mut one) };
    set_affinity(&one)?;
    let started = start();
    set_affinity(&before)?;
    started
}

fn affinity() -> Outcome<libc::cpu_set_t> {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes to `set`, whose size it is told.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if status == 0 { Ok(set) } else { fail("ask for the processors") }
}

fn set_affinity(set: &libc::cpu_set_t) -> Outcome {
    // SAFETY: the call reads `set`, whose size it is told; what is started from here on inherits it.
    let status = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
    if status == 0 { Ok(()) } else { fail("choose a processor: this needs two") }
}

fn run(lab: &Lab, replicas: usize, processors: Processors) -> Outcome<Run> {
    let folder = lab.folder("cluster-rate")?;
    make_database(&folder)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a port")?;
    let address = listener.local_addr().context("find a port")?.to_string();
    drop(listener);
    let mut node = on(processors, 0, || lab.replicate(&folder, &["--cluster-listen", &address]))?;
    let follow = |number: usize| -> Outcome<Process> {
        let mut command = Command::new(&lab.binary);
        command.args(["follow", &format!("http://{address}"), "app.db", "--into"]);
        command.arg(folder.join(format!("replica{number}.db")));
        on(processors, 1, || Process::start("rhyolite follow", command, &folder.join("follow.log")))
    };
    let mut followers = (0..replicas).map(follow).collect::<Outcome<Vec<_>>>()?;
    on(processors, 0, || lab.app(&folder, &["--transactions", "100", "--pause-us", "1000"]))?;
    thread::sleep(Duration::from_secs(1));
    let cpu = |node: &Process, followers: &[Process]| -> Outcome<(f64, f64)> {
        let replicas = followers.iter().map(|follower| cpu_seconds(follower.id())).sum::<Outcome<f64>>()?;
        Ok((cpu_seconds(node.id())?, replicas))
    };
    let before = cpu(&node, &followers)?;
    let figures = on(processors, 0, || lab.app(&folder, &["--seconds", "3"]))?;
    let after = cpu(&node, &followers)?;
    followers.iter_mut().try_for_each(|follower| follower.terminate(LIMIT))?;
    node.terminate(LIMIT)?;
    let commits = figure(&figures, "commits")?;
    let costs = [figure(&figures, "cpu_seconds")?, after.0 - before.0, after.1 - before.1];
    Ok(Run { per_second: figure(&figures, "per_second")?, cost_us: costs.map(|seconds| seconds * 1e6 / commits) })
}
