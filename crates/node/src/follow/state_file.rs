//! The state beside a followed file, and other small files (docs/spec/follow.md).
//!
//! Invariants of the state, whenever the process ends:
//! 1. There is a record that is whole: the next one is written in the place of the older one, and the first one comes with its file.
//! 2. The file is at an end of the record that counts: it is written before the file is changed. In rollback mode it is on the disk before that; in WAL mode a power
//!    cut may take it, which the start of the system in it tells.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rhyolite_format::Lineage;
use rhyolite_format::follow::{FollowEnd, FollowState, PLACES};

use super::apply::state_path;
use crate::restore::RestoreError;
use crate::restore::draft::{beside, sync_folder_of};

/// Writes the state of one file.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    open: Option<Open>,
}

/// A file whose records are known.
#[derive(Debug)]
struct Open {
    file: File,
    /// The record that was written last, by its place.
    place: usize,
    turn: u64,
}

impl StateFile {
    /// The state of the database at this path. What is there is replaced when something is written.
    pub(super) fn of(database: &Path) -> Self {
        Self { path: state_path(database), open: None }
    }

    /// Notes between which two ends the file is from here on; `synced`: on the disk, too.
    pub(super) fn write(
        &mut self,
        lineage: Lineage,
        boot_id: [u8; 16],
        (before, after): (FollowEnd, FollowEnd),
        synced: bool,
    ) -> Result<(), RestoreError> {
        let state = |turn| FollowState { lineage, boot_id, before, after, turn }.encode();
        let failed = |e| RestoreError::io("write", &self.path, e);
        if let Some(mut open) = self.open.take().filter(|open| open.is_at(&self.path)) {
            (open.place, open.turn) = (1 - open.place, open.turn + 1);
            open.file.write_all_at(&state(open.turn), PLACES[open.place]).map_err(failed)?;
            if synced {
                open.file.sync_data().map_err(failed)?;
            }
            self.open = Some(open);
            return Ok(());
        }
        replace(&self.path, &state(0), synced)?;
        let file = OpenOptions::new().write(true).open(&self.path).map_err(failed)?;
        self.open = Some(Open { file, place: 0, turn: 0 });
        Ok(())
    }
}

impl Open {
    /// Whether the path still names this file: whoever has removed it gets another.
    fn is_at(&self, path: &Path) -> bool {
        let id = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let named = id(std::fs::metadata(path));
        named.is_some() && named == id(self.file.metadata())
    }
}

/// Replaces a small file as a whole.
pub(super) fn replace(path: &Path, bytes: &[u8], synced: bool) -> Result<(), RestoreError> {
    let draft = beside(path, ".new");
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        if synced {
            file.sync_all()?;
        }
        std::fs::rename(&draft, path)
    };
    write().map_err(|e| RestoreError::io("write", path, e))?;
    if synced { sync_folder_of(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::follow::PageOneFields;
    use rhyolite_format::{Checksum, PageCount, PageSize, Pos, Txid};

    use super::*;

    fn end(txid: u64) -> FollowEnd {
        let pos = Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid) };
        FollowEnd { pos, page_size: PageSize::MIN, commit: PageCount(1), page_one: PageOneFields::default() }
    }

    #[test]
    fn the_last_record_counts_wherever_the_one_after_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let mut state = StateFile::of(&database);
        let write = |state: &mut StateFile, txid| {
            state.write(Lineage([1; 16]), [2; 16], (end(txid), end(txid + 1)), txid % 2 == 0)
        };
        let read =
            || FollowState::decode(&std::fs::read(state_path(&database)).unwrap()).unwrap().before.pos.txid.get();
        let inode = || std::fs::metadata(state_path(&database)).unwrap().ino();
        write(&mut state, 1).unwrap();
        let first = inode();
        for txid in 2..6 {
            let before = std::fs::read(state_path(&database)).unwrap();
            write(&mut state, txid).unwrap();
            assert_eq!((read(), inode()), (txid, first));
            let after = std::fs::read(state_path(&database)).unwrap();
            for cut in 0..after.len() {
                let torn = [&after[..cut], before.get(cut..).unwrap_or_default()].concat();
                let found = FollowState::decode(&torn).unwrap().before.pos.txid.get();
                assert!(found == txid || found == txid - 1, "{found} at {cut}");
            }
        }
        std::fs::remove_file(state_path(&database)).unwrap();
        write(&mut state, 6).unwrap();
        assert_eq!(read(), 6, "there is one again");
        std::fs::rename(state_path(&database), folder.path().join("elsewhere")).unwrap();
        write(&mut state, 7).unwrap();
        assert_eq!(read(), 7);
        let mut other = StateFile::of(&database);
        write(&mut other, 8).unwrap();
        write(&mut state, 9).unwrap();
        assert_eq!(read(), 9, "whoever was replaced writes to no other file");
    }
}
