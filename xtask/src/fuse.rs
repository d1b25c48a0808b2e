//! What the kernel is asked and told about a mount, without the program that serves it.

use std::path::Path;

#[cfg(target_os = "linux")]
pub(crate) use linux::{is_mounted, take_away};

/// Whether this machine has what a FUSE mount needs, but for the permission.
pub(crate) fn is_there() -> bool {
    cfg!(target_os = "linux") && Path::new("/dev/fuse").exists()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::process::{Command, Stdio};

    /// Mounts on one place, one over the other, that are taken away at most.
    const STACKED_MAX: usize = 16;

    /// Whether a FUSE file system answers at `at`. A dead one does not; of its attributes the kernel may still know enough, so this asks
    /// for what it never keeps.
    pub(crate) fn is_mounted(at: &Path) -> bool {
        let Ok(path) = CString::new(at.as_os_str().as_bytes()) else { return false };
        // SAFETY: a struct of numbers, for which zeros are values.
        let mut there: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends with a zero byte, and both outlive the call.
        let status = unsafe { libc::statfs(path.as_ptr(), &raw mut there) };
        status == 0 && there.f_type == libc::FUSE_SUPER_MAGIC
    }

    /// Takes away whatever is mounted at `at`. The connection ends, so whoever waits for an answer gets an error.
    pub(crate) fn take_away(at: &Path) {
        let Ok(path) = CString::new(at.as_os_str().as_bytes()) else { return };
        for _ in 0..STACKED_MAX {
            // SAFETY: the path ends with a zero byte and outlives the call.
            if unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) } == 0 {
                continue;
            }
            if std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM) {
                // Others than root may do it through the program that mounted for them.
                let mut command = Command::new("fusermount3");
                command.args(["-u", "-z"]).arg(at).stdout(Stdio::null()).stderr(Stdio::null());
                let _ = command.status();
            }
            return;
        }
    }
}

/// There is none elsewhere.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_mounted(_at: &Path) -> bool {
    false
}

/// There is none elsewhere.
#[cfg(not(target_os = "linux"))]
pub(crate) fn take_away(_at: &Path) {}
