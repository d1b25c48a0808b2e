//! The positions that followed files have passed ([`rhyolite_logic::trail`]), of all databases of a process.
//!
//! Each lies in a file beside the database as well (docs/spec/follow.md), so that a process which starts knows what the one before it knew, unless the system has started
//! anew since. A file that is ahead of the store and has no trail counts as a branch.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rhyolite_format::Pos;
use rhyolite_format::trail::{POS_SIZE, decode, encode_header, encode_pos};
use rhyolite_logic::trail::Trail;
use rhyolite_logic::witness::Passed;

use crate::capture::restart::boot_id;
use crate::restore::draft::beside;

/// A file that has become larger begins anew with its later half, in bytes: some millions of commits.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Says of a trail that each of its positions was on the disk before the file came there.
const SYNCED: [u8; 16] = [0; 16];

/// The trails of all databases, by name.
#[derive(Debug, Default)]
pub struct Trails {
    passed: Mutex<HashMap<String, Kept>>,
    proved: Mutex<HashSet<String>>,
    /// What is written is on the disk before it is relied on, so that it counts after a power cut, too.
    syncs: bool,
}

/// One trail.
#[derive(Debug, Default)]
struct Kept {
    trail: Trail,
    file: Option<TrailFile>,
}

#[derive(Debug)]
struct TrailFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    last: Option<Pos>,
    syncs: bool,
}

impl Trails {
    /// Trails that outlive a power cut, or only the process.
    pub fn new(syncs: bool) -> Self {
        Self { syncs, ..Self::default() }
    }

    /// The file of a database at `path` is at `at`. What lies beside it is read, if its trail leads there, and goes on from there; otherwise it begins there.
    pub fn open(&self, name: &str, path: &Path, at: Pos) {
        let path = trail_path(path);
        let mut all = self.lock();
        let kept = all.entry(name.to_owned()).or_default();
        if kept.trail.last() == Some(at) && kept.file.as_ref().is_some_and(|file| file.last == Some(at)) {
            return;
        }
        let mut passed = read(&path);
        match passed.iter().rposition(|pos| *pos == at) {
            Some(index) => passed.truncate(index + 1),
            None if kept.trail.has(at) => passed = kept.trail.until(at),
            None => passed = vec![at],
        }
        kept.trail = Trail::default();
        kept.trail.note(passed.iter().copied());
        kept.file = report(&path, TrailFile::begin(&path, &passed, self.syncs));
    }

    /// The file will come through these positions, the first of which is where it is, or stay there: to be called before that, as nothing tells afterwards
    /// where a process was that has ended.
    pub fn intend(&self, name: &str, passed: &[Pos]) {
        let (mut all, Some(here)) = (self.lock(), passed.first()) else { return };
        let Some(kept) = all.get_mut(name) else { return };
        let Some(file) = kept.file.take() else { return };
        let path = file.path.clone();
        kept.file = report(
            &path,
            file.append(passed, || match kept.trail.until(*here) {
                known if known.is_empty() => vec![*here],
                known => known,
            }),
        );
    }

    /// The file has come through these positions, in this order, to the last of them.
    pub fn note(&self, name: &str, passed: impl IntoIterator<Item = Pos>) {
        self.lock().entry(name.to_owned()).or_default().trail.note(passed);
    }

    /// The file at `path` will be made the last of these positions in one step, without coming from where it is: to be called before that.
    pub fn intend_instead(&self, name: &str, path: &Path, way: &[Pos]) {
        let path = trail_path(path);
        let mut all = self.lock();
        let kept = all.entry(name.to_owned()).or_default();
        kept.file = report(&path, TrailFile::begin(&path, way, self.syncs));
    }

    /// It was made so.
    pub fn became(&self, name: &str, way: &[Pos]) {
        let mut all = self.lock();
        let kept = all.entry(name.to_owned()).or_default();
        kept.trail = Trail::default();
        kept.trail.note(way.iter().copied());
    }

    /// Another node shows that the way from `end` leads to `known`, where the file of a database is or has been.
    pub fn come_through(&self, name: &str, end: Pos, known: Pos) {
        let mut all = self.lock();
        let Some(kept) = all.get_mut(name).filter(|kept| kept.trail.has(known) && !kept.trail.has(end)) else { return };
        kept.trail.come_through(end, known);
        if let (Some(file), Some(last)) = (kept.file.take(), kept.trail.last()) {
            kept.file = report(&file.path, TrailFile::begin(&file.path, &kept.trail.until(last), self.syncs));
        }
    }

    /// The file was made another: where it has come from is not remembered, but by the file beside it if that leads there.
    pub fn forget(&self, name: &str) {
        self.proved().remove(name);
        self.lock().remove(name);
    }

    /// The node that is followed has gone on from where the file is: its position is one of the history that this node has.
    pub fn prove(&self, name: &str) {
        let mut proved = self.proved();
        if !proved.contains(name) {
            proved.insert(name.to_owned());
        }
    }

    /// Another node is followed from here on: nobody knows yet whose history the files are.
    pub fn doubt_all(&self) {
        self.proved().clear();
    }

    /// Nobody says any more that a file is of the history that the primary has.
    pub fn doubt(&self, name: &str) {
        self.proved().remove(name);
    }

    /// Whether the position of a file is known to be one of the history that the followed node has.
    pub fn is_proved(&self, name: &str) -> bool {
        self.proved().contains(name)
    }

    fn proved(&self) -> MutexGuard<'_, HashSet<String>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the trail of a database lies in a file. Where it does not, nobody can be shown how the database has come to where it is once the process has ended.
    pub fn is_kept(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|kept| kept.file.is_some())
    }

    /// Whether the file of a database at `path`, which is at `at`, has been at `pos`. That may be longer ago than what is remembered.
    pub fn has_passed(&self, name: &str, (path, at): (&Path, Pos), pos: Pos) -> bool {
        self.has(name, pos) || way(path, at, pos) == Passed::End
    }

    /// Whether the file has been there, as far as is remembered.
    pub fn has(&self, name: &str, pos: Pos) -> bool {
        self.lock().get(name).is_some_and(|kept| kept.trail.has(pos))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the file of a database has come to `at`, seen from `end`, by what lies beside it: nothing is known when that does not lead there.
pub(crate) fn way(path: &Path, at: Pos, end: Pos) -> Passed {
    let mut passed = read(&trail_path(path));
    passed.truncate(passed.iter().rposition(|pos| *pos == at).map_or(0, |index| index + 1));
    match passed.iter().rfind(|pos| pos.txid == end.txid) {
        Some(pos) if *pos == end => Passed::End,
        Some(_) if !passed.contains(&end) => Passed::Elsewhere,
        Some(_) => Passed::End,
        None => Passed::Unknown,
    }
}

fn trail_path(path: &Path) -> PathBuf {
    beside(path, "-rhyolite-trail")
}

/// What a trail says of this start of the system; nothing when it cannot be read.
fn read(path: &Path) -> Vec<Pos> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("{}: {}", path.display(), crate::config::io_text(&error));
            return Vec::new();
        }
    };
    match decode(&bytes) {
        Ok((boot, passed)) if boot == SYNCED || boot == boot_id() => passed,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!("{}: {error}", path.display());
            Vec::new()
        }
    }
}

/// Without its file a trail lives as long as the process.
fn report(path: &Path, file: io::Result<TrailFile>) -> Option<TrailFile> {
    file.map_err(|error| tracing::warn!("{}: {}", path.display(), crate::config::io_text(&error))).ok()
}

impl TrailFile {
    /// A file with these positions, in place of any other.
    fn begin(path: &Path, passed: &[Pos], syncs: bool) -> io::Result<Self> {
        let boot = if syncs { SYNCED } else { boot_id() };
        if !syncs && boot == SYNCED {
            return Err(io::Error::other("nobody can tell when the system starts anew: the trail is not kept"));
        }
        let draft = beside(path, ".new");
        let mut file = File::create(&draft)?;
        let mut bytes = encode_header(boot).to_vec();
        passed.iter().for_each(|pos| bytes.extend(encode_pos(*pos)));
        file.write_all(&bytes)?;
        if syncs {
            file.sync_all()?;
        }
        std::fs::rename(&draft, path)?;
        if syncs {
            File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
                .sync_all()?;
        }
        Ok(Self { file, path: path.to_owned(), bytes: bytes.len() as u64, last: passed.last().copied(), syncs })
    }

    /// Goes on with these positions. `known`: how the file has come to the first of them, for a trail that ends elsewhere, because it was meant to lead on another way
    /// that was not taken.
    fn append(mut self, passed: &[Pos], known: impl FnOnce() -> Vec<Pos>) -> io::Result<Self> {
        if self.last != passed.first().copied() {
            self = Self::begin(&self.path, &known(), self.syncs)?;
        } else if self.bytes > FILE_BYTES_MAX {
            let all = read(&self.path);
            self = Self::begin(&self.path, &all[all.len() / 2..], self.syncs)?;
        }
        let mut bytes = Vec::with_capacity(passed.len() * POS_SIZE);
        passed.iter().skip(1).for_each(|pos| bytes.extend(encode_pos(*pos)));
        self.bytes += bytes.len() as u64;
        self.last = passed.last().copied();
        self.file.write_all(&bytes)?;
        if self.syncs {
            self.file.sync_data()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Checksum, Txid};

    use super::*;

    fn leads(path: &Path, passed: Pos, at: Pos) -> bool {
        way(path, at, passed) == Passed::End
    }

    fn pos(n: u64) -> Pos {
        Pos { txid: Txid::new(n).unwrap(), checksum: Checksum::from_crc(n) }
    }

    #[test]
    fn what_was_passed_is_known_until_the_file_is_another() {
        let trails = Trails::default();
        trails.note("a", [pos(1), pos(2)]);
        trails.note("a", [pos(2), pos(3)]);
        assert!(
            trails.has("a", pos(1)) && trails.has("a", pos(3)) && !trails.has("a", pos(4)) && !trails.has("b", pos(1))
        );
        assert!(!trails.has("a", Pos { checksum: Checksum::from_crc(9), ..pos(2) }));
        trails.prove("a");
        assert!(trails.is_proved("a") && !trails.is_proved("b"));
        trails.doubt_all();
        assert!(!trails.is_proved("a") && trails.has("a", pos(1)));
        trails.prove("a");
        trails.forget("a");
        assert!(!trails.is_proved("a"));
        assert!(!trails.has("a", pos(1)));
    }

    #[test]
    fn another_process_knows_what_was_passed_if_the_file_is_where_the_trail_leads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let before = Trails::default();
        before.open("a", &path, pos(3));
        before.intend("a", &[pos(3), pos(4), pos(5)]);
        before.note("a", [pos(4), pos(5)]);
        before.intend("a", &[pos(5), pos(6)]);
        // It ended there: nobody knows whether the last batch was applied.
        for at in [5, 6] {
            let after = Trails::default();
            std::fs::copy(trail_path(&path), folder.path().join("copy.db-rhyolite-trail")).unwrap();
            after.open("a", &folder.path().join("copy.db"), pos(at));
            assert!([3, 4, 5].iter().all(|n| after.has("a", pos(*n))) && !after.has("a", pos(7)));
            assert_eq!(after.has("a", pos(6)), at == 6);
        }
        assert!(leads(&path, pos(4), pos(6)) && !leads(&path, pos(6), pos(4)) && !leads(&path, pos(4), pos(7)));
        let other = Trails::default();
        other.open("a", &path, pos(9));
        assert!(!other.has("a", pos(5)) && other.has("a", pos(9)), "the file has come from elsewhere");
        assert!(!leads(&path, pos(4), pos(6)), "and the trail has begun anew");
    }

    #[test]
    fn a_way_that_was_not_taken_is_not_part_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let trails = Trails::default();
        trails.open("a", &path, pos(3));
        trails.intend("a", &[pos(3), pos(4), pos(5)]);
        // Readers did not let it. The next primary has not got these commits.
        let other = Pos { checksum: Checksum::from_crc(44), ..pos(4) };
        trails.intend("a", &[pos(3), other]);
        assert!(leads(&path, pos(3), other) && !leads(&path, pos(4), other));
        assert_eq!((way(&path, other, pos(4)), way(&path, other, pos(2))), (Passed::Elsewhere, Passed::Unknown));
        trails.note("a", [other]);
        // The store was read, which is not intended before.
        trails.note("a", [pos(7)]);
        trails.intend("a", &[pos(7), pos(8)]);
        assert!(leads(&path, pos(3), pos(8)) && leads(&path, other, pos(8)) && !leads(&path, pos(4), pos(8)));
    }

    #[test]
    fn a_file_that_is_made_another_in_one_step_has_come_from_where_that_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let trails = Trails::default();
        trails.open("a", &path, pos(7));
        trails.intend("a", &[pos(7), pos(8)]);
        trails.note("a", [pos(8)]);
        trails.intend_instead("a", &path, &[pos(3), pos(9)]);
        // It may end here: nothing is shown that was not before.
        assert!(!leads(&path, pos(3), pos(8)) && leads(&path, pos(3), pos(9)));
        // Readers did not let it.
        trails.open("a", &path, pos(8));
        assert!(leads(&path, pos(7), pos(8)) && !leads(&path, pos(3), pos(9)));
        trails.intend_instead("a", &path, &[pos(3), pos(9)]);
        trails.became("a", &[pos(3), pos(9)]);
        assert!(trails.has("a", pos(3)) && !trails.has("a", pos(8)) && !leads(&path, pos(8), pos(9)));
        trails.intend("a", &[pos(9), pos(10)]);
        assert!(leads(&path, pos(3), pos(10)));
    }

    #[test]
    fn what_another_node_shows_of_a_position_goes_for_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let trails = Trails::default();
        trails.open("a", &path, pos(7));
        trails.intend("a", &[pos(7), pos(8)]);
        trails.note("a", [pos(8)]);
        trails.come_through("a", pos(3), pos(9));
        assert!(!trails.has("a", pos(3)), "it was never there");
        trails.come_through("a", pos(3), pos(7));
        assert!(trails.has("a", pos(3)) && leads(&path, pos(3), pos(8)));
        trails.intend("a", &[pos(8), pos(9)]);
        assert!(leads(&path, pos(3), pos(9)) && leads(&path, pos(7), pos(9)));
    }

    #[test]
    fn a_trail_of_another_start_of_the_system_or_a_damaged_one_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        for header in [encode_header([1; 16]).to_vec(), b"no header".to_vec()] {
            let bytes = [&header[..], &encode_pos(pos(1)), &encode_pos(pos(2))].concat();
            std::fs::write(trail_path(&path), bytes).unwrap();
            let trails = Trails::default();
            trails.open("a", &path, pos(2));
            assert!(trails.has("a", pos(2)) && !trails.has("a", pos(1)));
        }
    }

    #[test]
    fn a_trail_that_is_synced_counts_whenever_the_system_was_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let trails = Trails::new(true);
        trails.open("a", &path, pos(1));
        trails.intend("a", &[pos(1), pos(2)]);
        assert!(trails.is_kept("a") && leads(&path, pos(1), pos(2)));
        let bytes = std::fs::read(trail_path(&path)).unwrap();
        assert_eq!(decode(&bytes), Ok((SYNCED, vec![pos(1), pos(2)])));
        // Where it cannot be written nothing is kept from then on.
        std::fs::remove_dir_all(folder.path()).unwrap();
        trails.intend("a", &[pos(9), pos(10)]);
        assert!(!trails.is_kept("a"));
    }

    #[test]
    fn a_long_trail_keeps_its_later_half() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let trails = Trails::default();
        trails.open("a", &path, pos(1));
        let count = FILE_BYTES_MAX / POS_SIZE as u64 + 10;
        trails.intend("a", &(1..count).map(pos).collect::<Vec<_>>());
        trails.intend("a", &[pos(count - 1), pos(count)]);
        let len = std::fs::metadata(trail_path(&path)).unwrap().len();
        assert!((FILE_BYTES_MAX / 2 - 100..FILE_BYTES_MAX / 2 + 200).contains(&len), "{len}");
        assert!(leads(&path, pos(count - 3), pos(count)) && !leads(&path, pos(2), pos(count)));
    }
}
