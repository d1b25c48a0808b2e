//! Many databases in one process: what idle ones cost, how soon the commits of a few busy ones among them are durable, and how long a start
//! takes when nothing has changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rhyolite_format::segment::Segment;
use rusqlite::Connection;
use serde_json::Value;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;

use crate::lab::Lab;
use crate::measure::{cpu_seconds, memory_kib, percentile};
use crate::table::Row;

/// Longest wait for all databases to be parked.
const LIMIT: Duration = Duration::from_secs(1800);
/// From so many databases on each has its goal.
const THOUSANDS: usize = 10_000;
/// A lease of a minute is renewed each 20 seconds.
const RENEWALS_PER_HOUR: f64 = 180.0;
/// Requests of a start in which nothing has changed, for the lease and for the one database that is opened with it.
const START_REQUESTS_MAX: f64 = 20.0;
/// The upload interval.
const INTERVAL_MS: f64 = 1000.0;

/// What a process costs at rest.
#[derive(Clone, Copy, Debug)]
struct Cost {
    rss_kib: f64,
    threads: f64,
    descriptors: f64,
    /// Part of a processor.
    cpu: f64,
    requests: f64,
}

/// Measures with `--counts` databases (the last is used for the rest as well), of which `--writing` write for `--seconds`.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let counts: String = args.option_or("--counts", "1,100,1000,10000".to_owned())?;
    let rest: u64 = args.option_or("--rest", 120)?;
    let writing: usize = args.option_or("--writing", 100)?;
    let seconds: u64 = args.option_or("--seconds", 60)?;
    let counts: Vec<usize> = counts.split(',').map(|n| n.parse().context("--counts")).collect::<Outcome<_>>()?;
    let mut rows = Vec::new();
    let mut before = None;
    for count in &counts {
        let world = World::make(lab, *count)?;
        let (mut process, _) = world.start(lab)?;
        let cost = world.cost(lab, &process, Duration::from_secs(rest))?;
        rows.extend(idle_rows(*count, rest, cost, before));
        before = Some((*count, cost));
        if count == counts.last().expect("there is one") {
            rows.extend(world.busy(lab, &process, writing.min(*count), seconds)?);
            world.wait_parked(lab, &mut process)?;
            process.terminate(LIMIT)?;
            rows.extend(world.restart(lab)?);
        } else {
            process.terminate(LIMIT)?;
        }
    }
    Ok(rows)
}

/// What many cost at rest, and each of them beyond what fewer cost `before`. The goal for each is that of thousands: with few, what the
/// process needs once, whatever their number, is most of it.
fn idle_rows(count: usize, rest: u64, cost: Cost, before: Option<(usize, Cost)>) -> Vec<Row> {
    let what = |name: &str| format!("{name}, {count} idle databases");
    let row = |name: &str, figure: String, goal: &'static str, met, detail: &str| Row {
        what: what(name),
        figure,
        goal,
        met,
        detail: detail.to_owned(),
    };
    let mut rows = Vec::new();
    let mib = format!("{:.1} MiB", cost.rss_kib / 1024.0);
    rows.push(row("resident memory", mib, "", None, "everything parked"));
    if let Some((fewer, before)) = before {
        let each = (cost.rss_kib - before.rss_kib) / (count - fewer) as f64;
        let detail = format!("what {count} cost more than {fewer}, by database");
        let (goal, met) = if count >= THOUSANDS { ("≤ 2 KiB", Some(each <= 2.0)) } else { ("", None) };
        rows.push(row("memory of a parked database", format!("{each:.2} KiB"), goal, met, &detail));
        let more = cost.threads - before.threads;
        rows.push(row("threads more", format!("{more:.0}"), "0", Some(more <= 0.0), &detail));
    }
    let (threads, descriptors) = (cost.threads, cost.descriptors);
    rows.push(row("threads and descriptors", format!("{threads:.0}, {descriptors:.0}"), "", None, ""));
    let percent = cost.cpu * 100.0;
    let detail = format!("over {rest} s");
    rows.push(row("processor", format!("{percent:.3} % of a core"), "≤ 0.1 %", Some(percent <= 0.1), &detail));
    let per_hour = cost.requests * 3600.0 / rest as f64;
    let detail = format!("over {rest} s; renewals of the one lease");
    // One more where the time begins or ends with a renewal.
    let met = cost.requests <= RENEWALS_PER_HOUR * rest as f64 / 3600.0 + 1.0;
    rows.push(row("store requests in an hour", format!("{per_hour:.0}"), "≤ 180", Some(met), &detail));
    rows
}

/// A folder of databases, and what is asked of the process that replicates it.
struct World {
    folder: PathBuf,
    count: usize,
}

impl World {
    fn make(lab: &Lab, count: usize) -> Outcome<Self> {
        let folder = lab.folder("many")?;
        std::fs::create_dir(folder.join("data")).context("make a folder")?;
        let model = folder.join("model.db");
        let conn = Connection::open(&model).context("make a database")?;
        conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).context("WAL mode")?;
        conn.execute_batch(
            "CREATE TABLE rows(id INTEGER PRIMARY KEY, body BLOB); INSERT INTO rows VALUES (0, zeroblob(99))",
        )
        .context("fill a database")?;
        drop(conn);
        let world = Self { folder, count };
        for index in 0..count {
            std::fs::copy(&model, world.database(index)).context("copy a database")?;
        }
        // Drills of so many new databases would take longer than the measurement, and are not what is measured.
        let config = format!(
            "socket: {{enabled: true, path: {}}}\ndrill: {{interval: 0}}\ndbs:\n  - dir: {}\n    pattern: '*.db'\n    replica: {{url: {}}}\n",
            world.socket().display(),
            world.folder.join("data").display(),
            world.folder.join("backup").display()
        );
        std::fs::write(world.folder.join("rhyolite.yml"), config).context("write the configuration")?;
        Ok(world)
    }

    fn database(&self, index: usize) -> PathBuf {
        self.folder.join(format!("data/{index:06}.db"))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("ctl.sock")
    }

    /// Starts the process and waits until everything is parked; with the time that took.
    fn start(&self, lab: &Lab) -> Outcome<(Process, Duration)> {
        let mut command = Command::new(&lab.binary);
        command.args(["replicate", "--config"]).arg(self.folder.join("rhyolite.yml"));
        let began = Instant::now();
        let mut process = Process::start("rhyolite replicate", command, &self.folder.join("replicate.log"))?;
        self.wait_parked(lab, &mut process)?;
        Ok((process, began.elapsed()))
    }

    fn wait_parked(&self, lab: &Lab, process: &mut Process) -> Outcome {
        let deadline = Instant::now() + LIMIT;
        while self.info(lab).and_then(|i| number(&i, "/totals/parked")).unwrap_or(0.0) < self.count as f64 {
            if process.ended()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.folder.join("replicate.log")).unwrap_or_default();
                return fail(format!("not everything is parked: {}", log.lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn info(&self, lab: &Lab) -> Outcome<Value> {
        let mut command = Command::new(&lab.binary);
        let output = command.args(["ctl", "info", "--json", "--socket"]).arg(self.socket()).output();
        serde_json::from_slice(&output.context("rhyolite ctl info")?.stdout).context("read the info")
    }

    fn requests(&self, lab: &Lab) -> Outcome<f64> {
        number(&self.info(lab)?, "/totals/store_requests")
    }

    fn cost(&self, lab: &Lab, process: &Process, rest: Duration) -> Outcome<Cost> {
        println!("{} databases, resting for {} s ...", self.count, rest.as_secs());
        // What follows the parking (status files, memory that goes back to the system) is not rest.
        std::thread::sleep(Duration::from_secs(5));
        let (requests, cpu) = (self.requests(lab)?, cpu_seconds(process.id())?);
        std::thread::sleep(rest);
        let cpu = (cpu_seconds(process.id())? - cpu) / rest.as_secs_f64();
        let requests = self.requests(lab)? - requests;
        let (rss, _) = memory_kib(process.id())?;
        let entries = |name: &str| -> Outcome<f64> {
            let folder = format!("/proc/{}/{name}", process.id());
            Ok(std::fs::read_dir(folder).context("look into /proc")?.count() as f64)
        };
        Ok(Cost { rss_kib: rss as f64, threads: entries("task")?, descriptors: entries("fd")?, cpu, requests })
    }

    /// Lets `writing` databases commit once a second each.
    fn busy(&self, lab: &Lab, process: &Process, writing: usize, seconds: u64) -> Outcome<Vec<Row>> {
        println!("{writing} of {} databases write for {seconds} s ...", self.count);
        let open = |index| Connection::open(self.database(index)).context("open a database");
        // Spread over all of them, as in life.
        let step = self.count / writing;
        let chosen: Vec<usize> = (0..writing).map(|i| i * step).collect();
        let connections: Vec<Connection> = chosen.iter().map(|i| open(*i)).collect::<Outcome<_>>()?;
        let before = self.requests(lab)?;
        let mut commits: Vec<Vec<u64>> = vec![Vec::new(); writing];
        let began = Instant::now();
        for second in 0..seconds {
            for (index, conn) in connections.iter().enumerate() {
                let offset = Duration::from_secs(second) + Duration::from_secs(1) * index as u32 / writing as u32;
                std::thread::sleep(offset.saturating_sub(began.elapsed()));
                conn.execute("INSERT INTO rows(body) VALUES (randomblob(100))", []).context("commit")?;
                commits[index].push(epoch_ns());
            }
        }
        let (rss, _) = memory_kib(process.id())?;
        std::thread::sleep(Duration::from_secs(10));
        let requests = self.requests(lab)? - before;
        let mut ages = Vec::new();
        for (chosen, commits) in chosen.iter().zip(&commits) {
            ages.extend(ages_ns(&self.folder.join(format!("backup/{chosen:06}.db/log")), commits)?);
        }
        let p50 = percentile(&mut ages, 500) as f64 / 1e6;
        let p99 = percentile(&mut ages, 990) as f64 / 1e6;
        let per_hour = requests / writing as f64 * 3600.0 / seconds as f64;
        let detail =
            format!("{writing} of {} write once a second, {} commits, p50 {p50:.0} ms", self.count, ages.len());
        let row =
            |what: &str, figure, goal, met| Row { what: what.to_owned(), figure, goal, met, detail: detail.clone() };
        Ok(vec![
            row("commit to durable, p99", format!("{p99:.0} ms"), "≤ 2 × interval", Some(p99 <= 2.0 * INTERVAL_MS)),
            row("resident memory while they write", format!("{:.1} MiB", rss as f64 / 1024.0), "", None),
            row(
                "store requests in an hour, by writing database",
                format!("{per_hour:.0}"),
                "≤ 3,620",
                Some(per_hour <= 3620.0),
            ),
        ])
    }

    /// Starts again with everything unchanged.
    fn restart(&self, lab: &Lab) -> Outcome<Vec<Row>> {
        let (mut process, took) = self.start(lab)?;
        let requests = self.requests(lab)?;
        process.terminate(LIMIT)?;
        let seconds = took.as_secs_f64();
        let what = format!("start with {} replicated databases, nothing changed", self.count);
        Ok(vec![Row {
            what,
            figure: format!("{seconds:.1} s, {requests:.0} requests"),
            goal: "≤ 10 s, no upload",
            met: Some(seconds <= 10.0 && (requests <= START_REQUESTS_MAX || self.count <= 64)),
            detail: "from the start of the process until the last is known to be parked".to_owned(),
        }])
    }
}

fn number(value: &Value, pointer: &str) -> Outcome<f64> {
    value.pointer(pointer).and_then(Value::as_f64).context(format!("no {pointer} in {value}"))
}

fn epoch_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64)
}

/// Nanoseconds from each commit to the moment when its segment got its name. The first transaction is the snapshot.
fn ages_ns(log: &Path, commits: &[u64]) -> Outcome<Vec<u64>> {
    let mut arrivals = Vec::new();
    for entry in std::fs::read_dir(log).context("list a log")? {
        let path = entry.context("list a log")?.path();
        let Ok(segment) = Segment::decode(&std::fs::read(&path).context("read a segment")?) else { continue };
        let meta = path.metadata().context("look at a segment")?;
        let named = meta.ctime() as u64 * 1_000_000_000 + meta.ctime_nsec() as u64;
        arrivals.extend(segment.end().map(|pos| (pos.txid.get(), named)));
    }
    arrivals.sort_unstable();
    let age = |(txid, committed): (u64, &u64)| {
        let found = arrivals.iter().find(|(last, _)| *last >= txid);
        let (_, named) = found.context(format!("transaction {txid} in {} never became durable", log.display()))?;
        Ok(named.saturating_sub(*committed))
    };
    (2..).zip(commits).map(age).collect()
}
