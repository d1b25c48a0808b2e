//! A disk that can lose its power: an ext4 file system of its own in a file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::error::{Context, Outcome, fail};

/// `EXT4_IOC_SHUTDOWN` of the kernel's `ext4.h`: the file system stops at once.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what the journal holds in memory is not written either.
const WITHOUT_A_WORD: u32 = 2;
/// How long others may still have files open there.
const CLOSING_LIMIT: Duration = Duration::from_secs(30);

/// A file system on a folder, until this is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes one of `mib` MiB in the file `image`, and mounts it at the folder `at`. Needs the right to mount, and `mkfs.ext4`.
    pub(super) fn new(image: &Path, at: &Path, mib: u64) -> Outcome<Self> {
        File::create(image).and_then(|file| file.set_len(mib << 20)).context("make the image")?;
        command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image])?;
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Outcome {
        command("mount", &["-o".as_ref(), "loop".as_ref(), &self.image, &self.at])
    }

    /// Takes the power away: what was not synced is gone.
    pub(super) fn cut(&self) -> Outcome {
        let folder = File::open(&self.at).context("open the disk")?;
        let how = WITHOUT_A_WORD;
        // SAFETY: the kernel reads a number of four bytes, which outlives the call.
        match unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &raw const how) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("take the power away"),
        }
    }

    /// Brings it up again, when everybody who had something open has gone.
    pub(super) fn power_up(&self) -> Outcome {
        let deadline = Instant::now() + CLOSING_LIMIT;
        while let Err(error) = command("umount", &[&self.at]) {
            if Instant::now() > deadline {
                return fail(format!("the disk cannot be unmounted: {error}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command("umount", &["-l".as_ref(), &self.at]);
    }
}

fn command(program: &str, arguments: &[&Path]) -> Outcome {
    let output = Command::new(program).args(arguments).output().context(format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { fail(format!("{program}: {}", said.trim())) }
}
