//! Lost branches: states of a database that the history has gone on without (docs/spec/lost.md). They are kept beside the database until
//! somebody removes them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rhyolite_format::follow::{FollowEnd, PageOneFields};
use rhyolite_format::lost::LostBranch;

use crate::restore::RestoreError;
use crate::restore::draft::sync_folder_of;

/// Folder in a state folder.
const FOLDER: &str = "lost";
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A branch that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The copy of the database.
    pub path: PathBuf,
    /// What is known of it.
    pub branch: LostBranch,
}

/// The branches in a state folder, oldest first, and what could not be read.
///
/// # Errors
/// The folder cannot be read.
pub fn list(meta_path: &Path) -> io::Result<(Vec<Kept>, Vec<String>)> {
    let (mut kept, mut problems) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(meta_path.join(FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((kept, problems)),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let record = entry?.path();
        if record.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match fs::read(&record)
            .map_err(|e| e.to_string())
            .and_then(|b| LostBranch::decode(&b).map_err(|e| e.to_string()))
        {
            Ok(branch) => kept.push(Kept { path: record.with_extension("db"), branch }),
            Err(error) => problems.push(format!("{}: {error}", record.display())),
        }
    }
    kept.sort_by(|a, b| (a.branch.time, &a.path).cmp(&(b.branch.time, &b.path)));
    Ok((kept, problems))
}

/// Keeps a copy of an open file, whose first page gets other fields where they are given, and gives where it is. The same state is kept once. When
/// this returns, it is on the disk.
pub(super) fn keep(
    meta_path: &Path,
    file: &File,
    page_one: Option<(&FollowEnd, &PageOneFields)>,
    branch: &LostBranch,
) -> Result<PathBuf, RestoreError> {
    let path = place(meta_path, branch);
    let record = path.with_extension("json");
    if record.exists() && path.exists() {
        return Ok(path);
    }
    let failed = |e| RestoreError::io("keep the lost branch", &path, e);
    fs::create_dir_all(meta_path.join(FOLDER)).map_err(failed)?;
    let new = path.with_extension("new");
    let copy = || -> io::Result<()> {
        let copy = File::options().read(true).write(true).create(true).truncate(true).open(&new)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < branch.size {
            let len = usize::try_from(branch.size - offset).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            file.read_exact_at(&mut buffer[..len], offset)?;
            copy.write_all_at(&buffer[..len], offset)?;
            offset += len as u64;
        }
        if let Some((end, fields)) = page_one.filter(|(end, _)| end.commit.get() > 0) {
            let mut page = vec![0; end.page_size.bytes()];
            copy.read_exact_at(&mut page, 0)?;
            fields.put(&mut page);
            copy.write_all_at(&page, 0)?;
        }
        copy.sync_all()?;
        fs::rename(&new, &path)
    };
    copy().map_err(failed)?;
    write_record(&record, branch)?;
    sync_folder_of(&meta_path.join(FOLDER))?;
    Ok(path)
}

/// Moves a file that is no database there.
pub(super) fn move_away(meta_path: &Path, from: &Path, branch: &LostBranch) -> Result<PathBuf, RestoreError> {
    let mut path = place(meta_path, branch);
    let failed = |e| RestoreError::io("keep the lost branch", &path, e);
    fs::create_dir_all(meta_path.join(FOLDER)).map_err(failed)?;
    for number in 2.. {
        if !path.exists() {
            break;
        }
        path = place(meta_path, branch).with_extension(format!("{number}.db"));
    }
    rename_or_copy(from, &path).map_err(|e| RestoreError::io("keep the lost branch", &path, e))?;
    write_record(&path.with_extension("json"), branch)?;
    sync_folder_of(from)?;
    Ok(path)
}

/// From a mount to the folder behind it a file cannot be renamed: then it goes when its copy is on the disk.
fn rename_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        renamed => return renamed,
    }
    let new = to.with_extension("db-new");
    let mut source = File::open(from)?;
    let mut copy = File::create(&new)?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()?;
    fs::rename(&new, to)?;
    File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    fs::remove_file(from)
}

fn place(meta_path: &Path, branch: &LostBranch) -> PathBuf {
    let (txid, checksum) = (branch.txid.map_or(0, |t| t.get()), branch.checksum.map_or(0, |c| c.get()));
    meta_path.join(FOLDER).join(format!("{txid:016x}-{checksum:016x}.db"))
}

fn write_record(path: &Path, branch: &LostBranch) -> Result<(), RestoreError> {
    let new = path.with_extension("json-new");
    let write = || -> io::Result<()> {
        fs::write(&new, branch.encode())?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|e| RestoreError::io("write", path, e))?;
    sync_folder_of(path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_of_another_file_system_is_copied_before_it_goes() {
        let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (from, to) = (memory.path().join("app.db"), folder.path().join("kept.db"));
        std::fs::write(&from, b"what there was").unwrap();
        super::rename_or_copy(&from, &to).unwrap();
        assert!(!from.exists() && std::fs::read(&to).unwrap() == b"what there was");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    use rhyolite_format::{Checksum, Format1, PageCount, PageSize, Pos, Timestamp, Txid};

    use super::*;

    #[test]
    fn a_state_is_kept_once_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, b"content").unwrap();
        let file = File::open(&source).unwrap();
        let branch = LostBranch {
            format: Format1,
            time: Timestamp(5),
            reason: "test".to_owned(),
            lineage: None,
            txid: Txid::new(7),
            epoch: None,
            checksum: Some(Checksum::from_crc(3)),
            size: 7,
        };
        let path = keep(folder.path(), &file, None, &branch).unwrap();
        assert_eq!(
            keep(folder.path(), &file, None, &LostBranch { time: Timestamp(9), ..branch.clone() }).unwrap(),
            path
        );
        assert_eq!(list(folder.path()).unwrap(), (vec![Kept { path: path.clone(), branch: branch.clone() }], vec![]));
        assert_eq!(fs::read(&path).unwrap(), b"content");
        let other =
            move_away(folder.path(), &source, &LostBranch { checksum: None, time: Timestamp(6), ..branch }).unwrap();
        assert_ne!(other, path);
        assert_eq!(list(folder.path()).unwrap().0.len(), 2);
        assert!(!source.exists());
        assert_eq!(list(&folder.path().join("nothing")).unwrap(), (vec![], vec![]));
    }

    #[test]
    fn the_copy_of_a_followed_file_has_the_first_page_of_the_history() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let page_size = PageSize::new(1024).unwrap();
        let content: Vec<u8> = (0..2048).map(|n| n as u8).collect();
        fs::write(&source, &content).unwrap();
        let page_one = PageOneFields { versions: [2, 2], change_counter: 77, version_valid_for: 77, written_by: 3 };
        let pos = Pos { txid: Txid::new(7).unwrap(), checksum: Checksum::from_crc(3) };
        let end = FollowEnd { pos, page_size, commit: PageCount(2), page_one };
        let branch = LostBranch {
            format: Format1,
            time: Timestamp(5),
            reason: "test".to_owned(),
            lineage: None,
            txid: Txid::new(7),
            epoch: None,
            checksum: Some(Checksum::from_crc(3)),
            size: 2048,
        };
        let file = File::open(&source).unwrap();
        let path = keep(folder.path(), &file, Some((&end, &page_one)), &branch).unwrap();
        let mut expected = content;
        page_one.put(&mut expected);
        assert_eq!(fs::read(&path).unwrap(), expected);
    }
}
