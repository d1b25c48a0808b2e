//! Where there is no FUSE there is no mount, and nothing that leads to one.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::capture::commits::CommitLines;

/// A folder that is mounted: none.
#[derive(Debug)]
pub struct Mounted(Infallible);

impl Mounted {
    pub fn handle(&self) -> MountHandle {
        match self.0 {}
    }
}

/// A way to a mount: none.
#[derive(Clone, Debug)]
pub struct MountHandle(Infallible);

/// Nobody else opens a database.
#[derive(Debug)]
pub struct Alone(Infallible);

impl MountHandle {
    pub fn lines(&self) -> Arc<CommitLines> {
        match self.0 {}
    }

    pub fn set_lag(&self, _: Option<Duration>) {
        match self.0 {}
    }

    pub fn admit_all(&self) -> io::Result<()> {
        match self.0 {}
    }

    pub fn leave_to_us(&self) {
        match self.0 {}
    }

    pub fn shut(&self, _: &[PathBuf]) -> io::Result<()> {
        match self.0 {}
    }

    pub fn alone_with(&self, _: &Path, _: bool) -> io::Result<Alone> {
        match self.0 {}
    }
}
