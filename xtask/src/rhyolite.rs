//! The program under test, used as a person would use it: through its command line only.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rhyolite_format::Checksum;
use serde_json::Value;

use crate::ci::root;
use crate::error::{Context, Outcome, fail};
use crate::process::Process;

/// The binary and the environment that its commands get.
#[derive(Clone, Debug)]
pub struct Rhyolite {
    binary: PathBuf,
    /// Credentials and the like for the store.
    pub(crate) environment: Vec<(String, String)>,
}

/// A point to which a store can restore, as `rhyolite log --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// 16 hex digits.
    pub(crate) txid: String,
    /// The whole database after it.
    pub(crate) checksum: Checksum,
}

impl Rhyolite {
    /// The binary in `RHYOLITE_BIN`, or the one that is built now.
    pub(crate) fn find() -> Outcome<Self> {
        if let Some(binary) = std::env::var_os("RHYOLITE_BIN") {
            return Ok(Self { binary: binary.into(), environment: Vec::new() });
        }
        let build = ["build", "--quiet", "--package", "rhyolite-node", "--bin", "rhyolite"];
        let status = Command::new(env!("CARGO")).args(build).current_dir(root()).status().context("start cargo")?;
        if !status.success() {
            return fail("rhyolite does not build");
        }
        let own = std::env::current_exe().context("find our own binary")?;
        Ok(Self { binary: own.with_file_name("rhyolite"), environment: Vec::new() })
    }

    /// The binary at this path.
    pub fn at(binary: PathBuf) -> Self {
        Self { binary, environment: Vec::new() }
    }

    /// Where it lies.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `rhyolite replicate DB STORE OPTIONS`.
    pub(crate) fn replicate(&self, db: &Path, store: &str, options: &[&str], log: &Path) -> Outcome<Process> {
        let mut command = self.command();
        command.arg("replicate").arg(db).arg(store).args(options);
        Process::start("rhyolite replicate", command, log)
    }

    /// Starts `rhyolite mount BEHIND --at FRONT --store STORE OPTIONS`. It unmounts when the thread that starts it has gone.
    pub(crate) fn mount(
        &self,
        behind: &Path,
        front: &Path,
        store: &Path,
        options: &[&str],
        log: &Path,
    ) -> Outcome<Process> {
        let mut command = self.command();
        command.arg("mount").arg(behind).arg("--at").arg(front).arg("--store").arg(store).args(options);
        Process::start_tied("rhyolite mount", command, log, libc::SIGTERM)
    }

    /// [`Self::restore`] where a copy of before may lie.
    pub(crate) fn restore_over(&self, store: &str, copy: &Path, txid: Option<&str>) -> Outcome {
        if copy.exists() {
            std::fs::remove_file(copy).context("remove the copy of before")?;
        }
        self.restore(store, copy, txid)
    }

    /// `rhyolite restore STORE -o COPY`, to `txid` or to the latest.
    pub(crate) fn restore(&self, store: &str, copy: &Path, txid: Option<&str>) -> Outcome {
        let mut command = self.command();
        command.args(["restore", store, "-o"]).arg(copy);
        if let Some(txid) = txid {
            command.args(["--txid", txid]);
        }
        run(command).map(|_| ())
    }

    /// All restore points, oldest first. An empty or absent store has none.
    pub(crate) fn log(&self, store: &str) -> Outcome<Vec<Point>> {
        let mut command = self.command();
        command.args(["log", store, "--json"]);
        parse_points(&run(command)?.stdout)
    }

    /// The newest restore point.
    fn newest(&self, store: &str) -> Outcome<Vec<Point>> {
        let mut command = self.command();
        command.args(["log", store, "--json", "--limit", "1"]);
        parse_points(&run(command)?.stdout)
    }

    /// Whether a replicator says within `limit` that it captures `db`.
    pub(crate) fn is_replicating(&self, db: &Path, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.says_replicating(db) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn says_replicating(&self, db: &Path) -> bool {
        self.status_of_running(db).is_some_and(|status| status["state"]["name"] == "replicating")
    }

    /// Whether a replicator says that it has captured and uploaded all of `db`.
    fn says_durable(&self, db: &Path) -> bool {
        self.status_of_running(db).is_some_and(|status| {
            status["state"]["name"] == "replicating"
                && status["pending_since"].is_null()
                && status["local"].is_object()
                && status["local"] == status["durable"]
        })
    }

    /// What the status says about `db`, if it is replicated now.
    fn status_of_running(&self, db: &Path) -> Option<Value> {
        let mut command = self.command();
        command.args(["status", "--json"]).arg(db);
        let status: Value = serde_json::from_slice(&run(command).ok()?.stdout).ok()?;
        let database = status.pointer("/databases/0")?;
        (database["running"] == true).then(|| database["status"].clone())
    }

    /// `rhyolite verify STORE --every-point`: everything in the store is proved.
    pub(crate) fn verify(&self, store: &str) -> Outcome {
        let mut command = self.command();
        command.args(["verify", store, "--every-point"]);
        run(command).map(|_| ())
    }

    /// Waits until the newest restore point is `wanted`, and gives all points. Where a replicator runs on `db`, it must have said before that
    /// nothing is left to do: in a database that went back in time the newest point may be right by chance, before what a life has left
    /// behind comes after it.
    pub(crate) fn wait_for(
        &self,
        store: &str,
        wanted: Checksum,
        db: Option<&Path>,
        limit: Duration,
    ) -> Outcome<Vec<Point>> {
        let deadline = Instant::now() + limit;
        let mut is_done = db.is_none();
        loop {
            is_done |= db.is_some_and(|db| self.says_durable(db));
            let found = self.newest(store);
            match found {
                Ok(points) if !is_done && Instant::now() > deadline => {
                    return fail(format!("after {limit:?} not everything is durable, at {:?}", points.last()));
                }
                _ if !is_done => std::thread::sleep(Duration::from_millis(10)),
                Ok(points) if points.last().is_some_and(|p| p.checksum == wanted) => return self.log(store),
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Ok(points) => {
                    let last = points.last().map_or("nothing".to_owned(), |p| format!("{}/{}", p.txid, p.checksum));
                    return fail(format!("after {limit:?} the store is at {last}, the database at {wanted}"));
                }
                Err(error) => return fail(format!("after {limit:?}: {error}")),
            }
        }
    }
}

/// How many times a TXID is left out between two restore points.
pub(crate) fn holes(points: &[Point]) -> usize {
    let number = |point: &Point| u64::from_str_radix(&point.txid, 16).unwrap_or(0);
    points.windows(2).filter(|pair| number(&pair[0]) + 1 != number(&pair[1])).count()
}

fn run(mut command: Command) -> Outcome<Output> {
    let output = command.output().context("start rhyolite")?;
    if output.status.success() {
        return Ok(output);
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    fail(format!("rhyolite {}: {}: {}", words.join(" "), output.status, errors.trim()))
}

/// Takes one object, an array of objects, an object with such an array, or one object a line.
fn parse_points(json: &[u8]) -> Outcome<Vec<Point>> {
    let mut points = Vec::new();
    for value in serde_json::Deserializer::from_slice(json).into_iter::<Value>() {
        collect_points(&value.context("rhyolite log --json")?, &mut points)?;
    }
    Ok(points)
}

fn collect_points(value: &Value, points: &mut Vec<Point>) -> Outcome {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| collect_points(value, points)),
        Value::Object(fields) => match (fields.get("txid"), fields.get("checksum")) {
            (Some(Value::String(txid)), Some(Value::String(checksum))) => {
                let checksum = checksum.parse().context("checksum of a restore point")?;
                points.push(Point { txid: txid.clone(), checksum });
                Ok(())
            }
            _ => fields.values().filter(|v| v.is_array()).try_for_each(|value| collect_points(value, points)),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_txid_that_is_left_out_is_a_hole() {
        let point = |n: u64| Point { txid: format!("{n:016x}"), checksum: Checksum::EMPTY };
        let points = |txids: &[u64]| txids.iter().map(|n| point(*n)).collect::<Vec<_>>();
        assert_eq!((holes(&points(&[9, 10, 11])), holes(&points(&[9, 11, 11])), holes(&[])), (0, 2, 0));
    }

    #[test]
    fn restore_points_are_read_and_damage_is_refused() {
        let json = br#"{"points": [{"txid": "0000000000000001", "checksum": "8000000000000000"}]}"#;
        let points = parse_points(json).unwrap();
        assert_eq!((points.len(), points[0].txid.as_str()), (1, "0000000000000001"));
        assert!(parse_points(br#"{"points": [{"txid": "1", "checksum": "xyz"}]}"#).is_err());
        assert!(parse_points(b"not json").is_err());
    }
}
