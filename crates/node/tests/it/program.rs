//! The real binary in a folder of its own, with a bounded wait for everything.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;

/// Longest wait for anything; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The only line of JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A folder in which commands run.
pub(crate) struct Folder {
    folder: TempDir,
    /// Whose it is, and who runs the commands, if not we.
    user: Option<u32>,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), user: None }
    }

    /// The folder of another user, with a program of their own: they may not be able to reach ours. Only root can make it.
    pub(crate) fn of_user(user: u32) -> Self {
        let folder = Self { user: Some(user), ..Self::new() };
        std::fs::copy(env!("CARGO_BIN_EXE_rhyolite"), folder.path("rhyolite")).unwrap();
        folder.give_to_user("");
        folder
    }

    pub(crate) fn is_of_user(&self) -> bool {
        self.user.is_some()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn make_folder(&self, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        self.give_to_user(name);
    }

    fn give_to_user(&self, name: &str) {
        if self.user.is_some() {
            std::os::unix::fs::chown(self.path(name), self.user, self.user).unwrap();
        }
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// A connection to a database in WAL mode.
    pub(crate) fn database(&self, name: &str) -> Connection {
        let db = Connection::open(self.path(name)).unwrap();
        db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a)").unwrap();
        db
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = if self.user.is_some() { self.path("rhyolite") } else { env!("CARGO_BIN_EXE_rhyolite").into() };
        let mut command = self.command_of(&program);
        command.args(arguments);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["AWS_", "AZURE_", "GOOGLE_", "LITESTREAM_", "RHYOLITE_"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Any program, run in the folder by the user whose it is.
    pub(crate) fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        self.start(arguments).wait()
    }

    /// Starts a command.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, &[])
    }

    /// Starts a command with environment variables.
    pub(crate) fn start_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    /// Runs a command whose output nobody reads any more.
    pub(crate) fn run_into_closed_pipe(&self, arguments: &[&str]) -> Outcome {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = self.command(arguments);
        Running(command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap()).wait()
    }

    /// Every file and folder with its content.
    pub(crate) fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut content = BTreeMap::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                    content.insert(path, Vec::new());
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    content.insert(path, bytes);
                }
            }
        }
        content
    }

    /// Waits until `status` says that every commit of `database` is durable up to TXID `txid`.
    pub(crate) fn wait_durable(&self, database: &str, txid: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let outcome = self.run(&["status", database, "--json"]);
            if is_durable(&outcome.stdout, txid) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for TXID {txid} of {database} to be durable: {outcome:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_durable(status: &str, txid: u64) -> bool {
    let Ok(status) = serde_json::from_str::<serde_json::Value>(status) else { return false };
    let database = &status["databases"][0];
    let durable = database["status"]["durable"]["txid"].as_str().unwrap_or("0");
    database["running"] == true && u64::from_str_radix(durable, 16).unwrap() >= txid
}

/// Looks until it is so.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same, of which it is said what is amiss when it never is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(amiss) = is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}: {amiss}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the threads of a process are doing, by what the kernel tells: a line for each. Root is told where in the kernel they are.
#[cfg(target_os = "linux")]
pub(crate) fn threads(pid: u32) -> String {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return "it is gone".to_owned() };
    let line = |thread: PathBuf| {
        let read = |name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("?").trim().to_owned();
        let stack: Vec<String> = read("stack").lines().take(5).map(|frame| frame.replace("[<0>] ", "")).collect();
        format!("\n{} {state} {} {}", read("comm").trim_end(), read("wchan"), stack.join(" < "))
    };
    threads.flatten().map(|entry| line(entry.path())).collect()
}

/// A started command; killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// What it prints from here on.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().unwrap()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// The most memory that it has had in RAM; `None` when it has ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Outcome {
        let (stdout, stderr) = (self.0.stdout.take(), self.0.stderr.take());
        let read = |pipe: Option<Box<dyn Read + Send>>| {
            let mut pipe = pipe.unwrap_or(Box::new(std::io::empty()));
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(stdout.map(|p| Box::new(p) as _));
        let stderr = read(stderr.map(|p| Box::new(p) as _));
        let status = self.wait_status();
        let code = status.code().unwrap_or(-1);
        Outcome { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    fn wait_status(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("a command to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if let (true, Some(mut stderr)) = (std::thread::panicking(), self.0.stderr.take()) {
            // What the test failed for may be there. Others that it has started may have the pipe open still.
            rustix::io::ioctl_fionbio(&stderr, true).unwrap();
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            eprintln!("a command that was still running had said:\n{}", String::from_utf8_lossy(&said));
        }
    }
}

/// A copy of what SQLite sees, for comparing with a restored database: the dump of a table.
pub(crate) fn rows(path: &Path) -> Vec<i64> {
    let db = Connection::open(path).unwrap();
    let mut statement = db.prepare("SELECT a FROM t ORDER BY a").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}
