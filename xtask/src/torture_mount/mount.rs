//! A folder that is mounted at another, and the daemon that serves it.
//!
//! Nothing of it is left when this is dropped, and nothing waits for ever: a daemon that lives for longer than [`LIFE_MAX`] has hung, or
//! somebody waits for it in the kernel where no signal reaches, and then its connection is ended from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::error::{Context, Outcome, fail};
use crate::fuse;
use crate::process::Process;
use crate::rhyolite::Rhyolite;
use crate::scratch::Scratch;

/// How long one daemon may live: all cycles of a world take less, on a slow machine too.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// How long a mount may take to come.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a WAL may be found open after all its users were killed: the kernel closes what it passes through when it has time.
const CLOSING_LIMIT: Duration = Duration::from_secs(20);
/// How long a daemon may take to upload what is left and to unmount.
const END_LIMIT: Duration = Duration::from_secs(60);

/// `data` is mounted at `db`, and replicated to `backup`, all in one folder.
#[derive(Debug)]
pub(crate) struct Mount {
    rhyolite: Rhyolite,
    folder: PathBuf,
    options: Vec<String>,
    daemon: Option<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    process: Process,
    watch: Watch,
}

/// Ends the connection of a mount whose daemon lives too long.
#[derive(Debug)]
struct Watch {
    /// Dropped with this, which ends the watch.
    _is_needed: Sender<()>,
    has_bitten: Arc<AtomicBool>,
}

impl Watch {
    fn over(at: PathBuf) -> Self {
        let (is_needed, ended) = mpsc::channel();
        let has_bitten = Arc::new(AtomicBool::new(false));
        let bitten = Arc::clone(&has_bitten);
        std::thread::spawn(move || {
            if ended.recv_timeout(LIFE_MAX) == Err(RecvTimeoutError::Timeout) {
                bitten.store(true, Ordering::SeqCst);
                fuse::take_away(&at);
            }
        });
        Self { _is_needed: is_needed, has_bitten }
    }
}

impl Mount {
    /// Makes the folders; mounts nothing.
    pub(crate) fn new(rhyolite: &Rhyolite, folder: &Path) -> Outcome<Self> {
        Self::with_options(rhyolite, folder, &[])
    }

    /// The same for a daemon with further options.
    pub(crate) fn with_options(rhyolite: &Rhyolite, folder: &Path, more: &[&str]) -> Outcome<Self> {
        let options = ["--sync-interval", "0", "--log-level", "warn"];
        let options = options.iter().chain(more).map(ToString::to_string).collect();
        let mount = Self { rhyolite: rhyolite.clone(), folder: folder.to_owned(), options, daemon: None };
        for folder in [mount.behind(), mount.front(), mount.store()] {
            fs::create_dir(&folder).context(format!("make {}", folder.display()))?;
        }
        Ok(mount)
    }

    /// The folder with the files.
    pub(crate) fn behind(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Where applications use them.
    pub(crate) fn front(&self) -> PathBuf {
        self.folder.join("db")
    }

    /// Below which every database has its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("backup")
    }

    /// What all daemons have said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// Starts a daemon, and does not wait for anything.
    pub(crate) fn launch(&mut self) -> Outcome {
        assert!(self.daemon.is_none(), "one daemon at a time");
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        let (behind, front, store) = (self.behind(), self.front(), self.store());
        let process = self.rhyolite.mount(&behind, &front, &store, &options, &self.log_path())?;
        self.daemon = Some(Daemon { process, watch: Watch::over(front) });
        Ok(())
    }

    /// Starts a daemon, and waits until the folder is mounted. Gives how often it was refused because the kernel had not yet closed a WAL
    /// of killed processes.
    pub(crate) fn start(&mut self) -> Outcome<u64> {
        let deadline = Instant::now() + CLOSING_LIMIT;
        for refusals in 0.. {
            let said_before = self.log().len();
            self.launch()?;
            if self.is_up()? {
                return Ok(refusals);
            }
            self.daemon = None;
            let log = self.log();
            let said = log.get(said_before..).unwrap_or_default().trim();
            if !said.contains("is in use: stop the processes") || Instant::now() > deadline {
                return fail(format!("the folder was not mounted: {said}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        unreachable!("the deadline comes first")
    }

    /// Waits for the mount, or for the end of the daemon.
    fn is_up(&mut self) -> Outcome<bool> {
        let front = self.front();
        let daemon = self.daemon.as_mut().context("no daemon runs")?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if daemon.process.ended()?.is_some() {
                return Ok(false);
            }
            if fuse::is_mounted(&front) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return fail(format!("nothing was mounted within {START_LIMIT:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether a daemon runs that was not found to hang.
    pub(crate) fn check(&mut self) -> Outcome {
        let daemon = self.daemon.as_mut().context("no daemon runs")?;
        daemon.watch.check()?;
        match daemon.process.ended()? {
            None => Ok(()),
            Some(status) => fail(format!("the daemon ended by itself: {status}")),
        }
    }

    /// Kills the daemon with SIGKILL. Gives whether it was alive.
    pub(crate) fn kill(&mut self) -> Outcome<bool> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let was_alive = daemon.process.kill()?;
        daemon.watch.check()?;
        Ok(was_alive)
    }

    /// Asks the daemon to end, which it must with everything uploaded and nothing mounted.
    pub(crate) fn stop(&mut self) -> Outcome {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let ended = daemon.process.terminate(END_LIMIT);
        if ended.is_err() {
            // Before it is dropped, which waits for its end.
            self.take_away();
        }
        ended?;
        daemon.watch.check()?;
        if fuse::is_mounted(&self.front()) {
            return fail("the daemon has ended and the folder is still mounted");
        }
        Ok(())
    }

    /// Whatever is mounted goes, so that nobody waits for it.
    pub(crate) fn take_away(&self) {
        fuse::take_away(&self.front());
    }
}

impl Watch {
    /// Whether it had nothing to do.
    fn check(&self) -> Outcome {
        if self.has_bitten.load(Ordering::SeqCst) {
            return fail(format!("after {LIFE_MAX:?} the mount was taken away, because something hung"));
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // First the mount: the daemon, or whoever waits for it, may not be able to end before.
        self.take_away();
        self.daemon = None;
        self.take_away();
    }
}

/// Why nothing can be mounted on this machine, if that is so; any other failure is one of the program.
pub(crate) fn find_obstacle(rhyolite: &Rhyolite) -> Outcome<Option<String>> {
    if !fuse::is_there() {
        return Ok(Some("there is no /dev/fuse".to_owned()));
    }
    let scratch = Scratch::new("torture-mount-probe")?;
    let mut mount = Mount::new(rhyolite, scratch.path())?;
    match mount.start() {
        Ok(_) => mount.stop().map(|()| None),
        Err(error) if is_not_permitted(&error.to_string()) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Whether mounting failed for want of permission, by what the daemon has said.
fn is_not_permitted(said: &str) -> bool {
    let said = said.to_lowercase();
    said.contains("mount at") && ["not permitted", "permission denied"].iter().any(|text| said.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_want_of_permission_is_an_obstacle() {
        assert!(is_not_permitted("error: mount at /x/db: Operation not permitted (os error 1)"));
        assert!(is_not_permitted("mount at /x/db: Permission denied"));
        assert!(!is_not_permitted("mount at /x/db: Invalid argument"));
        assert!(!is_not_permitted("open /x/data/app.db: Permission denied"));
    }
}
