//! Stores that fail for a while: a folder that refuses everything new, a server that hangs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use super::report::Report;
use super::world::{Backing, World};
use crate::error::{Context, Outcome};

/// A failing store. It works again when this ends or is dropped.
#[derive(Debug)]
pub(super) struct Trouble {
    folders: Vec<PathBuf>,
    /// Ends when the server answers again, which it does by itself: restores in the middle of the trouble must not wait for ever.
    frozen: Option<JoinHandle<()>>,
}

impl Trouble {
    /// No trouble.
    pub(super) fn none() -> Self {
        Self { folders: Vec::new(), frozen: None }
    }

    /// The stores of `world` fail from here on, in a way that the superuser cannot get around either.
    pub(super) fn begin(world: &mut World<'_>, report: &Report) -> Outcome<Self> {
        let mut trouble = Self::none();
        match world.backing {
            Backing::Server(server) => {
                report.event("store hangs");
                let ms = world.rng.range(100..1500);
                trouble.frozen = Some(server.freeze_for(Duration::from_millis(ms)));
            }
            Backing::Folder => {
                report.event("store refuses");
                for database in &world.databases {
                    trouble.refuse(Path::new(&database.store))?;
                }
            }
        }
        Ok(trouble)
    }

    /// Makes `folder` and all folders in it refuse new entries.
    fn refuse(&mut self, folder: &Path) -> Outcome {
        if !folder.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(folder).context("list the store")? {
            let path = entry.context("list the store")?.path();
            if path.is_dir() {
                self.refuse(&path)?;
            }
        }
        set_immutable(folder, true).context(format!("make {} refuse", folder.display()))?;
        self.folders.push(folder.to_owned());
        Ok(())
    }

    /// The stores work again.
    pub(super) fn end(self) {
        drop(self);
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        for folder in self.folders.drain(..) {
            if let Err(error) = set_immutable(&folder, false) {
                eprintln!("{} still refuses: {error}", folder.display());
            }
        }
        if let Some(frozen) = self.frozen.take() {
            // It sleeps and sends a signal: there is nothing in it that could panic.
            let _ = frozen.join();
        }
    }
}

/// Root ignores permissions, so root's folders get the flag that binds root too; everybody else's lose the permission to write.
#[cfg(target_os = "linux")]
fn set_immutable(folder: &Path, immutable: bool) -> std::io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::geteuid() } != 0 {
        return set_read_only(folder, immutable);
    }
    const IMMUTABLE: libc::c_int = 0x10;
    let file = File::open(folder)?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the request writes one int, to `flags`, and the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    flags = if immutable { flags | IMMUTABLE } else { flags & !IMMUTABLE };
    // SAFETY: the request reads one int, from `flags`, and the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set_immutable(folder: &Path, immutable: bool) -> std::io::Result<()> {
    set_read_only(folder, immutable)
}

fn set_read_only(folder: &Path, read_only: bool) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(if read_only { 0o555 } else { 0o755 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_refusing_folder_refuses_and_then_takes_again() {
        let scratch = Scratch::new("trouble").unwrap();
        let inner = scratch.path().join("store/log");
        fs::create_dir_all(&inner).unwrap();
        let mut trouble = Trouble::none();
        if let Err(error) = trouble.refuse(&scratch.path().join("store")) {
            eprintln!("skipped: this file system knows no immutable folders ({error})");
            return;
        }
        assert!(fs::write(inner.join("a"), "x").is_err());
        trouble.end();
        fs::write(inner.join("a"), "x").unwrap();
    }
}
