//! Nodes of a cluster on this machine, with their applications and everything around them, for tests and measurements.
//!
//! Each node has a proxy, a web server over one database as application ([`app`]), and a reader beside it. It has its own way to the store, which is a folder, and
//! the others reach it through a relay ([`relay`]), so that both can be cut. What else there is, is up to a [`Setting`].

pub mod app;
pub mod http;
mod ports;
pub mod relay;
pub mod setting;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::error::{Context, Outcome, fail};
use crate::fuse;
use crate::process::Process;
use crate::rhyolite::Rhyolite;
use crate::scratch::Scratch;
use ports::free_address;
use relay::Relay;
use setting::{Safety, Setting};

/// The one database of each node.
pub const DATABASE: &str = "app.db";
/// Time of the lease, in seconds.
pub const TTL_SECONDS: u64 = 2;
/// How long the proxy holds a request while there is no primary.
const HOLD: &str = "8s";
/// Exit status of a command line that makes no sense.
const REFUSED: i32 = 2;
/// How long an end may take.
const END_MAX: Duration = Duration::from_secs(60);
/// Locks of the store, where it is a folder: who is frozen while it holds one stops everybody.
const STORE_LOCKS: [&str; 2] = [".rhyolite-lock", "app.db/.rhyolite-lock"];

/// One node.
#[derive(Debug)]
pub struct Node {
    /// How it is called in logs.
    pub name: String,
    /// Its folder of databases.
    pub folder: PathBuf,
    /// Where they are used: there, or where that is mounted.
    pub front: PathBuf,
    /// Where clients ask.
    pub proxy: SocketAddr,
    /// Where its application listens while it is the primary.
    pub application: SocketAddr,
    listen: SocketAddr,
    reads: SocketAddr,
    /// How the others reach the node, and its proxy.
    to_node: Relay,
    to_proxy: Relay,
    /// Where the primary dials a node that dials nobody, and how.
    accepts: Option<(SocketAddr, Relay)>,
    running: Mutex<Option<Process>>,
}

/// Some nodes over one store, to which each has a way of its own.
#[derive(Debug)]
pub struct Cluster {
    scratch: Mutex<Scratch>,
    folder: PathBuf,
    rhyolite: Rhyolite,
    /// What it is made of.
    pub setting: Setting,
    /// Its nodes; one that is pushed to is the last.
    pub nodes: Vec<Node>,
    readers: Mutex<Vec<Process>>,
}

impl Cluster {
    /// Nodes that run, and readers beside them.
    pub fn start(rhyolite: &Rhyolite, setting: Setting) -> Outcome<Self> {
        let scratch = Scratch::new("cluster")?;
        let folder = scratch.path().to_owned();
        for name in ["store", "notes"] {
            fs::create_dir(folder.join(name)).context("make a folder")?;
        }
        let count = setting.candidates + usize::from(setting.is_pushed);
        let nodes = (0..count).map(|number| Node::new(&folder, number, setting)).collect::<Outcome<Vec<_>>>()?;
        let (scratch, rhyolite) = (Mutex::new(scratch), rhyolite.clone());
        let this = Self { scratch, folder, rhyolite, setting, nodes, readers: Mutex::default() };
        for node in &this.nodes {
            this.set_store(node, true)?;
            if this.setting.mount.is_some() {
                fs::create_dir(&node.front).context("make a folder")?;
            }
            this.start_reader(node)?;
            this.start_node(node)?;
        }
        this.note(&setting.to_string());
        Ok(this)
    }

    /// The folder is left for a person to look at.
    pub fn keep(&self) {
        self.scratch.lock().expect("nobody panics with it").keep();
    }

    /// Where everything lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a line for a person who wants to know what happened when.
    pub fn note(&self, what: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = format!("{}.{:03} {what}\n", now.as_secs(), now.subsec_millis());
        let file = fs::File::options().create(true).append(true).open(self.folder.join("events.log"));
        // Without it there is nothing to be read afterwards; the run is as good.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }

    /// The store, without a detour.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Starts the process of a node that has none.
    pub fn start_node(&self, node: &Node) -> Outcome {
        let mut command = Command::new(self.rhyolite.binary());
        command.arg("node").arg(&node.folder).arg("--store").arg(self.folder.join(format!("store-of-{}", node.name)));
        command.arg("--socket").arg(node.socket());
        for (option, address) in [
            ("--listen", node.listen),
            ("--advertise", node.to_node.address),
            ("--proxy-listen", node.proxy),
            ("--proxy-advertise", node.to_proxy.address),
            ("--proxy-target", node.application),
            ("--proxy-read-target", node.reads),
        ] {
            command.arg(option).arg(address.to_string());
        }
        command.args(["--lease-ttl", &format!("{TTL_SECONDS}s"), "--drill-interval", "0s"]);
        command.args(["--sync-interval", self.setting.sync_interval]);
        command.args(["--proxy-db", DATABASE, "--proxy-hold", HOLD, "--proxy-read-wait", "1s"]);
        self.add_setting(node, &mut command)?;
        let process = Process::start(&node.name, command, &self.log_of(node))?;
        *node.running() = Some(process);
        Ok(())
    }

    /// What the processes of a node have said.
    pub fn log_of(&self, node: &Node) -> PathBuf {
        self.folder.join(format!("{}.log", node.name))
    }

    /// What a node is told besides.
    fn add_setting(&self, node: &Node, command: &mut Command) -> Outcome {
        if self.setting.is_forwarded {
            command.args(["--write-forwarding", "transparent"]);
        }
        if self.setting.mount.is_some() {
            command.arg("--at").arg(&node.front);
        }
        match self.setting.safety {
            Safety::Store => {}
            Safety::Replica => drop(command.args(["--durability", "replica"])),
            Safety::Quorum => {
                command.args(["--durability", "quorum", "--nodes", &self.setting.candidates.to_string()]);
            }
        }
        if let Some((address, _)) = &node.accepts {
            command.args(["--candidate=false", "--accept", &address.to_string()]);
            return Ok(());
        }
        for (_, relay) in self.nodes.iter().filter_map(|other| other.accepts.as_ref()) {
            command.args(["--push-to", &relay.address.to_string()]);
        }
        let own = std::env::current_exe().context("find our own binary")?;
        let exec = format!(
            "'{}' cluster-app {} '{}' --notes '{}' --journal {}",
            own.display(),
            node.application.port(),
            node.database().display(),
            self.folder.join("notes").display(),
            self.setting.mount.map_or("wal", |journal| journal.name())
        );
        command.args(["--exec", &exec]);
        Ok(())
    }

    fn start_reader(&self, node: &Node) -> Outcome {
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.arg("cluster-app").arg(node.reads.port().to_string()).arg(node.database());
        let reader = Process::start("a reader", command, &self.folder.join(format!("{}.reader.log", node.name)))?;
        self.readers.lock().expect("nobody panics with it").push(reader);
        Ok(())
    }

    /// Lets a node reach the store, or not.
    pub fn set_store(&self, node: &Node, is_there: bool) -> Outcome {
        let link = self.folder.join(format!("store-of-{}", node.name));
        // Two may do it at a time.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let new = self.folder.join(format!("new-{}-{}", node.name, NEXT.fetch_add(1, Ordering::Relaxed)));
        // A link to itself leads nowhere.
        let to = if is_there { self.store() } else { link.clone() };
        std::os::unix::fs::symlink(to, &new).context("make a link")?;
        fs::rename(&new, &link).context("replace a link")
    }

    /// Starts nodes again that have ended by themselves, each of which is told with its status.
    pub fn start_ended(&self, tell: impl Fn(i32)) -> Outcome {
        for node in &self.nodes {
            if let Some(code) = node.has_ended()? {
                if code == REFUSED {
                    return fail(format!("{} refuses its command line: see its log", node.name));
                }
                tell(code);
                self.start_node(node)?;
            }
        }
        Ok(())
    }

    /// What a node says of itself.
    pub fn node_status(&self, node: &Node) -> Option<Value> {
        let mut command = Command::new(self.rhyolite.binary());
        command.args(["ctl", "node", "--json", "--socket"]).arg(node.socket());
        let output = command.output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The node that says that it is the primary.
    pub fn primary(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| {
            node.socket().exists() && self.node_status(node).is_some_and(|status| status["role"] == "primary")
        })
    }

    fn lease(&self) -> Option<(Value, u64)> {
        let lease: Value = serde_json::from_slice(&fs::read(self.store().join("lease.json")).ok()?).ok()?;
        let epoch = u64::from_str_radix(lease["epoch"].as_str()?, 16).ok()?;
        Some((lease, epoch))
    }

    /// The last right that the lease in the store has given.
    pub fn right(&self) -> Option<u64> {
        Some(self.lease()?.1)
    }

    /// Who holds the lease as the store has it, and its right.
    pub fn holder(&self) -> Option<(&Node, u64)> {
        let (lease, epoch) = self.lease()?;
        let address = lease["address"].as_str()?;
        let holder = self.nodes.iter().find(|node| node.to_node.address.to_string() == address)?;
        (lease["state"] == "held").then_some((holder, epoch))
    }

    /// Whether every node says something of itself.
    pub fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.socket().exists() && self.node_status(node).is_some())
    }

    /// Hands the role of this node on. Whether it could.
    pub fn hand_on(&self, node: &Node) -> bool {
        let mut command = Command::new(self.rhyolite.binary());
        command.args(["ctl", "handoff", "--socket"]).arg(node.socket());
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Whether everything that was committed on a node when this was called is durable within `limit`.
    pub fn sync(&self, node: &Node, limit: Duration) -> bool {
        let mut command = Command::new(self.rhyolite.binary());
        command.arg("sync").arg(node.database()).args(["--wait", "--timeout"]);
        command.arg(format!("{}ms", limit.as_millis())).arg("--socket").arg(node.socket());
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Whether a node says within `limit` that a commit is so safe.
    pub fn wait_safe(&self, node: &Node, txid: &str, level: &str, limit: Duration) -> bool {
        let mut command = Command::new(self.rhyolite.binary());
        command.arg("wait").arg(node.database()).args(["--txid", txid, "--level", level, "--timeout"]);
        command.arg(format!("{}ms", limit.as_millis())).arg("--socket").arg(node.socket());
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Processes that were started for this cluster and live, but for readers.
    pub fn living(&self) -> BTreeSet<u32> {
        let readers: BTreeSet<u32> =
            self.readers.lock().expect("nobody panics with it").iter().map(Process::id).collect();
        let wanted = format!("{}/", self.folder.display());
        let is_ours = |process: &u32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            !readers.contains(process) && String::from_utf8_lossy(&line).contains(&wanted)
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    /// Files of all lost branches of a node.
    pub fn branches(&self, node: &Node) -> Outcome<Vec<PathBuf>> {
        let mut command = Command::new(self.rhyolite.binary());
        command.args(["branch", "list", "--json"]).arg(&node.folder);
        let output = command.output().context("start rhyolite")?;
        if !output.status.success() {
            return fail(format!("branch list: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let mut paths = Vec::new();
        for value in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
            let value = value.context("branch list --json")?;
            paths.push(value["path"].as_str().context("a branch without a path")?.into());
        }
        Ok(paths)
    }

    /// Restores what the store has.
    pub fn restore(&self, to: &Path) -> Outcome {
        self.rhyolite.restore_over(&self.database_store(), to, None)
    }

    /// Proves what the store has.
    pub fn verify(&self) -> Outcome {
        let mut command = Command::new(self.rhyolite.binary());
        command.arg("verify").arg(self.database_store());
        let output = command.output().context("start rhyolite")?;
        if output.status.success() {
            return Ok(());
        }
        fail(format!("verify: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn database_store(&self) -> String {
        self.store().join(DATABASE).display().to_string()
    }

    /// Freezes these processes in the middle of whatever they do, but not while one of them holds a lock of the store.
    pub fn freeze(&self, processes: &BTreeSet<u32>) {
        let is_locked = |lock: &&str| {
            let Ok(file) = fs::File::open(self.store().join(lock)) else { return false };
            // SAFETY: the descriptor is open during the call.
            unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) != 0 }
        };
        loop {
            signal_all(processes, libc::SIGSTOP);
            // They have stopped when the kernel says so.
            thread::sleep(Duration::from_millis(20));
            if !STORE_LOCKS.iter().any(&is_locked) {
                return;
            }
            signal_all(processes, libc::SIGCONT);
            thread::sleep(Duration::from_millis(7));
        }
    }
}

impl Drop for Cluster {
    /// Of mounts nothing is left, and nobody waits for them.
    fn drop(&mut self) {
        if self.setting.mount.is_none() {
            return;
        }
        for node in &self.nodes {
            // First the mount: who waits for it may not be able to end before.
            fuse::take_away(&node.front);
            drop(node.running().take());
            fuse::take_away(&node.front);
        }
    }
}

impl Node {
    fn new(folder: &Path, number: usize, setting: Setting) -> Outcome<Self> {
        let name = format!("n{number}");
        let (listen, proxy) = (free_address()?, free_address()?);
        let accepts = match number < setting.candidates {
            true => None,
            false => {
                let address = free_address()?;
                Some((address, Relay::new(address)?))
            }
        };
        let front = if setting.mount.is_some() { format!("at-{name}") } else { name.clone() };
        Ok(Self {
            folder: folder.join(&name),
            front: folder.join(front),
            name,
            accepts,
            proxy,
            application: free_address()?,
            listen,
            reads: free_address()?,
            to_node: Relay::new(listen)?,
            to_proxy: Relay::new(proxy)?,
            running: Mutex::default(),
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.with_extension("sock")
    }

    /// Its database, where it is used.
    pub fn database(&self) -> PathBuf {
        self.front.join(DATABASE)
    }

    /// Where the reader beside it listens.
    pub fn reader(&self) -> SocketAddr {
        self.reads
    }

    /// Whether it takes writes: its own, or by passing them on.
    pub fn takes_writes(&self) -> bool {
        self.accepts.is_none()
    }

    /// Whether it is mounted now.
    pub fn is_mounted(&self) -> bool {
        self.front != self.folder && fuse::is_mounted(&self.front)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.running.lock().expect("nobody panics with it")
    }

    /// Lets the others reach it, or not.
    pub fn cut(&self, is_cut: bool) {
        self.to_node.cut(is_cut);
        self.to_proxy.cut(is_cut);
        self.accepts.iter().for_each(|(_, relay)| relay.cut(is_cut));
    }

    /// The number of its process.
    pub fn id(&self) -> Option<u32> {
        self.running().as_ref().map(Process::id)
    }

    /// Its process, the guard, and the application: all that would stop with the machine.
    pub fn processes(&self) -> BTreeSet<u32> {
        self.id().map(with_descendants).unwrap_or_default()
    }

    /// Removes what was on its disk. It has no process.
    pub fn lose_disk(&self) -> Outcome {
        fs::remove_dir_all(&self.folder).context("remove the folder of a node")
    }

    /// Kills the process. False where there is none.
    pub fn kill(&self) -> Outcome<bool> {
        let process = self.running().take();
        process.map_or(Ok(false), |mut process| process.kill())
    }

    /// Ends the process as a service manager does, and gives its status.
    pub fn stop(&self) -> Outcome<Option<i32>> {
        let Some(mut process) = self.running().take() else { return Ok(None) };
        process.signal(libc::SIGTERM);
        let deadline = Instant::now() + END_MAX;
        loop {
            match process.ended()? {
                Some(status) => return Ok(status.code()),
                None if Instant::now() > deadline => return fail(format!("{} did not end", self.name)),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Takes in that the process has ended by itself; with which status.
    pub fn has_ended(&self) -> Outcome<Option<i32>> {
        let mut running = self.running();
        let Some(process) = running.as_mut() else { return Ok(None) };
        let Some(status) = process.ended()? else { return Ok(None) };
        *running = None;
        Ok(Some(status.code().unwrap_or(-1)))
    }
}

/// Sends a signal to each of them.
pub fn signal_all(processes: &BTreeSet<u32>, signal: libc::c_int) {
    for id in processes {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(*id as libc::pid_t, signal) };
    }
}

/// A process and all that it has started and those have, as far as they are there now.
fn with_descendants(id: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (child, parent)));
    }
    let mut found = BTreeSet::from([id]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(child, parent)| found.contains(parent) && !found.contains(child))
            .map(|p| p.0)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}
