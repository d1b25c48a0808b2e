//! A cluster on one machine: how long nobody can write when the primary is lost or hands its role on, and what a write costs that comes in at a replica. What replicas
//! cost the primary is in [`replica_cost`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use xtask::args::Args;
use xtask::cluster::http::ask;
use xtask::cluster::setting::Setting;
use xtask::cluster::{Cluster, Node, TTL_SECONDS, signal_all};
use xtask::error::{Context, Outcome, fail};
use xtask::rhyolite::Rhyolite;

use crate::lab::{LIMIT, Lab};
use crate::measure::percentile;
use crate::table::Row;
use crate::{forwarding, replica_cost};

/// Between two requests that ask whether somebody can write again.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait for that.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Failover is to be over this long after the lease has ended.
const FAILOVER_MORE_S: f64 = 1.0;
const HANDOFF_P99_MS_MAX: f64 = 300.0;
/// Two round trips on this machine are far below a tenth of a millisecond.
const FORWARDED_MORE_MS_MAX: f64 = 2.1;

/// Measures failovers, handoffs, forwarded writes, and the write rate.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let rounds: u64 = args.option_or("--cluster-rounds", 8)?;
    let handoffs: u64 = args.option_or("--cluster-handoffs", 20)?;
    let cluster = Cluster::start(&Rhyolite::at(lab.binary.clone()), Setting::plain(2))?;
    let numbers = AtomicU64::new(1);
    let world = World { cluster: &cluster, numbers: &numbers };
    world.wait_ready()?;
    let mut rows = Vec::new();
    for loss in [Loss::Kill, Loss::Freeze, Loss::Store] {
        rows.push(failover_row(&world, loss, rounds)?);
    }
    rows.extend(handoff_rows(&world, handoffs)?);
    rows.push(forwarded_row(&world)?);
    cluster.nodes.iter().rev().try_for_each(|node| node.stop().map(|_| ()))?;
    drop(cluster);
    rows.extend(forwarding::rows(lab)?);
    rows.extend(replica_cost::rows(lab)?);
    Ok(rows)
}

/// How a primary is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Kill,
    Freeze,
    Store,
}

struct World<'a> {
    cluster: &'a Cluster,
    /// Numbers of rows.
    numbers: &'a AtomicU64,
}

impl World<'_> {
    fn write(&self, proxy: SocketAddr) -> Outcome {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let answer = ask(proxy, "POST", &format!("/add/0/{number}"), None, AGAIN_MAX)?;
        if answer.status == 200 { Ok(()) } else { fail(format!("status {}: {}", answer.status, answer.body.trim())) }
    }

    /// The primary, and another.
    fn roles(&self) -> Outcome<(&Node, &Node)> {
        let primary = self.cluster.primary().context("nobody is the primary")?;
        let other = self.cluster.nodes.iter().find(|node| node.name != primary.name).context("one node alone")?;
        Ok((primary, other))
    }

    /// Waits until there is a primary, the other follows it, and both proxies pass writes on.
    fn wait_ready(&self) -> Outcome {
        let deadline = Instant::now() + LIMIT;
        let is_ready = || -> Outcome {
            let (primary, other) = self.roles()?;
            let is_replica = self.cluster.node_status(other).is_some_and(|status| status["role"] == "replica");
            let health = ask(other.proxy, "GET", "/rhyolite/health", None, AGAIN_MAX)?;
            if !is_replica || health.status != 200 {
                return fail("no replica yet");
            }
            self.write(primary.proxy)?;
            self.write(other.proxy)
        };
        while let Err(error) = is_ready() {
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }
}

/// Milliseconds from the loss to the end of the first write that began after it and was committed.
fn failover_ms(world: &World<'_>, loss: Loss) -> Outcome<f64> {
    world.wait_ready()?;
    let (primary, other) = world.roles()?;
    let frozen: BTreeSet<u32> = primary.id().into_iter().collect();
    let began = Instant::now();
    match loss {
        Loss::Kill => drop(primary.kill()?),
        Loss::Freeze => world.cluster.freeze(&frozen),
        Loss::Store => world.cluster.set_store(primary, false)?,
    }
    let is_over = AtomicBool::new(false);
    let took = thread::scope(|scope| {
        let (done, ends) = mpsc::channel();
        while began.elapsed() < AGAIN_MAX {
            let (done, proxy) = (done.clone(), other.proxy);
            scope.spawn(move || {
                if world.write(proxy).is_ok() {
                    let _ = done.send(began.elapsed());
                }
            });
            if let Ok(took) = ends.recv_timeout(ASK_EVERY) {
                is_over.store(true, Ordering::Relaxed);
                // Who is frozen answers those that have come to it before.
                signal_all(&frozen, libc::SIGCONT);
                return Some(took);
            }
        }
        None
    });
    match loss {
        Loss::Kill => world.cluster.start_node(primary)?,
        Loss::Freeze => signal_all(&frozen, libc::SIGCONT),
        Loss::Store => world.cluster.set_store(primary, true)?,
    }
    Ok(took.context("nobody could write again")?.as_secs_f64() * 1e3)
}

fn failover_row(world: &World<'_>, loss: Loss, rounds: u64) -> Outcome<Row> {
    let mut times = (0..rounds).map(|_| failover_ms(world, loss)).collect::<Outcome<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
    let what = match loss {
        Loss::Kill => "failover after kill -9 of the node",
        Loss::Freeze => "failover after a freeze of the node",
        Loss::Store => "failover when the primary loses the store",
    };
    let max = TTL_SECONDS as f64 + FAILOVER_MORE_S;
    Ok(Row {
        what: what.to_owned(),
        figure: format!("{:.2} s (at most {:.2} s)", middle / 1e3, most / 1e3),
        goal: "≤ lease + 1 s",
        met: Some(most / 1e3 <= max),
        detail: format!("lease of {TTL_SECONDS} s, {rounds} times, to the first write through the other node's proxy"),
    })
}

/// The longest wait for a write around each handoff, while clients write through both proxies one after another, and how many writes failed.
fn handoff_rows(world: &World<'_>, handoffs: u64) -> Outcome<Vec<Row>> {
    let (mut pauses_us, mut failed, mut writes) = (Vec::new(), 0, 0);
    for _ in 0..handoffs {
        world.wait_ready()?;
        // Whoever has handed the role on does not take it again for that long, and is the only other node here.
        thread::sleep(Duration::from_secs(TTL_SECONDS));
        let (primary, _) = world.roles()?;
        let ends = AtomicBool::new(false);
        let found = thread::scope(|scope| {
            let clients: Vec<_> =
                world.cluster.nodes.iter().map(|node| scope.spawn(|| write_on(world, node.proxy, &ends))).collect();
            thread::sleep(Duration::from_millis(300));
            let is_handed_on = world.cluster.hand_on(primary);
            thread::sleep(Duration::from_millis(1500));
            ends.store(true, Ordering::Relaxed);
            let found: Vec<_> = clients.into_iter().filter_map(|client| client.join().ok()).collect();
            is_handed_on.then_some(found)
        });
        for (pause, bad, good) in found.context("the primary did not hand its role on")? {
            pauses_us.push(pause);
            failed += bad;
            writes += good;
        }
    }
    let p50 = percentile(&mut pauses_us, 500) as f64 / 1e3;
    let p99 = percentile(&mut pauses_us, 990) as f64 / 1e3;
    Ok(vec![
        Row {
            what: "handoff, longest wait of a write, p99".to_owned(),
            figure: format!("{p99:.0} ms (p50 {p50:.0} ms)"),
            goal: "≤ 300 ms",
            met: Some(p99 <= HANDOFF_P99_MS_MAX),
            detail: format!("{handoffs} handoffs, one client at each proxy"),
        },
        Row {
            what: "handoff, failed requests".to_owned(),
            figure: failed.to_string(),
            goal: "0",
            met: Some(failed == 0),
            detail: format!("{writes} writes"),
        },
    ])
}

/// Writes until it is told to end: the longest wait in microseconds, failures, and writes.
fn write_on(world: &World<'_>, proxy: SocketAddr, ends: &AtomicBool) -> (u64, u64, u64) {
    let (mut longest, mut failed, mut writes) = (0, 0, 0);
    while !ends.load(Ordering::Relaxed) {
        let began = Instant::now();
        match world.write(proxy) {
            Ok(()) => writes += 1,
            Err(_) => failed += 1,
        }
        longest = longest.max(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        thread::sleep(Duration::from_millis(2));
    }
    (longest, failed, writes)
}

fn forwarded_row(world: &World<'_>) -> Outcome<Row> {
    const WRITES: usize = 400;
    world.wait_ready()?;
    let (primary, other) = world.roles()?;
    let (mut direct, mut forwarded) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        for (proxy, times) in [(primary.proxy, &mut direct), (other.proxy, &mut forwarded)] {
            let began = Instant::now();
            world.write(proxy)?;
            times.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
    let p50 = |times: &mut Vec<u64>| percentile(times, 500) as f64 / 1e6;
    let (direct, forwarded) = (p50(&mut direct), p50(&mut forwarded));
    Ok(Row {
        what: "write through a replica's proxy, p50".to_owned(),
        figure: format!("{:.2} ms more", forwarded - direct),
        goal: "≤ 2 round trips + 2 ms",
        met: Some(forwarded - direct <= FORWARDED_MORE_MS_MAX),
        detail: format!("{forwarded:.2} ms against {direct:.2} ms through the primary's, {WRITES} each in turn"),
    })
}
