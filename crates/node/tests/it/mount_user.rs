//! The mount of an ordinary user, through `fusermount3`: the kernel passes no files through for them, so WAL and wal-index lie on the mount as
//! any other file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Signal, geteuid};

use crate::mount::Mount;
use crate::program::{Folder, threads, wait_until};

/// Somebody who may do nothing.
const USER: u32 = 65534;
/// One that everybody may run: that in the path may lie in root's home.
const PYTHON: &str = "/usr/bin/python3";
const MODES: [&str; 2] = ["wal", "delete"];
/// Waits until the database is captured, then commits one row after the other. `commits` of them, or without an end. It fails when nobody
/// serves the mount any more, whatever it is about.
const WRITER: &str = "
import os, sqlite3, sys, time
def is_there(path):
    try: os.stat(path)
    except FileNotFoundError: return False
    return True
path, mode, commits = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None, timeout=20)
db.execute('pragma journal_mode=' + mode)
db.execute('create table if not exists t(a integer primary key, b)')
began = time.monotonic()
while not is_there(path + '-pos'):
    assert time.monotonic() - began < 60, 'not captured'
    time.sleep(0.02)
while commits != 0:
    db.execute('insert into t(b) values(hex(randomblob(300)))')
    commits -= 1
assert db.execute('pragma integrity_check').fetchone() == ('ok',)
";

/// `None`, with a notice, where the user cannot mount, or we cannot be another user.
fn mount() -> Option<Mount> {
    let may_open = fs::metadata("/dev/fuse").is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006);
    let has_helper = Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_ok();
    let missing = [
        (geteuid().is_root(), "it needs root to be another user"),
        (has_helper, "there is no fusermount3"),
        (may_open, "only root may open /dev/fuse"),
    ];
    if let Some((_, why)) = missing.iter().find(|(is_there, _)| !is_there) {
        eprintln!("not tested: {why}");
        return None;
    }
    Mount::within(Folder::of_user(USER), &[])
}

fn writer(mount: &Mount, mode: &str, commits: i64, stderr: Stdio) -> Child {
    let path = mount.path(&format!("{mode}.db"));
    let mut command = mount.folder.command_of(Path::new(PYTHON));
    command.args(["-c", WRITER]).arg(path).args([mode, &commits.to_string()]).stderr(stderr);
    command.spawn().unwrap()
}

fn write(mount: &Mount, mode: &str, commits: i64) {
    let child = writer(mount, mode, commits, Stdio::piped());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{mode}: {}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn every_commit_of_an_ordinary_user_is_a_restore_point() {
    let Some(mut mount) = mount() else { return };
    for mode in MODES {
        let name = format!("{mode}.db");
        write(&mount, mode, 0);
        mount.wait_captured(&name);
        let before = mount.points(&name).len();
        write(&mount, mode, 25);
        mount.wait_captured(&name);
        assert_eq!(mount.points(&name).len(), before + 25, "{mode}");
        assert_eq!(mount.folder.run(&["verify", &format!("./backup/{name}"), "--every-point"]).code, 0);
        mount.restored(&name, &[]).unwrap();
        let copy = Connection::open(mount.folder.path("copy.db")).unwrap();
        assert_eq!(copy.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 25);
    }
    mount.stop();
}

/// A killed daemon has the wal-index mapped, which lies on its own mount: it ends all the same, and so does whoever waits for it.
#[test]
fn a_killed_daemon_of_an_ordinary_user_leaves_nobody_waiting() {
    let Some(mut mount) = mount() else { return };
    MODES.iter().for_each(|mode| write(&mount, mode, 1));
    for round in 0..4 {
        let mut writers: Vec<Child> = MODES.iter().map(|mode| writer(&mount, mode, -1, Stdio::null())).collect();
        std::thread::sleep(Duration::from_millis(300 + 100 * round));
        mount.signal(Signal::KILL);
        for writer in &mut writers {
            wait_until("a writer to fail", || match writer.try_wait().unwrap() {
                Some(_) => Ok(()),
                None => Err(threads(writer.id())),
            });
        }
        mount.start(&[]).unwrap();
        for mode in MODES {
            write(&mount, mode, 1);
            mount.wait_captured(&format!("{mode}.db"));
        }
    }
    mount.stop();
}

/// The daemon may be killed as soon as it has a wal-index mapped: so what ends last waits for the mount before there is one.
#[test]
fn what_a_killed_daemon_of_an_ordinary_user_needs_is_there_from_the_beginning() {
    let Some(mut mount) = mount() else { return };
    let doing = threads(mount.id());
    let anchor = doing.lines().find(|line| line.starts_with("mount-anchor ")).unwrap_or_else(|| panic!("{doing}"));
    assert!(!anchor.contains("futex"), "it waits to be sent: {doing}");
    mount.stop();
}

/// Databases of a user on root's mount go over to WAL mode. Root's daemon may be the first to make the wal-index, which is the user's at once.
const SWITCHER: &str = "
import os, sqlite3, sys, time
for number in range(40):
    path = f'{sys.argv[1]}/{number}.db'
    db = sqlite3.connect(path, isolation_level=None, timeout=20)
    db.execute('create table t(a)')
    while True:
        try: os.stat(path + '-pos')
        except FileNotFoundError: time.sleep(0.002)
        else: break
    db.execute('pragma journal_mode=wal')
    db.execute('insert into t values (1)')
    db.close()
    for suffix in ('', '-wal', '-shm'):
        if os.path.exists(path + suffix): os.remove(path + suffix)
";

#[test]
fn a_user_can_write_what_root_captures() {
    if !geteuid().is_root() {
        return eprintln!("not tested: it needs root to be another user");
    }
    let Some(mut mount) = Mount::new() else { return };
    // The folder of the test is root's alone.
    for path in [mount.folder.path(""), mount.folder.path("data")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut command = Command::new(PYTHON);
    command.args(["-c", SWITCHER]).arg(mount.path("")).current_dir("/").uid(USER).gid(USER);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    mount.stop();
}
