//! Where measurements are made: the binaries, the scratch folder, the processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;
use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};
use xtask::process::Process;
use xtask::scratch::Scratch;

/// How long a replicator may take for anything but large snapshots.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The release binary and where to work.
#[derive(Debug)]
pub(crate) struct Lab {
    /// `rhyolite`, optimised.
    pub(crate) binary: PathBuf,
    /// The root of the repository.
    pub(crate) root: PathBuf,
    scratch: Scratch,
}

impl Lab {
    /// Takes `--binary PATH`, or finds the one beside this program.
    pub(crate) fn new(args: &mut Args) -> Outcome<Self> {
        let own = std::env::current_exe().context("find our own binary")?;
        let binary = args.option("--binary")?.unwrap_or_else(|| own.with_file_name("rhyolite"));
        if !binary.exists() {
            return fail(format!("{} is missing: cargo build --release -p rhyolite-node", binary.display()));
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("bench/ lies in the root")?.to_owned();
        Ok(Self { binary, root, scratch: Scratch::new("bench")? })
    }

    /// An empty folder called `name`; whatever was there is removed.
    pub(crate) fn folder(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.scratch.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).context("empty a folder")?;
        }
        std::fs::create_dir_all(&path).context("make a folder")?;
        Ok(path)
    }

    /// Starts `rhyolite replicate app.db backup` in `folder` and waits until the first snapshot is there.
    pub(crate) fn replicate(&self, folder: &Path, options: &[&str]) -> Outcome<Process> {
        self.replicate_within(folder, options, LIMIT)
    }

    /// The same with a snapshot that takes longer.
    pub(crate) fn replicate_within(&self, folder: &Path, options: &[&str], limit: Duration) -> Outcome<Process> {
        let mut command = Command::new(&self.binary);
        command.arg("replicate").arg(folder.join("app.db")).arg(folder.join("backup")).args(options);
        let mut process = Process::start("rhyolite replicate", command, &folder.join("replicate.log"))?;
        let deadline = Instant::now() + limit;
        while self.points(folder).map_or(true, |points| points == 0) {
            if process.ended()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("replicate.log")).unwrap_or_default();
                return fail(format!("the replicator does not begin: {}", log.trim()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// How many restore points the backup in `folder` has.
    pub(crate) fn points(&self, folder: &Path) -> Outcome<usize> {
        let output = Command::new(&self.binary)
            .args(["log", "--json"])
            .arg(folder.join("backup"))
            .output()
            .context("rhyolite log")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match output.status.success() {
            true => Ok(text.matches("\"txid\"").count()),
            false => fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// A number in what `rhyolite status --json` says about `folder/app.db`, by its JSON pointer.
    pub(crate) fn figure_of_status(&self, folder: &Path, pointer: &str) -> Outcome<f64> {
        let output = Command::new(&self.binary)
            .args(["status", "--json"])
            .arg(folder.join("app.db"))
            .output()
            .context("rhyolite status")?;
        let status: Value = serde_json::from_slice(&output.stdout).context("read the status")?;
        status.pointer(pointer).and_then(Value::as_f64).context(format!("the status has no {pointer}: {status}"))
    }

    /// Runs the application (see [`crate::app`]) on `folder/app.db` to its end and gives its figures.
    pub(crate) fn app(&self, folder: &Path, options: &[&str]) -> Outcome<Value> {
        let output = self.app_command(folder, options)?.output().context("start the application")?;
        if !output.status.success() {
            return fail(format!("the application: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        serde_json::from_slice(&output.stdout).context("read the application's figures")
    }

    /// The command that runs the application.
    pub(crate) fn app_command(&self, folder: &Path, options: &[&str]) -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.arg("app").arg("--db").arg(folder.join("app.db")).args(options);
        Ok(command)
    }
}

/// Makes `folder/app.db` with one empty table, in WAL mode.
pub(crate) fn make_database(folder: &Path) -> Outcome {
    let conn = Connection::open(folder.join("app.db")).context("make the database")?;
    conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).context("WAL mode")?;
    conn.execute_batch("CREATE TABLE rows(id INTEGER PRIMARY KEY, name TEXT, number INTEGER, body BLOB)")
        .context("make the table")
}

/// A number out of an application's figures.
pub(crate) fn figure(figures: &Value, name: &str) -> Outcome<f64> {
    figures.get(name).and_then(Value::as_f64).context(format!("the application gave no {name}"))
}
