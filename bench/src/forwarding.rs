//! What a commit costs that an application makes on a replica's mount, against one on the primary's (`--write-forwarding transparent`).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;

use crate::lab::{LIMIT, Lab};
use crate::measure::percentile;
use crate::table::Row;

const WRITES: u64 = 400;
/// Two round trips on this machine are far below a tenth of a millisecond.
const MORE_MS_MAX: f64 = 2.1;
const NAMES: [&str; 2] = ["a", "b"];

/// Commits one row on each mount in turn, and reads one.
pub(crate) fn rows(lab: &Lab) -> Outcome<Vec<Row>> {
    let folder = lab.folder("forwarding")?;
    let mut nodes = Vec::new();
    let mut connections = Vec::new();
    for (number, name) in NAMES.into_iter().enumerate() {
        nodes.push(start(lab, &folder, name, number)?);
        let db = open(&folder.join(format!("at-{name}/app.db")), number == 0)?;
        connections.push(db);
    }
    let (mut direct, mut forwarded) = (Vec::new(), Vec::new());
    for number in 0..WRITES {
        for (db, times) in connections.iter().zip([&mut direct, &mut forwarded]) {
            // What the other has committed comes first.
            std::thread::sleep(Duration::from_millis(3));
            let began = Instant::now();
            db.execute("INSERT INTO rows(number, body) VALUES (?1, randomblob(200))", [number.cast_signed()])
                .context("commit")?;
            times.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
    drop(connections);
    for node in nodes.iter_mut().rev() {
        node.terminate(LIMIT)?;
    }
    let p50 = |times: &mut Vec<u64>| percentile(times, 500) as f64 / 1e6;
    let (direct, forwarded) = (p50(&mut direct), p50(&mut forwarded));
    Ok(vec![Row {
        what: "commit on a replica's mount, forwarded, p50".to_owned(),
        figure: format!("{:.2} ms more", forwarded - direct),
        goal: "≤ 2 round trips + 2 ms",
        met: Some(forwarded - direct <= MORE_MS_MAX),
        detail: format!(
            "{forwarded:.2} ms against {direct:.2} ms on the primary's mount, {WRITES} each in turn, synchronous=NORMAL"
        ),
    }])
}

fn start(lab: &Lab, folder: &Path, name: &str, number: usize) -> Outcome<Process> {
    let at = folder.join(format!("at-{name}"));
    std::fs::create_dir_all(&at).context("make a folder")?;
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("a port")?;
    let mut command = Command::new(&lab.binary);
    command.arg("node").arg(folder.join(name)).arg("--at").arg(&at).arg("--store").arg(folder.join("store"));
    command.args(["--listen", &port.to_string(), "--write-forwarding", "transparent", "--drill-interval", "0s"]);
    if number > 0 {
        command.arg("--candidate=false");
    }
    let node = Process::start("rhyolite node", command, &folder.join(format!("{name}.log")))?;
    // Whoever makes a file before that has it below the mount.
    let deadline = Instant::now() + LIMIT;
    let device = |path: &Path| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
    while device(&at) == device(folder) {
        if Instant::now() > deadline {
            return fail("the mount does not begin");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(node)
}

/// Opens the database of a node, or makes it, and waits until it can be written to.
fn open(path: &Path, is_primary: bool) -> Outcome<Connection> {
    let deadline = Instant::now() + LIMIT;
    let sql = if is_primary {
        "PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS rows(id INTEGER PRIMARY KEY, number INTEGER, body BLOB)"
    } else {
        "INSERT INTO rows(number) VALUES (-1)"
    };
    loop {
        let made = Connection::open(path).and_then(|db| {
            db.busy_timeout(LIMIT)?;
            db.pragma_update(None, "synchronous", "normal")?;
            db.execute_batch(sql).map(|()| db)
        });
        match made {
            Ok(db) => return Ok(db),
            Err(error) if Instant::now() > deadline => return fail(format!("{}: {error}", path.display())),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
