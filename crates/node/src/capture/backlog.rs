//! The backlog: commits that wait to be recorded lie in a file as well, for the case that the process is killed before (docs/spec/state.md).
//!
//! Two threads write to the file, each through a descriptor of its own: whoever sees a commit appends it ([`Keeper`]), and capture begins the
//! file anew when nothing waits ([`Backlog`]), and marks what it is about to record. Both do so under the lock of the line, and what the
//! page cache has outlives the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rhyolite_format::state::backlog::{self, BacklogEntry, BacklogHeader, HEADER_SIZE};
use rhyolite_format::{Lineage, Pos};

use super::commits::{Commit, WriteMark};

/// Name of the file in the state folder.
pub(super) const BACKLOG_FILE: &str = "backlog";
/// The file never gets larger: what does not fit is found by comparing all pages after a kill.
const BYTES_MAX: u64 = 64 << 20;
/// A file that has become larger is cut when nothing waits.
const BYTES_KEPT: u64 = 4 << 20;

/// Capture's side of the file.
#[derive(Debug)]
pub(super) struct Backlog {
    path: PathBuf,
    file: File,
    lineage: Lineage,
    boot_id: [u8; 16],
    generation: u64,
}

impl Backlog {
    /// Opens the file of a state folder. What it holds is of no use any more.
    pub(super) fn open(meta_path: &Path, lineage: Lineage, boot_id: [u8; 16]) -> io::Result<Self> {
        let path = meta_path.join(BACKLOG_FILE);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut start = [0; HEADER_SIZE];
        let there = file.read_exact_at(&mut start, 0).ok().and_then(|()| BacklogHeader::decode(&start).ok());
        // Without a header nobody knows which generations lie in the file.
        if there.is_none() {
            file.set_len(0)?;
        }
        Ok(Self { path, file, lineage, boot_id, generation: there.map_or(0, |header| header.generation) })
    }

    /// Begins the file anew: what comes next leads on from `base`.
    pub(super) fn begin(&mut self, base: Pos) -> io::Result<Room> {
        self.generation += 1;
        let header = BacklogHeader { lineage: self.lineage, boot_id: self.boot_id, generation: self.generation, base };
        self.file.write_all_at(&header.encode(), 0)?;
        if self.file.metadata()?.len() > BYTES_KEPT {
            self.file.set_len(HEADER_SIZE as u64)?;
        }
        Ok(Room { path: self.path.clone(), generation: self.generation, base, end: HEADER_SIZE as u64 })
    }

    /// Says that the commit at `offset` is about to be recorded at `pos`.
    pub(super) fn mark(&self, offset: u64, pos: Pos) -> io::Result<()> {
        self.file.write_all_at(&backlog::encode_mark(pos), offset)
    }
}

/// Where the next commit goes.
#[derive(Debug)]
pub(super) struct Room {
    path: PathBuf,
    generation: u64,
    base: Pos,
    end: u64,
}

impl Room {
    /// Nothing is kept, and what comes leads on from `pos`.
    pub(super) fn is_empty_at(&self, pos: Pos) -> bool {
        self.base == pos && self.end == HEADER_SIZE as u64
    }
}

/// The side of whoever sees commits. It is used and dropped by threads that share one table of descriptors.
#[derive(Debug, Default)]
pub struct Keeper {
    /// The file, and for which listener it was opened.
    open: Option<(u64, File)>,
}

impl Keeper {
    /// Appends a commit, and says where it lies. On an error nothing more may be appended: what follows would follow a gap.
    pub(super) fn keep(&mut self, listener: u64, room: &mut Room, commit: &Commit) -> io::Result<u64> {
        let offset = room.end;
        if offset + commit.bytes() as u64 > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too much waits to be recorded"));
        }
        let file = match &mut self.open {
            Some((of, file)) if *of == listener => file,
            open => &mut open.insert((listener, OpenOptions::new().write(true).open(&room.path)?)).1,
        };
        let entry = BacklogEntry {
            recorded: None,
            timestamp: commit.time,
            page_size: commit.page_size,
            commit: commit.page_count,
            pages: commit.pages.iter().map(|(number, data)| (*number, &**data)).collect(),
        };
        let bytes = entry.encode(room.generation, offset);
        file.write_all_at(&bytes, offset)?;
        room.end += bytes.len() as u64;
        Ok(offset)
    }
}

/// What the process before has seen and not recorded, in order. `end` is the end of the log.
pub(super) fn left_behind(meta_path: &Path, lineage: Lineage, boot_id: [u8; 16], end: Pos) -> io::Result<Vec<Commit>> {
    let bytes = match std::fs::read(meta_path.join(BACKLOG_FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let header = match BacklogHeader::decode(&bytes) {
        Ok(header) if header.lineage == lineage && header.boot_id == boot_id && boot_id != [0; 16] => header,
        _ => return Ok(Vec::new()),
    };
    let commit = |entry: BacklogEntry<'_>| Commit {
        page_size: entry.page_size,
        page_count: entry.commit,
        // What the file looks like by now is seen when all pages are compared.
        mark: WriteMark { change_counter: 0, bytes: 0, written: None },
        time: entry.timestamp,
        pages: entry.pages.into_iter().map(|(number, data)| (number, data.into())).collect(),
    };
    Ok(backlog::after(&header, &bytes, end).unwrap_or_default().into_iter().map(commit).collect())
}
