//! `status.json` in a database's state folder: how `rhyolite status` learns what the daemon is doing, without a port.
//!
//! Invariants:
//! 1. Written at most once a second and only after a change; an idle database costs nothing.
//! 2. Written to another name and renamed, so a reader sees a whole file or none. Not synced: it is worth nothing after a
//!    crash of the machine.
//! 3. The folder is never created here: where there is no state, there is no status.
//! 4. A reader computes the lag itself, so an old file of a living process still gives the right one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhyolite_format::Timestamp;
use serde::{Deserialize, Serialize};

use super::report::{DatabaseReport, ProcessReport, REPORT_FORMAT};
use crate::status::{DatabaseStatus, StatusBoard};
use crate::time;

/// Least time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Name in the state folder.
const NAME: &str = "status.json";
/// The name under which it is written before it is renamed.
const NEW_NAME: &str = "status.json.new";

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFile {
    /// [`REPORT_FORMAT`].
    pub format: u32,
    /// By whom.
    pub process: ProcessReport,
    /// When.
    #[serde(with = "time::rfc3339")]
    pub time: Timestamp,
    /// The database.
    pub database: DatabaseReport,
}

/// The last status of the database whose state folder this is; `None` when there is none.
///
/// # Errors
/// One line: the file cannot be read, or is of another version.
pub fn read(meta_path: &Path) -> Result<Option<StatusFile>, String> {
    let path = meta_path.join(NAME);
    let error = |text: String| format!("{}: {text}", path.display());
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(error(crate::config::io_text(&e))),
    };
    let file: StatusFile = serde_json::from_slice(&bytes).map_err(|e| error(format!("not a status file ({e})")))?;
    if file.format == REPORT_FORMAT { Ok(Some(file)) } else { Err(error(format!("unknown version {}", file.format))) }
}

fn write(process: &ProcessReport, status: &DatabaseStatus) -> std::io::Result<()> {
    let now = time::now();
    let database = DatabaseReport::new(status, now);
    let file = StatusFile { format: REPORT_FORMAT, process: process.clone(), time: now, database };
    let new: PathBuf = status.meta_path.join(NEW_NAME);
    std::fs::write(&new, serde_json::to_vec_pretty(&file)?)?;
    std::fs::rename(&new, status.meta_path.join(NAME))
}

/// Writes every database whose figures changed since the last call.
pub fn write_changed(board: &StatusBoard) {
    let process = ProcessReport::current(board);
    for status in board.take_changed() {
        match write(&process, &status) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => tracing::debug!(db = %status.path.display(), "cannot write the status file: {e}"),
        }
    }
}

/// Keeps the files up to date until the task is dropped.
pub async fn keep_written(board: Arc<StatusBoard>) {
    loop {
        board.changed().await;
        let board = Arc::clone(&board);
        // A join error means that the runtime is going down.
        let _ = tokio::task::spawn_blocking(move || write_changed(&board)).await;
        tokio::time::sleep(WRITE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_after_a_change_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let board = StatusBoard::new();
        let status = board.add("/a.db".into(), dir.path().into(), "./backup".into());
        assert_eq!(read(dir.path()), Ok(None));
        write_changed(&board);
        let file = read(dir.path()).unwrap().expect("just written");
        assert_eq!(file.database.figures, status.figures());
        assert!(file.process.is_alive());
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        write_changed(&board);
        assert_eq!(read(dir.path()), Ok(None), "nothing changed");
    }

    #[test]
    fn no_folder_is_created_and_foreign_bytes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let board = StatusBoard::new();
        board.add("/a.db".into(), missing.clone(), "./backup".into());
        write_changed(&board);
        assert!(!missing.exists());
        std::fs::write(dir.path().join(NAME), b"{}").unwrap();
        assert!(read(dir.path()).unwrap_err().contains("not a status file"));
    }
}
