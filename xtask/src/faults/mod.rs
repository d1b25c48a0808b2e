//! `cargo xtask faults`: disks that fill up and servers that hang, with real processes.
//!
//! In each scene an application writes all the time. The trouble comes, lasts, and goes; nobody restarts anything. The application
//! must never notice; the replicator must say that something is wrong, must live through it, and must catch up by itself; the
//! restored copy must be the database. A scene that this machine cannot play is skipped aloud.

mod disk;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Context, Outcome, fail};
use crate::oracle::{Image, first_difference, judge};
use crate::process::Process;
use crate::rhyolite::Rhyolite;
use crate::s3_server::Server;
use crate::scratch::Scratch;
use crate::writer::schema::{self, Making};
use disk::SmallDisk;

/// How long each trouble lasts.
const TROUBLE: Duration = Duration::from_secs(4);
/// How long the replicator may take to catch up when the trouble is over: retries are at most half a minute apart.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// The longest that a commit may take meanwhile.
const COMMIT_MS_MAX: f64 = 2_000.0;
/// How long a replicator may take to end when the store hangs.
const END_LIMIT: Duration = Duration::from_secs(40);

/// One application, one replicator, one backup.
struct Scene {
    rhyolite: Rhyolite,
    scratch: Scratch,
    db: PathBuf,
    store: String,
}

/// Plays all scenes.
pub(crate) fn run(args: Args) -> Outcome {
    args.finish()?;
    let rhyolite = Rhyolite::find()?;
    full_state_folder(&rhyolite).context("full disk under the local log")?;
    full_store(&rhyolite).context("full disk under the store")?;
    if std::env::var_os("RHYOLITE_MOTO").is_none() {
        println!("SKIPPED: hanging server (RHYOLITE_MOTO does not name moto_server)");
        return Ok(());
    }
    let server = Server::start()?;
    hanging_server(&rhyolite, &server).context("hanging server")?;
    end_while_hanging(&rhyolite, &server).context("end while the server hangs")
}

fn full_state_folder(rhyolite: &Rhyolite) -> Outcome {
    let scene = Scene::new(rhyolite, None)?;
    let folder = scene.scratch.path().join(".app.db-rhyolite");
    let Some(disk) = mount(&folder, 16, "full disk under the local log") else { return Ok(()) };
    scene.play("the disk of the state folder is full", || disk.fill(), || disk.empty())
}

fn full_store(rhyolite: &Rhyolite) -> Outcome {
    let scene = Scene::new(rhyolite, None)?;
    let Some(disk) = mount(scene.store.as_ref(), 400, "full disk under the store") else { return Ok(()) };
    scene.play("the disk of the store is full", || disk.fill(), || disk.empty())
}

fn hanging_server(rhyolite: &Rhyolite, server: &Server) -> Outcome {
    let scene = Scene::new(rhyolite, Some(server))?;
    let freeze = || {
        server.freeze();
        Ok(())
    };
    let thaw = || {
        server.thaw();
        Ok(())
    };
    scene.play("the S3 server hangs", freeze, thaw)
}

/// SIGTERM ends the replicator within a bound though the store hangs, and the next start goes on where it stopped.
fn end_while_hanging(rhyolite: &Rhyolite, server: &Server) -> Outcome {
    let scene = Scene::new(rhyolite, Some(server))?;
    let mut replicator = scene.start_replicator()?;
    let mut writer = scene.start_writer()?;
    std::thread::sleep(TROUBLE / 2);
    server.freeze();
    std::thread::sleep(TROUBLE / 4);
    writer.terminate(END_LIMIT)?;
    let began = Instant::now();
    let ended = end_with_any_status(&mut replicator);
    server.thaw();
    ended?;
    println!("the replicator ended {:.1} s after SIGTERM though the store hung", began.elapsed().as_secs_f64());
    let _replicator = scene.start_replicator()?;
    scene.compare()
}

/// Not everything could be uploaded, so the status may say so.
fn end_with_any_status(process: &mut Process) -> Outcome {
    process.signal(libc::SIGTERM);
    let deadline = Instant::now() + END_LIMIT;
    while process.ended()?.is_none() {
        if Instant::now() > deadline {
            return fail(format!("the replicator did not end within {END_LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn mount(folder: &std::path::Path, mib: u64, scene: &str) -> Option<SmallDisk> {
    match SmallDisk::mount(folder, mib) {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("SKIPPED: {scene} ({error})");
            None
        }
    }
}

impl Scene {
    fn new(rhyolite: &Rhyolite, server: Option<&Server>) -> Outcome<Self> {
        let scratch = Scratch::new("faults")?;
        let db = scratch.path().join("app.db");
        schema::create(&db, Making { page_size: 4096, auto_vacuum: 0, life: 1 }).context("make the database")?;
        let mut rhyolite = rhyolite.clone();
        let store = match server {
            None => scratch.path().join("backup").display().to_string(),
            Some(server) => {
                rhyolite.environment = Server::environment();
                server.url(&format!("faults-{}", scratch.path().file_name().unwrap_or_default().to_string_lossy()))
            }
        };
        Ok(Self { rhyolite, scratch, db, store })
    }

    fn start_replicator(&self) -> Outcome<Process> {
        // A log of at most half of the small disk, so that only the filler fills it.
        let sizes = ["--max-segment-size", "1MiB", "--max-log-size", "8MiB"];
        let times = ["--sync-interval", "100ms", "--shutdown-sync-timeout", "5s"];
        let options = [sizes, times].concat();
        self.rhyolite.replicate(&self.db, &self.store, &options, &self.scratch.path().join("replicate.log"))
    }

    fn start_writer(&self) -> Outcome<Process> {
        let mut command = Command::new(std::env::current_exe().context("find our own binary")?);
        command.args(["writer", "--pause-us", "4000", "--db"]).arg(&self.db);
        Process::start("writer", command, &self.scratch.path().join("writer.log"))
    }

    /// Trouble comes between `begin` and `end`; everything must be as it should be afterwards.
    fn play(&self, trouble: &str, begin: impl Fn() -> Outcome, end: impl Fn() -> Outcome) -> Outcome {
        let mut replicator = self.start_replicator()?;
        let mut writer = self.start_writer()?;
        std::thread::sleep(TROUBLE / 2);
        let log_before = self.log().len();
        begin()?;
        println!("{trouble} for {} s ...", TROUBLE.as_secs());
        std::thread::sleep(TROUBLE);
        let said = self.log()[log_before..].to_owned();
        let alive = replicator.ended()?.is_none();
        end()?;
        if !alive {
            return fail(format!("the replicator ended: {}", said.trim()));
        }
        if !said.contains("WARN") && !said.contains("ERROR") {
            return fail(format!("the replicator said nothing about it: {}", self.log()));
        }
        std::thread::sleep(TROUBLE / 4);
        writer.terminate(END_LIMIT)?;
        self.check_writer()?;
        let began = Instant::now();
        self.compare()?;
        println!("... over: caught up and equal {:.1} s after the last commit", began.elapsed().as_secs_f64());
        replicator.terminate(END_LIMIT)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("replicate.log")).unwrap_or_default()
    }

    /// The application went on as if nothing had happened.
    fn check_writer(&self) -> Outcome {
        let text = std::fs::read_to_string(self.scratch.path().join("writer.log")).context("read the writer's log")?;
        let figures: serde_json::Value = serde_json::from_str(text.trim()).context("the writer's last words")?;
        let slowest = figures["commit_ms_max"].as_f64().context("the writer gave no time")?;
        println!("the application made {} transactions, the slowest in {slowest} ms", figures["transactions"]);
        if slowest > COMMIT_MS_MAX {
            return fail(format!("a commit took {slowest} ms"));
        }
        Ok(())
    }

    fn compare(&self) -> Outcome {
        let source = Image::of_database(&self.db)?;
        self.rhyolite.wait_for(&self.store, source.checksum()?, None, RECOVERY_LIMIT)?;
        let copy = self.scratch.path().join("copy.db");
        self.rhyolite.restore(&self.store, &copy, None)?;
        if let Some(difference) = first_difference(&source, &Image::of_file(&copy)?) {
            return fail(difference);
        }
        let judgement = judge(&copy)?;
        if judgement.is_sound() { Ok(()) } else { fail(format!("{judgement:?}")) }
    }
}
