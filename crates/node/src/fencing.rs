//! Whether a database's store can keep a second writer out: what the store says of itself, and what a probe of it found.
//!
//! `probe.json` in the state folder (docs/spec/probe.md) remembers the last probe. It outweighs what the backend declares, in both directions:
//! it was made with this bucket, on this server.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rhyolite_format::probe::{ProbeRecord, SIZE_MAX};
use rhyolite_store::{Asking, Guarantee, Store};

use crate::time;

/// Name in the state folder.
const NAME: &str = "probe.json";
/// The name under which it is written before it is renamed.
const NEW_NAME: &str = "probe.json.new";

/// The last probe that was saved for the database whose state folder this is. What cannot be read counts as none: it is asked for
/// again, not mended.
pub fn read(meta_path: &Path) -> Option<ProbeRecord> {
    let path = meta_path.join(NAME);
    if std::fs::metadata(&path).ok()?.len() > SIZE_MAX as u64 {
        return None;
    }
    match ProbeRecord::decode(&std::fs::read(&path).ok()?) {
        Ok(record) => Some(record),
        Err(e) => {
            tracing::warn!("{}: {e}", path.display());
            None
        }
    }
}

/// Saves a probe; the state folder is made if the database was never replicated.
///
/// # Errors
/// Those of the file system.
pub fn write(meta_path: &Path, record: &ProbeRecord) -> std::io::Result<()> {
    match std::fs::create_dir(meta_path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let new = meta_path.join(NEW_NAME);
    std::fs::write(&new, record.encode())?;
    std::fs::rename(&new, meta_path.join(NAME))
}

/// What an operator must know about the store, if it is not certain to keep a second writer out.
pub fn warning(store: &dyn Store, probe: Option<&ProbeRecord>) -> Option<String> {
    let ours = probe.filter(|p| p.store == store.describe());
    if let Some(probe) = ours {
        return warning_of(probe);
    }
    let capabilities = store.capabilities();
    let by_time = "a second writer is kept out by time only";
    match capabilities.fencing() {
        Guarantee::Given => None,
        Guarantee::Unproven => Some(format!(
            "the store {}: {by_time}, unless `rhyolite probe` with --save shows that it can do better",
            capabilities.why
        )),
        Guarantee::Absent => Some(format!("the store {}: {by_time}", capabilities.why)),
    }
}

/// Whether conditional writes are known not to hold there. Then it is asked before each write, and a second writer is kept out by the time of the
/// lease only; nobody but the lease's holder writes.
pub fn is_by_time(store: &dyn Store, probe: Option<&ProbeRecord>) -> bool {
    match probe.filter(|p| p.store == store.describe()) {
        Some(probe) => !probe.fencing,
        None => store.capabilities().fencing() == Guarantee::Absent,
    }
}

/// The store, asked before each write where that is needed.
pub fn guarded(store: Arc<dyn Store>, meta_path: &Path) -> Arc<dyn Store> {
    if is_by_time(store.as_ref(), read(meta_path).as_ref()) { Arc::new(Asking::new(store)) } else { store }
}

fn warning_of(probe: &ProbeRecord) -> Option<String> {
    if probe.fencing {
        return None;
    }
    let (failed, when) = (probe.failed.join(", "), time::format_utc(probe.time));
    let meaning = if probe.backup { "a second writer is kept out by time only" } else { "it cannot hold a backup" };
    Some(format!("the store failed a probe on {when} ({failed}): {meaning}"))
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Format1, Timestamp};
    use rhyolite_store::{Environment, Memory, StoreOptions, open};

    use super::*;

    fn record(store: &str, backup: bool, fencing: bool) -> ProbeRecord {
        let failed = if fencing { Vec::new() } else { vec!["swap-race".to_owned()] };
        let time = Timestamp(1_800_000_000_000);
        ProbeRecord { format: Format1, time, store: store.to_owned(), backup, fencing, failed, clock_offset_ms: None }
    }

    #[test]
    fn a_probe_outweighs_what_the_store_says() {
        let keys = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];
        let environment = Environment::Fixed(keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let unknown = open("s3://b/p?endpoint=http://127.0.0.1:1", &StoreOptions { environment }).unwrap();
        let unknown = unknown.as_ref();
        assert_eq!(warning(&Memory::new(), None), None);
        let failed = warning(&Memory::new(), Some(&record("memory:", true, false))).unwrap();
        assert!(failed.contains("swap-race") && failed.contains("by time only"), "{failed}");
        let failed = warning(&Memory::new(), Some(&record("memory:", false, false))).unwrap();
        assert!(failed.contains("cannot hold a backup"), "{failed}");
        assert!(warning(unknown, None).unwrap().contains("rhyolite probe"));
        assert_eq!(warning(unknown, Some(&record("s3://b/p", true, true))), None);
        assert!(warning(unknown, Some(&record("s3://other", true, true))).is_some(), "another store's probe");
    }

    #[tokio::test]
    async fn a_store_that_failed_its_probe_is_asked_before_each_write() {
        let dir = tempfile::tempdir().unwrap();
        let meta_path = dir.path().join(".a.db-rhyolite");
        let memory: Arc<dyn Store> = Arc::new(Memory::new());
        let guarantee = |store: &Arc<dyn Store>| store.capabilities().fencing();
        assert_eq!(guarantee(&guarded(Arc::clone(&memory), &meta_path)), Guarantee::Given, "never probed");
        write(&meta_path, &record("memory:", true, true)).unwrap();
        assert_eq!(guarantee(&guarded(Arc::clone(&memory), &meta_path)), Guarantee::Given);
        write(&meta_path, &record("memory:", true, false)).unwrap();
        assert_eq!(guarantee(&guarded(memory, &meta_path)), Guarantee::Absent);
    }

    #[test]
    fn it_is_written_and_read_back_and_foreign_bytes_count_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let meta_path = dir.path().join(".a.db-rhyolite");
        assert_eq!(read(&meta_path), None);
        write(&meta_path, &record("memory:", true, true)).unwrap();
        assert_eq!(read(&meta_path), Some(record("memory:", true, true)));
        std::fs::write(meta_path.join(NAME), b"{}").unwrap();
        assert_eq!(read(&meta_path), None);
        assert!(write(&dir.path().join("no/such/folder"), &record("m", true, true)).is_err());
    }
}
