//! What only a folder can show: drafts, names, locks, listings.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The store in `path` with the naming method forced: 1 anonymous, 2 linked, 3 renamed.
fn with_method(path: &Path, method: u8) -> Directory {
    let store = Directory::new(path);
    store.folder.method.store(method, Ordering::Relaxed);
    store
}

#[tokio::test]
async fn readers_create_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("no/such");
    let store = Directory::new(&root);
    let error = store.get("id.json").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.reason.contains("does not exist"), "{error}");
    assert_eq!(store.list_after("", None, 10).await.unwrap(), []);
    assert_eq!(store.head("a").await.unwrap_err().kind, StoreErrorKind::NotFound);
    store.delete(&["a/b".to_owned()]).await.unwrap();
    let swapped = store.swap_if("a", Some(&Version::new("1-1")), bytes("x")).await;
    assert_eq!(swapped.unwrap_err().kind, StoreErrorKind::Conflict);
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn every_method_publishes_whole_files_and_leaves_nothing_else() {
    for method in 1..=3 {
        let dir = tempfile::tempdir().unwrap();
        let store = with_method(&dir.path().join("root"), method);
        let version = store.create("log/1", bytes("one")).await.unwrap();
        assert_eq!(store.head("log/1").await.unwrap().version, version, "method {method}");
        assert_eq!(store.create("log/1", bytes("two")).await.unwrap_err().kind, StoreErrorKind::Exists);
        let mut upload = store.upload("log/2").await.unwrap();
        upload.write(bytes("a")).await.unwrap();
        drop(upload);
        let mut upload = store.upload("log/2").await.unwrap();
        upload.write(bytes("ab")).await.unwrap();
        upload.write(bytes("c")).await.unwrap();
        assert_eq!(store.list_all("").await.unwrap().len(), 1, "nothing is visible before finish");
        upload.finish().await.unwrap();
        assert_eq!(store.get("log/2").await.unwrap().bytes, "abc");
        assert_eq!(names(&dir.path().join("root/log")), ["1", "2"], "method {method}");
    }
}

#[tokio::test]
async fn versions_never_come_back_even_when_the_clock_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::new(dir.path());
    let mut version = store.create("lease.json", bytes("same")).await.unwrap();
    // A time in the future: the wall clock is earlier than every swap.
    let file = std::fs::File::options().write(true).open(dir.path().join("lease.json")).unwrap();
    let future = SystemTime::now() + std::time::Duration::from_secs(3600);
    file.set_times(std::fs::FileTimes::new().set_modified(future)).unwrap();
    let first = version.clone();
    version = store.head("lease.json").await.unwrap().version;
    let mut seen = std::collections::HashSet::from([first, version.clone()]);
    for _ in 0..50 {
        version = store.swap_if("lease.json", Some(&version), bytes("same")).await.unwrap();
        assert!(seen.insert(version.clone()), "{version} came back");
    }
    assert_eq!(names(dir.path()), [".rhyolite-lock", "lease.json"]);
    assert_eq!(store.list_all("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn leftovers_are_ignored_and_old_ones_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (old, young) = (dir.path().join(".rhyolite-tmp-0"), dir.path().join(".rhyolite-tmp-1"));
    std::fs::write(&young, "x").unwrap();
    let file = std::fs::File::create(&old).unwrap();
    let past = SystemTime::now() - std::time::Duration::from_secs(2 * 24 * 3600);
    file.set_times(std::fs::FileTimes::new().set_modified(past)).unwrap();
    std::fs::write(dir.path().join(".rhyolite-swap"), "torn").unwrap();
    let store = Directory::new(dir.path());
    let version = store.create("a", bytes("1")).await.unwrap();
    store.swap_if("a", Some(&version), bytes("2")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().bytes, "2");
    assert_eq!(store.list_all("").await.unwrap().len(), 1);
    assert!(young.exists() && !old.exists());
}

#[tokio::test]
async fn what_stands_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let store = Directory::new(dir.path().join("file"));
    let error = store.create("a", bytes("1")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    assert!(error.reason.contains("not a folder"), "{error}");
    let error = store.get("a").await.unwrap_err();
    assert!(error.kind == StoreErrorKind::Invalid && error.reason.contains("not a folder"), "{error}");
}

#[tokio::test]
async fn a_folder_whose_sync_failed_is_synced_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::new(dir.path());
    store.create("a/b", bytes("1")).await.unwrap();
    let lost = std::io::Error::other("disk error");
    let folder = dir.path().join("a");
    let noted = store.folder.note_synced(Operation::Create, "a/b", &folder, Err(lost)).unwrap_err();
    assert_eq!(noted.kind, StoreErrorKind::Ambiguous);
    assert_eq!(store.get("a/b").await.unwrap().bytes, "1");
    // A folder that cannot be synced: here, because it is gone.
    let gone = dir.path().join("c");
    store.folder.note_synced(Operation::Create, "c/d", &gone, Err(std::io::Error::other("again"))).unwrap_err();
    assert_eq!(store.get("c/d").await.unwrap_err().kind, StoreErrorKind::Unavailable);
    assert_eq!(store.get("a/b").await.unwrap().bytes, "1");
}

/// Prints what a create costs, by method, size, and with or without the blocking pool. Run alone, on the disk that matters:
/// `TMPDIR=/on/that/disk cargo test -p rhyolite-store --lib create_latency -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn create_latency() {
    const CREATES: usize = 1000;
    let report = |what: String, mut us: Vec<u128>| {
        us.sort_unstable();
        let at = |percent: usize| us[us.len() * percent / 100];
        println!("{what:40} p10 {:5} µs, p50 {:5} µs, p99 {:5} µs", at(10), at(50), at(99));
    };
    for len in [4 << 10, 256 << 10] {
        for method in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let bytes = Bytes::from(vec![7; len]);
            let store = with_method(dir.path(), method.max(1));
            let mut us = Vec::new();
            for i in 0..CREATES {
                let start = std::time::Instant::now();
                if method == 0 {
                    store.folder.create(&format!("log/{i:016x}.seg"), &bytes).unwrap();
                } else {
                    // As a task would: from a worker thread.
                    let (store, bytes) = (store.clone(), bytes.clone());
                    tokio::spawn(async move { store.create(&format!("log/{i:016x}.seg"), bytes).await.unwrap() })
                        .await
                        .unwrap();
                }
                us.push(start.elapsed().as_micros());
            }
            let how = ["anonymous, called directly", "anonymous", "linked", "renamed"][method as usize];
            report(format!("{} KiB, {how}", len >> 10), us);
        }
    }
}

/// A file system that goes away again also when the test fails.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
        eprintln!("umount: {unmounted:?}");
    }
}

/// On a file system of 256 KiB, if this process may mount one.
#[tokio::test]
async fn a_full_disk_is_full_and_shows_nothing_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut mount = std::process::Command::new("mount");
    let mount = mount.args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(dir.path());
    if !mount.stderr(std::process::Stdio::null()).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: mounting a small file system is not allowed here");
        return;
    }
    let mounted = Mounted(dir);
    let dir = &mounted.0;
    for method in 1..=3 {
        let store = with_method(dir.path(), method);
        let version = store.create("small", bytes("1")).await.unwrap();
        let big = Bytes::from(vec![7; 300 << 10]);
        assert_eq!(store.create("big", big.clone()).await.unwrap_err().kind, StoreErrorKind::Full);
        assert_eq!(store.swap_if("small", Some(&version), big.clone()).await.unwrap_err().kind, StoreErrorKind::Full);
        let mut upload = store.upload("big").await.unwrap();
        assert_eq!(upload.write(big).await.unwrap_err().kind, StoreErrorKind::Full);
        assert_eq!(upload.write(bytes("x")).await.unwrap_err().kind, StoreErrorKind::Invalid);
        drop(upload);
        assert_eq!(store.list_all("").await.unwrap().len(), 1);
        assert_eq!(store.get("small").await.unwrap().bytes, "1");
        // Space that was freed can be used again.
        store.create("fits", Bytes::from(vec![7; 100 << 10])).await.unwrap();
        store.delete(&["fits".to_owned(), "small".to_owned()]).await.unwrap();
    }
}
