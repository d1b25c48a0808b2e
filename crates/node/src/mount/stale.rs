//! A mount that another process has left where we are to mount.
//!
//! A process that dies ends its mount's connection: whoever uses the mount then gets ENOTCONN, and the mount is taken away. What the kernel
//! remembers of it still looks alive, so the question is one that it asks each time.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Longest wait for an answer.
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
    if !resolved(at).is_some_and(|at| std::fs::read(MOUNTS).is_ok_and(|mounts| has_ours(&mounts, &at))) {
        return Ok(());
    }
    match health(at) {
        Health::Served => return Err(format!("{}: another process has mounted here", at.display())),
        Health::Dead => tracing::warn!("{}: taking away the mount of a process that has died", at.display()),
        Health::Silent => {
            return Err(format!(
                "{}: another process has mounted here, and does not answer; end it first",
                at.display()
            ));
        }
    }
    detach(at).map_err(|e| format!("{}: take away a dead mount: {}", at.display(), crate::config::io_text(&e)))
}

/// The path without symbolic links. Nothing is asked of the folder itself: it may not answer.
fn resolved(at: &Path) -> Option<PathBuf> {
    let at = std::path::absolute(at).ok()?;
    Some(at.parent()?.canonicalize().ok()?.join(at.file_name()?))
}

/// Whether a mount of ours lies at `at`, by lines such as `36 35 0:44 / /mnt rw,nosuid shared:1 - fuse rhyolite rw`.
fn has_ours(mounts: &[u8], at: &Path) -> bool {
    mounts.split(|byte| *byte == b'\n').any(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let end = fields.iter().position(|field| *field == b"-").unwrap_or(fields.len());
        let Some([kind, source, ..]) = fields.get(end + 1..) else { return false };
        kind.starts_with(b"fuse")
            && *source == super::NAME.as_bytes()
            && fields.get(4).is_some_and(|path| unescaped(path) == at)
    })
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
    // It may wait as long as that process lives.
    std::thread::spawn(move || answer.send(rustix::fs::statvfs(&at).map(drop)));
    match answered.recv_timeout(ANSWER_WAIT) {
        Err(_) => Health::Silent,
        Ok(Ok(())) => Health::Served,
        Ok(Err(_)) => Health::Dead,
    }
}

/// Takes the mount away if nobody uses it.
///
/// # Errors
/// [`Errno::BUSY`] when somebody does.
pub(super) fn unmount_idle(at: &Path) -> Result<(), Errno> {
    match unmount(at, UnmountFlags::empty()) {
        Err(Errno::PERM) => helper("-u", at).map_err(|_| Errno::BUSY),
        done => done,
    }
}

/// Takes the mount away, whoever uses it.
pub(super) fn detach(at: &Path) -> io::Result<()> {
    unmount(at, UnmountFlags::DETACH).or_else(|error| helper("-uz", at).map_err(|_| error.into()))
}

/// The help that a user without privileges has.
fn helper(how: &str, at: &Path) -> Result<(), ()> {
    let mut command = Command::new("fusermount3");
    command.args([how, "--"]).arg(at).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) { Ok(()) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_mount_in_the_list() {
        let list = b"22 1 254:0 / / rw,noatime - ext4 /dev/vda rw\n\
            36 22 0:44 / /a\\040b rw,nosuid shared:1 master:2 - fuse rhyolite rw,user_id=0\n\
            37 22 0:45 / /other rw - fuse sshfs rw\n\
            short line\n";
        assert!(has_ours(list, Path::new("/a b")));
        assert!(!has_ours(list, Path::new("/other")));
        assert!(!has_ours(list, Path::new("/")));
        assert_eq!(unescaped(b"/\\134\\9x\\1"), Path::new("/\\\\9x\\1"));
    }
}
