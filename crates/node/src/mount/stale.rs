//! A mount that another process has left where we are to mount.
//!
//! A process that dies closes its mount: whoever uses it then gets ENOTCONN, and the mount is taken away. One kind of death does not end by
//! itself: a thread of the dying process waits for an answer that only a thread of the same process could give. Such a mount
//! answers nobody; its connection is aborted, which lets the process go.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

/// A mount that has not answered after this time is served by nobody.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// The kernel's list of this process's mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// How a mount behaves when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// Somebody serves it.
    Served,
    /// Its process is gone.
    Dead,
    /// Its process does not answer.
    Silent,
}

/// Takes away a mount of ours at `at` that nobody serves.
///
/// # Errors
/// One line: somebody does serve it, or it cannot be taken away.
pub(super) fn clear(at: &Path) -> Result<(), String> {
    let Some(connection) = resolved(at).and_then(|at| connection(&std::fs::read(MOUNTS).ok()?, &at)) else {
        return Ok(());
    };
    match health(at) {
        Health::Served => return Err(format!("{}: another process has mounted here", at.display())),
        Health::Dead => tracing::warn!("{}: taking away the mount of a process that has died", at.display()),
        Health::Silent => {
            tracing::warn!("{}: taking away a mount whose process does not answer", at.display());
            abort(connection, at);
        }
    }
    detach(at).map_err(|e| format!("{}: take away a dead mount: {}", at.display(), crate::config::io_text(&e)))
}

/// The path without symbolic links. Nothing is asked of the folder itself: it may not answer.
fn resolved(at: &Path) -> Option<PathBuf> {
    let at = std::path::absolute(at).ok()?;
    Some(at.parent()?.canonicalize().ok()?.join(at.file_name()?))
}

/// Number of the connection that serves our mount at `at`: the minor number of its device. The last mount lies above the others.
fn connection(mounts: &[u8], at: &Path) -> Option<u32> {
    mounts.split(|byte| *byte == b'\n').filter_map(|line| ours(line, at)).next_back()
}

/// Reads one line of the list: `36 35 0:44 / /mnt rw,nosuid shared:1 - fuse rhyolite rw`.
fn ours(line: &[u8], at: &Path) -> Option<u32> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let end = fields.iter().position(|field| *field == b"-")?;
    let [.., device, _, path, _] = fields.get(..6)? else { return None };
    let (kind, source) = (fields.get(end + 1)?, fields.get(end + 2)?);
    if !kind.starts_with(b"fuse") || *source != super::NAME.as_bytes() || unescaped(path) != at {
        return None;
    }
    std::str::from_utf8(device).ok()?.split_once(':')?.1.parse().ok()
}

/// The kernel writes a space, a tab, a line end and a backslash as three octal digits.
fn unescaped(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn health(at: &Path) -> Health {
    let (answer, answered) = mpsc::channel();
    let at = at.to_owned();
    // It may wait until the connection is aborted. The kernel remembers no answer to this question.
    std::thread::spawn(move || answer.send(rustix::fs::statvfs(&at).map(drop)));
    match answered.recv_timeout(ANSWER_WAIT) {
        Err(_) => Health::Silent,
        Ok(Ok(())) => Health::Served,
        Ok(Err(_)) => Health::Dead,
    }
}

fn abort(connection: u32, at: &Path) {
    let file = format!("/sys/fs/fuse/connections/{connection}/abort");
    if std::fs::write(file, "1").is_err() {
        // That file system need not be mounted.
        let _ = unmount(at, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

/// Takes the mount away, with the help that a user without privileges has.
pub(super) fn detach(at: &Path) -> io::Result<()> {
    let Err(error) = unmount(at, UnmountFlags::DETACH) else { return Ok(()) };
    // An abort may have taken it away already.
    if error == rustix::io::Errno::INVAL {
        return Ok(());
    }
    let mut command = Command::new("fusermount3");
    command.args(["-u", "-z", "--"]).arg(at).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_mount_in_the_list() {
        let list = b"22 1 254:0 / / rw,noatime - ext4 /dev/vda rw\n\
            36 22 0:44 / /a\\040b rw,nosuid shared:1 master:2 - fuse rhyolite rw,user_id=0\n\
            37 22 0:45 / /other rw - fuse sshfs rw\n\
            38 36 0:46 / /a\\040b rw - fuse.rhyolite rhyolite rw\n\
            short line\n";
        assert_eq!(connection(list, Path::new("/a b")), Some(46));
        assert_eq!(connection(list, Path::new("/other")), None);
        assert_eq!(connection(list, Path::new("/")), None);
        assert_eq!(unescaped(b"/\\134\\9x\\1"), Path::new("/\\\\9x\\1"));
    }
}
