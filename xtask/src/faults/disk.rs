//! A small file system of our own, which can be filled.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Context, Outcome};

/// A file system in memory, mounted on a folder until this is dropped.
#[derive(Debug)]
pub(super) struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts `mib` MiB on `folder`, which is made when it is not there. Needs the right to mount.
    #[cfg(target_os = "linux")]
    pub(super) fn mount(folder: &Path, mib: u64) -> Outcome<Self> {
        fs::create_dir_all(folder).context("make the folder")?;
        let target = CString::new(folder.display().to_string()).context("a path without zero bytes")?;
        let options = CString::new(format!("size={mib}m,mode=0755")).context("options without zero bytes")?;
        let kind = c"tmpfs".as_ptr();
        // SAFETY: all strings end with a zero byte and outlive the call.
        let status = unsafe { libc::mount(kind, target.as_ptr(), kind, 0, options.as_ptr().cast()) };
        if status != 0 {
            return Err(std::io::Error::last_os_error()).context("mount a small file system");
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// No such thing elsewhere.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn mount(_folder: &Path, _mib: u64) -> Outcome<Self> {
        crate::error::fail("small file systems are made on Linux only")
    }

    /// Takes all free space.
    pub(super) fn fill(&self) -> Outcome {
        let mut filler = File::create(self.filler()).context("make the filler")?;
        let block = [0x55; 64 * 1024];
        while filler.write_all(&block).is_ok() {}
        // What is left is less than a block: take that too.
        while filler.write_all(&block[..512]).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    pub(super) fn empty(&self) -> Outcome {
        fs::remove_file(self.filler()).context("remove the filler")
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if let Ok(target) = CString::new(self.folder.display().to_string()) {
            // SAFETY: the string ends with a zero byte and outlives the call. A lazy unmount works while files are open.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
    }
}
