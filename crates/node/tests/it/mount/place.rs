//! The folder over which something is mounted.

use std::fs;
use std::path::Path;

use rustix::fs::statfs;

use super::Mount;
use crate::program::Folder;

/// What statfs(2) says of FUSE.
const FUSE_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Whether somebody answers there. A dead mount does not; of the folder itself the kernel may still know enough. Of another user's mount it tells
/// anybody that it is there, dead or not, so that user asks.
pub(super) fn is_mounted(folder: &Folder) -> bool {
    if folder.is_of_user() {
        let mut ask = folder.command_of(Path::new("/usr/bin/stat"));
        let answer = ask.args(["-f", "-c", "%t", "db"]).output().unwrap();
        return answer.status.success() && answer.stdout == format!("{FUSE_MAGIC:x}\n").as_bytes();
    }
    statfs(folder.path("db")).is_ok_and(|there| there.f_type == FUSE_MAGIC)
}

/// An application that was started while nothing was mounted has made a database of its own there: it would go on with that one and the WAL of the
/// real one.
#[test]
fn a_folder_in_which_something_lies_is_not_mounted_over() {
    let Some(mut mount) = Mount::new() else { return };
    drop(mount.open("app.db", "wal"));
    mount.stop();
    let stray = mount.path("app.db");
    fs::write(&stray, b"").unwrap();
    let refused = mount.start(&[]).unwrap_err();
    assert!(refused.contains("db: the folder is not empty") && refused.contains("app.db"), "{refused}");
    assert!(!is_mounted(&mount.folder));
    fs::remove_file(&stray).unwrap();
    mount.start(&[]).unwrap();
    mount.wait_captured("app.db");
    mount.stop();
}
