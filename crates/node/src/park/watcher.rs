//! One thread and one inotify instance that notice when any parked database is written.
//!
//! There is one watch per folder, not per database: thousands of databases mostly share folders, and a watch on the folder also sees a
//! `-wal` file that is made anew. While a folder has nothing parked (and is not watched for new databases) it has no watch, which would
//! cost writers time; and it tells of writes only where something is parked. A folder in which others do so much that its events cost more than
//! they tell is not watched for a while; one that is searched for new databases is then to be searched every few seconds.
//!
//! Invariants:
//! 1. Files are only touched under the lock of the registry, and only those of databases that are in it. After [`Watcher::forget`], and
//!    before a database's id was sent, nothing here has one of its files open: closing a file drops the process's locks on it.
//! 2. A database that is in the registry has the mark that it had when it was put there. Every look compares with that.
//! 3. Without inotify (none left, a limit reached) everything works by looking in turn, only later: what is parked every second, and a
//!    folder that is searched every few seconds. It is asked for again from time to time.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rhyolite_format::state::parked::{DatabaseMark, HeaderMark};
use rhyolite_logic::park::look_interval;
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::sync::mpsc::UnboundedSender;

use super::{header_mark, mark};
use crate::capture::watch::Wake;

/// A database as the supervisor numbers it.
pub type DatabaseId = u32;

/// How often each parked database is looked at, unless that would cost too much: with a watch, and without one.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
const LOOK_INTERVAL_UNWATCHED: Duration = Duration::from_secs(1);
/// Each so manieth round also opens the files.
const HEADER_ROUNDS: u32 = 16;
/// Time between two turns of looking.
const TURN: Duration = Duration::from_secs(1);
/// Events are taken in at most this often: equal ones are merged by the kernel meanwhile.
const EVENT_PAUSE: Duration = Duration::from_millis(5);
/// More events than this in a turn that concern nothing parked, and the folder is left alone for a while.
const NOISE_MAX: u32 = 2_000;
const NOISE_REST: Duration = Duration::from_secs(60);
/// How often a searched folder without a watch is to be searched.
const SEARCH_GAP: Duration = Duration::from_secs(3);
/// Without inotify, it is asked for again so often: other processes of the same user may have had all that there are.
const INOTIFY_AGAIN: Duration = Duration::from_secs(30);

/// What the watcher tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// The database was written, or its files came or went. It is not watched any more.
    Changed(DatabaseId),
    /// A file appeared in a watched folder or was removed from it.
    Name(PathBuf),
    /// Events were lost: look at all watched folders.
    Lost,
}

/// A parked database.
#[derive(Debug)]
struct Resting {
    folder: Arc<Path>,
    name: Arc<OsStr>,
    mark: DatabaseMark,
    header: HeaderMark,
}

impl Resting {
    fn path(&self) -> PathBuf {
        self.folder.join(&*self.name)
    }

    fn has_changed(&self, open_files: bool) -> bool {
        let path = self.path();
        let same = mark(&path).is_ok_and(|now| now == self.mark) && (!open_files || header_mark(&path) == self.header);
        !same
    }
}

/// A folder in which something is parked, or that is watched for new databases.
#[derive(Debug, Default)]
struct Folder {
    watch: Option<i32>,
    /// The watch tells of writes as well, for something is parked here.
    sees_writes: bool,
    names: HashMap<Arc<OsStr>, DatabaseId>,
    /// New names are told.
    is_searched: bool,
    noise: u32,
    /// Not watched before this.
    rests_until: Option<Instant>,
    /// When it was last told that a searched folder is to be searched, while it has no watch.
    told: Option<Instant>,
}

/// Where a round of looks is.
#[derive(Debug, Default)]
struct Round {
    last: Option<DatabaseId>,
    count: u32,
    /// What is left over of the looks that are due, in thousandths.
    owed: u64,
}

#[derive(Debug)]
struct Registry {
    inotify: Option<Arc<OwnedFd>>,
    /// When it was last asked for.
    asked: Instant,
    folders: HashMap<Arc<Path>, Folder>,
    watches: HashMap<i32, Arc<Path>>,
    resting: BTreeMap<DatabaseId, Resting>,
    /// Parked in folders without a watch.
    unwatched: usize,
    round: Round,
    told_of_limit: bool,
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    wake: Wake,
    stop: AtomicBool,
    noticed: UnboundedSender<Noticed>,
}

/// Notices when parked databases are written. Its thread ends when this is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

impl Watcher {
    /// Starts the thread. What it notices goes to `noticed`.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub fn start(noticed: UnboundedSender<Noticed>) -> std::io::Result<Self> {
        let inotify = inotify().inspect_err(|e| {
            let hint = "see fs.inotify.max_user_instances";
            tracing::warn!("no inotify ({e}; {hint}): databases and folders are looked at in turn");
        });
        let registry = Registry {
            inotify: inotify.ok(),
            asked: Instant::now(),
            folders: HashMap::new(),
            watches: HashMap::new(),
            resting: BTreeMap::new(),
            unwatched: 0,
            round: Round::default(),
            told_of_limit: false,
        };
        let shared =
            Shared { registry: Mutex::new(registry), wake: Wake::new()?, stop: AtomicBool::new(false), noticed };
        let shared = Arc::new(shared);
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("parked".to_owned()).stack_size(256 << 10).spawn(move || own.run())?;
        Ok(Self { shared })
    }

    /// Takes a database in whose files looked like `mark`. When they look otherwise by now, that is noticed at once.
    pub fn park(&self, id: DatabaseId, database: &Path, mark: DatabaseMark) {
        let (Some(folder), Some(name)) = (database.parent(), database.file_name()) else {
            self.shared.tell(Noticed::Changed(id));
            return;
        };
        let mut registry = self.shared.lock();
        let was_empty = registry.resting.is_empty();
        let folder = registry.arm(folder, true);
        let name: Arc<OsStr> = Arc::from(name);
        // The watch is armed: what is written from here on is seen. What was written before, the look sees.
        let header = header_mark(database);
        let resting = Resting { folder: Arc::clone(&folder), name: Arc::clone(&name), mark, header };
        if resting.has_changed(false) {
            registry.narrow(&folder);
            registry.disarm_if_empty(&folder);
            drop(registry);
            self.shared.tell(Noticed::Changed(id));
            return;
        }
        let entry = registry.folders.get_mut(&folder).expect("armed above");
        entry.names.insert(name, id);
        let is_unwatched = entry.watch.is_none();
        registry.unwatched += usize::from(is_unwatched);
        registry.resting.insert(id, resting);
        drop(registry);
        if was_empty {
            // The thread waits without end while there is nothing to look at.
            self.shared.wake.ring();
        }
    }

    /// Lets go of a database. From here on its files are not touched.
    pub fn forget(&self, id: DatabaseId) {
        self.shared.lock().remove(id);
    }

    /// Looks at one parked database. `false` when it has changed, or is not here: then it is not watched any more.
    pub fn look_now(&self, id: DatabaseId) -> bool {
        let mut registry = self.shared.lock();
        let same = registry.resting.get(&id).is_some_and(|resting| !resting.has_changed(false));
        if !same {
            registry.remove(id);
        }
        same
    }

    /// Looks at every parked database, and tells of those that have changed.
    pub fn look_at_all(&self) -> Vec<DatabaseId> {
        let mut registry = self.shared.lock();
        let changed: Vec<_> =
            registry.resting.iter().filter(|(_, resting)| resting.has_changed(false)).map(|(id, _)| *id).collect();
        changed.iter().for_each(|id| registry.remove(*id));
        changed
    }

    /// Tells of names that come and go in `folder`. `false` when it cannot be watched.
    pub fn search(&self, folder: &Path) -> bool {
        let mut registry = self.shared.lock();
        let folder = registry.arm(folder, false);
        let entry = registry.folders.get_mut(&folder).expect("armed above");
        entry.is_searched = true;
        let is_watched = entry.watch.is_some();
        drop(registry);
        if !is_watched {
            // The thread waits without end while there are watches for everything.
            self.shared.wake.ring();
        }
        is_watched
    }

    /// Tells no more of names in `folder`.
    pub fn end_search(&self, folder: &Path) {
        let mut registry = self.shared.lock();
        let Some((folder, _)) = registry.folders.get_key_value(folder).map(|(f, e)| (Arc::clone(f), e.is_searched))
        else {
            return;
        };
        registry.folders.get_mut(&folder).expect("just found").is_searched = false;
        registry.disarm_if_empty(&folder);
    }

    /// How many databases are parked.
    pub fn count(&self) -> usize {
        self.shared.lock().resting.len()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.ring();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Every change leaves the registry whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, noticed: Noticed) {
        // Without a receiver the process is about to end.
        let _ = self.noticed.send(noticed);
    }

    fn run(&self) {
        let mut turn = Instant::now();
        let mut buffer = Box::new([MaybeUninit::uninit(); 16 << 10]);
        while !self.stop.load(Ordering::Acquire) {
            self.wait(&turn);
            let mut noticed = Vec::new();
            let quiet;
            {
                let mut registry = self.lock();
                registry.take_events(&mut buffer[..], &mut noticed);
                if turn.elapsed() >= TURN {
                    turn = Instant::now();
                    registry.take_turn(&mut noticed);
                }
                quiet = noticed.is_empty();
                // Under the lock: who looks at all of them after this finds them told.
                noticed.into_iter().for_each(|n| self.tell(n));
            }
            std::thread::sleep(if quiet { EVENT_PAUSE } else { Duration::from_millis(1) });
        }
    }

    /// Until there are events, somebody rings, or the next turn is due.
    fn wait(&self, turn: &Instant) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let (inotify, is_idle) = {
            let registry = self.lock();
            let is_idle = registry.resting.is_empty() && registry.folders.values().all(|f| f.watch.is_some());
            (registry.inotify.clone(), is_idle)
        };
        let timeout = TURN.saturating_sub(turn.elapsed());
        let timeout = (!is_idle).then(|| Timespec::try_from(timeout).expect("a second at most"));
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(inotify.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::warn!("wait for changes: {error}");
            std::thread::sleep(TURN);
        }
        self.wake.clear();
    }
}

impl Registry {
    /// Makes sure that there is an entry for the folder, and a watch if that can be had, of writes too if they are wanted.
    fn arm(&mut self, folder: &Path, wants_writes: bool) -> Arc<Path> {
        let folder = match self.folders.get_key_value(folder) {
            Some((known, _)) => Arc::clone(known),
            None => {
                let folder: Arc<Path> = Arc::from(folder);
                self.folders.insert(Arc::clone(&folder), Folder::default());
                folder
            }
        };
        let entry = self.folders.get_mut(&folder).expect("just inserted");
        let rests = entry.rests_until.is_some_and(|until| Instant::now() < until);
        let sees_writes = wants_writes || !entry.names.is_empty();
        let is_due = entry.watch.is_none() || (sees_writes && !entry.sees_writes);
        if let (true, false, Some(inotify)) = (is_due, rests, &self.inotify) {
            // A watch that is there gets these flags, and keeps its number.
            match inotify::add_watch(inotify, &*folder, flags(sees_writes)) {
                Ok(watch) => {
                    if entry.watch.replace(watch).is_none() {
                        self.unwatched -= entry.names.len();
                    }
                    entry.sees_writes = sees_writes;
                    entry.rests_until = None;
                    self.watches.insert(watch, Arc::clone(&folder));
                }
                // It was removed.
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) if !std::mem::replace(&mut self.told_of_limit, true) => {
                    let folder = folder.display();
                    tracing::warn!(
                        "{folder} cannot be watched ({error}; see fs.inotify.max_user_watches): it is looked at in turn"
                    );
                }
                Err(_) => {}
            }
        }
        folder
    }

    fn disarm_if_empty(&mut self, folder: &Arc<Path>) {
        let Some(entry) = self.folders.get(folder) else { return };
        if !entry.names.is_empty() || entry.is_searched {
            return;
        }
        self.drop_watch(folder);
        self.folders.remove(folder);
    }

    /// Where nothing is parked writes are not watched.
    fn narrow(&mut self, folder: &Arc<Path>) {
        let Some(entry) = self.folders.get_mut(folder) else { return };
        if entry.names.is_empty() && entry.is_searched && entry.sees_writes {
            // Whether it is done or not, the watch is there.
            entry.sees_writes = match (&self.inotify, entry.watch) {
                (Some(inotify), Some(_)) => inotify::add_watch(inotify, &**folder, flags(false)).is_err(),
                _ => false,
            };
        }
    }

    fn drop_watch(&mut self, folder: &Arc<Path>) {
        let Some(entry) = self.folders.get_mut(folder) else { return };
        let Some(watch) = entry.watch.take() else { return };
        entry.sees_writes = false;
        self.unwatched += entry.names.len();
        self.watches.remove(&watch);
        if let Some(inotify) = &self.inotify {
            // The folder may be gone, and its watch with it.
            let _ = inotify::remove_watch(inotify, watch);
        }
    }

    fn remove(&mut self, id: DatabaseId) {
        let Some(resting) = self.resting.remove(&id) else { return };
        if let Some(entry) = self.folders.get_mut(&resting.folder) {
            entry.names.remove(&resting.name);
            self.unwatched -= usize::from(entry.watch.is_none());
        }
        self.narrow(&resting.folder);
        self.disarm_if_empty(&resting.folder);
    }

    /// Looks at one database; one that has changed is removed and told.
    fn look(&mut self, id: DatabaseId, open_files: bool, noticed: &mut Vec<Noticed>) {
        if self.resting.get(&id).is_some_and(|resting| resting.has_changed(open_files)) {
            self.remove(id);
            noticed.push(Noticed::Changed(id));
        }
    }

    fn take_events(&mut self, buffer: &mut [MaybeUninit<u8>], noticed: &mut Vec<Noticed>) {
        let Some(inotify) = &self.inotify else { return };
        let mut seen: Vec<(i32, ReadFlags, Option<OsString>)> = Vec::new();
        let mut reader = inotify::Reader::new(inotify, buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            let event = (event.wd(), event.events(), name);
            if seen.last() != Some(&event) {
                seen.push(event);
            }
        }
        for (watch, flags, name) in seen {
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                let all: Vec<_> = self.resting.keys().copied().collect();
                all.into_iter().for_each(|id| self.look(id, false, noticed));
                noticed.push(Noticed::Lost);
                continue;
            }
            let Some(folder) = self.watches.get(&watch).cloned() else { continue };
            if flags.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                self.lose_folder(&folder, noticed);
                continue;
            }
            if let Some(name) = name {
                self.take_event(&folder, flags, &name, noticed);
            }
        }
    }

    fn take_event(&mut self, folder: &Arc<Path>, flags: ReadFlags, name: &OsStr, noticed: &mut Vec<Noticed>) {
        let Some(entry) = self.folders.get_mut(folder) else { return };
        let came_or_went = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        match entry.names.get(database_name(name)) {
            Some(id) if !name.as_bytes().ends_with(b"-shm") => {
                let id = *id;
                self.look(id, false, noticed);
            }
            Some(_) => {}
            None => entry.noise += 1,
        }
        let Some(entry) = self.folders.get_mut(folder) else { return };
        if entry.is_searched && flags.intersects(came_or_went) && database_name(name) == name {
            noticed.push(Noticed::Name(folder.join(name)));
        }
    }

    /// The folder was removed or has another name: what is in it is looked at without events.
    fn lose_folder(&mut self, folder: &Arc<Path>, noticed: &mut Vec<Noticed>) {
        self.drop_watch(folder);
        let Some(entry) = self.folders.get(folder) else { return };
        if entry.is_searched {
            noticed.push(Noticed::Name(folder.to_path_buf()));
        }
        let ids: Vec<_> = entry.names.values().copied().collect();
        ids.into_iter().for_each(|id| self.look(id, false, noticed));
    }

    /// Looks at as many databases as are due, and sees to folders with too many events.
    fn take_turn(&mut self, noticed: &mut Vec<Noticed>) {
        let count = self.resting.len();
        let wished = if self.unwatched > 0 { LOOK_INTERVAL_UNWATCHED } else { LOOK_INTERVAL };
        let interval = look_interval(count, wished);
        self.round.owed += count as u64 * 1000 * TURN.as_millis() as u64 / interval.as_millis().max(1) as u64;
        let due = (self.round.owed / 1000).min(count as u64);
        self.round.owed %= 1000;
        for _ in 0..due {
            let after = self.round.last.map_or(Bound::Unbounded, Bound::Excluded);
            let Some(id) = self.resting.range((after, Bound::Unbounded)).next().map(|(id, _)| *id) else {
                self.round.last = None;
                self.round.count = self.round.count.wrapping_add(1);
                continue;
            };
            self.round.last = Some(id);
            let open_files = self.round.count % HEADER_ROUNDS == HEADER_ROUNDS - 1;
            self.look(id, open_files, noticed);
        }
        if self.inotify.is_none() && self.asked.elapsed() >= INOTIFY_AGAIN {
            self.asked = Instant::now();
            self.inotify = inotify().ok();
        }
        let folders: Vec<_> = self.folders.keys().cloned().collect();
        for folder in folders {
            self.see_to_noise(&folder);
            self.see_to_watch(&folder, noticed);
        }
    }

    fn see_to_noise(&mut self, folder: &Arc<Path>) {
        let Some(entry) = self.folders.get_mut(folder) else { return };
        let noise = std::mem::take(&mut entry.noise);
        if noise > NOISE_MAX && entry.watch.is_some() {
            entry.rests_until = Some(Instant::now() + NOISE_REST);
            entry.told = Some(Instant::now());
            self.drop_watch(folder);
        }
    }

    /// A folder without a watch gets one, if it can be had. Until then it is told every few seconds that it is to be searched, if it is.
    fn see_to_watch(&mut self, folder: &Arc<Path>, noticed: &mut Vec<Noticed>) {
        let is_unwatched = |f: &&Folder| f.watch.is_none();
        if self.folders.get(folder).filter(is_unwatched).is_none() {
            return;
        }
        self.arm(folder, false);
        let Some(entry) = self.folders.get_mut(folder) else { return };
        let is_armed = entry.watch.is_some();
        if entry.is_searched && (is_armed || entry.told.is_none_or(|told| told.elapsed() >= SEARCH_GAP)) {
            entry.told = Some(Instant::now());
            noticed.push(Noticed::Lost);
        }
        if is_armed {
            // What was written before the watch was there.
            let ids: Vec<_> = entry.names.values().copied().collect();
            ids.into_iter().for_each(|id| self.look(id, false, noticed));
        }
    }
}

fn inotify() -> rustix::io::Result<Arc<OwnedFd>> {
    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map(Arc::new)
}

/// What a watch tells of.
fn flags(sees_writes: bool) -> WatchFlags {
    let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
    let folder = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    let writes = if sees_writes { WatchFlags::MODIFY } else { WatchFlags::empty() };
    names | folder | writes
}

/// The name of the database that a file belongs to: its own, or that without what SQLite appends.
fn database_name(name: &OsStr) -> &OsStr {
    let bytes = name.as_bytes();
    let base = [&b"-wal"[..], b"-shm", b"-journal"].iter().find_map(|suffix| bytes.strip_suffix(*suffix));
    OsStr::from_bytes(base.unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn files_belong_to_their_database() {
        for (file, database) in [("a.db", "a.db"), ("a.db-wal", "a.db"), ("a.db-journal", "a.db"), ("a.db-shm", "a.db")]
        {
            assert_eq!(database_name(OsStr::new(file)), database);
        }
    }

    fn watcher() -> (Watcher, mpsc::UnboundedReceiver<Noticed>, tempfile::TempDir) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Watcher::start(sender).unwrap(), receiver, tempfile::tempdir().unwrap())
    }

    fn next(receiver: &mut mpsc::UnboundedReceiver<Noticed>) -> Noticed {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let received = async { tokio::time::timeout(Duration::from_secs(20), receiver.recv()).await };
        runtime.block_on(received).expect("noticed in time").expect("the watcher lives")
    }

    /// As long as only names are wanted, writes do not count; and where names come and go too fast to be told, the folder is searched in turn.
    #[test]
    fn a_new_name_in_a_busy_folder_is_noticed_in_time() {
        let (watcher, mut noticed, folder) = watcher();
        assert!(watcher.search(folder.path()));
        let mut busy = std::fs::File::create(folder.path().join("a.db")).unwrap();
        assert_eq!(next(&mut noticed), Noticed::Name(folder.path().join("a.db")));
        let began = Instant::now();
        while began.elapsed() < 2 * TURN {
            std::io::Write::write_all(&mut busy, b"row").unwrap();
        }
        std::fs::write(folder.path().join("b.db"), b"new").unwrap();
        assert_eq!(next(&mut noticed), Noticed::Name(folder.path().join("b.db")));
        let journal = folder.path().join("a.db-journal");
        while noticed.try_recv() != Ok(Noticed::Lost) {
            std::fs::write(&journal, b"journal").unwrap();
            std::fs::remove_file(&journal).unwrap();
            assert!(began.elapsed() < Duration::from_secs(30), "nobody says that the folder is to be searched");
        }
        // The first may be for events that the kernel could not keep.
        let first = Instant::now();
        while first.elapsed() < 2 * SEARCH_GAP + TURN {
            std::fs::write(&journal, b"journal").unwrap();
            std::fs::remove_file(&journal).unwrap();
        }
        assert!(std::iter::from_fn(|| noticed.try_recv().ok()).any(|told| told == Noticed::Lost), "and again");
    }

    #[test]
    fn a_write_to_a_parked_database_is_noticed_and_one_to_another_is_not() {
        let (watcher, mut noticed, folder) = watcher();
        let paths = ["a.db", "b.db"].map(|name| folder.path().join(name));
        for (id, path) in (0..).zip(&paths) {
            std::fs::write(path, b"content").unwrap();
            watcher.park(id, path, mark(path).unwrap());
        }
        std::fs::write(folder.path().join("c.db"), b"other").unwrap();
        std::fs::write(folder.path().join("b.db-wal"), b"frames").unwrap();
        assert_eq!(next(&mut noticed), Noticed::Changed(1));
        assert_eq!(watcher.count(), 1);
        std::fs::remove_file(&paths[0]).unwrap();
        assert_eq!(next(&mut noticed), Noticed::Changed(0));
        assert!(noticed.try_recv().is_err() && watcher.shared.lock().watches.is_empty(), "no watch is left");
    }

    #[test]
    fn what_was_written_before_the_watch_was_armed_is_noticed() {
        let (watcher, mut noticed, folder) = watcher();
        let path = folder.path().join("a.db");
        std::fs::write(&path, b"before").unwrap();
        let before = mark(&path).unwrap();
        std::fs::write(&path, b"after!!").unwrap();
        watcher.park(7, &path, before);
        assert_eq!(next(&mut noticed), Noticed::Changed(7));
    }

    #[test]
    fn without_events_a_look_notices() {
        let (watcher, mut noticed, folder) = watcher();
        watcher.shared.lock().inotify = None;
        let path = folder.path().join("a.db");
        std::fs::write(&path, b"content").unwrap();
        watcher.park(3, &path, mark(&path).unwrap());
        std::fs::write(&path, b"other content").unwrap();
        assert_eq!(next(&mut noticed), Noticed::Changed(3));
    }

    /// Without a watch a folder is to be searched again and again; and once inotify can be had, it is watched.
    #[test]
    fn a_searched_folder_without_a_watch_is_to_be_searched_in_turn() {
        let (watcher, mut noticed, folder) = watcher();
        watcher.shared.lock().inotify = None;
        assert!(!watcher.search(folder.path()));
        for _ in 0..2 {
            assert_eq!(next(&mut noticed), Noticed::Lost);
        }
        watcher.shared.lock().asked -= INOTIFY_AGAIN;
        assert_eq!(next(&mut noticed), Noticed::Lost);
        let path = folder.path().join("new.db");
        std::fs::write(&path, b"").unwrap();
        let told = std::iter::repeat_with(|| next(&mut noticed)).find(|told| *told != Noticed::Lost);
        assert_eq!(told, Some(Noticed::Name(path)));
    }

    #[test]
    fn names_in_a_searched_folder_are_told() {
        let (watcher, mut noticed, folder) = watcher();
        assert!(watcher.search(folder.path()));
        std::fs::write(folder.path().join("new.db-wal"), b"").unwrap();
        let path = folder.path().join("new.db");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(next(&mut noticed), Noticed::Name(path));
        watcher.end_search(folder.path());
        assert!(watcher.shared.lock().watches.is_empty());
    }
}
