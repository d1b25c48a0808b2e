//! What else goes wrong: to the replicator's own files, to the database, to the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rhyolite_format::state::LocalState;
use rusqlite::Connection;

use super::report::Report;
use super::world::{Database, World};
use crate::error::{Context, Outcome};
use crate::rng::Rng;
use crate::writer::mix::{self, Change};
use crate::writer::schema::{self, Delta, Making};

#[derive(Clone, Copy, Debug)]
enum Mishap {
    Nothing,
    WritersGoOn,
    JournalModes,
    Checkpoint,
    Vacuum,
    StateDeleted,
    StateDamaged,
    Recreated,
    Replaced,
    RestoredOlder,
    PowerCut,
}

/// What happens while no replicator runs. Writers may run before, and do not run afterwards unless it says so.
pub(super) fn while_down(world: &mut World<'_>, report: &Report) -> Outcome {
    let mishap = world.rng.weighted(&[
        (15, Mishap::Nothing),
        (20, Mishap::WritersGoOn),
        (8, Mishap::JournalModes),
        (10, Mishap::Checkpoint),
        (6, Mishap::Vacuum),
        (8, Mishap::StateDeleted),
        (10, Mishap::StateDamaged),
        (5, Mishap::Recreated),
        (5, Mishap::Replaced),
        (4, Mishap::RestoredOlder),
        (9, Mishap::PowerCut),
    ]);
    happen(mishap, world, report)
}

/// What happens while the replicators run and no writer does.
pub(super) fn while_up(world: &mut World<'_>, report: &Report) -> Outcome {
    let mishap = world.rng.pick(&[Mishap::StateDeleted, Mishap::Recreated, Mishap::Replaced, Mishap::Checkpoint]);
    report.event("while the replicator runs");
    happen(mishap, world, report)
}

fn happen(mishap: Mishap, world: &mut World<'_>, report: &Report) -> Outcome {
    let which = world.rng.range(0..world.databases.len() as u64) as usize;
    match mishap {
        Mishap::PowerCut => world.kill_writers(report)?,
        _ if needs_quiet(mishap) => world.end_writers(report),
        _ => {}
    }
    match mishap {
        Mishap::Nothing => report.event("nothing"),
        Mishap::WritersGoOn => {
            report.event("writers go on");
            world.start_writers()?;
            std::thread::sleep(Duration::from_millis(world.rng.range(10..300)));
        }
        Mishap::JournalModes => {
            report.event("journal modes");
            world.write_in_other_modes(report)?;
        }
        Mishap::Checkpoint => {
            report.event("checkpoint");
            checkpoint(&world.databases[which].path, world.rng.percent(70))?;
        }
        Mishap::Vacuum => {
            report.event("vacuum");
            let conn = open(&world.databases[which].path)?;
            conn.execute_batch("VACUUM").context("vacuum")?;
        }
        Mishap::StateDeleted => {
            report.event("state deleted");
            let folder = world.databases[which].state_folder();
            if folder.exists() {
                // The replicator may be writing there: what it makes meanwhile stays.
                let _ = fs::remove_dir_all(&folder);
            }
        }
        Mishap::StateDamaged => {
            report.event("state damaged");
            damage_state(&world.databases[which], &mut world.rng)?;
        }
        Mishap::Recreated => {
            report.event("database re-created");
            recreate(world, which)?;
            world.databases[which].went_back = true;
        }
        Mishap::Replaced => {
            report.event("database replaced");
            replace(&mut world.databases[which], &mut world.rng)?;
        }
        Mishap::RestoredOlder => {
            report.event("older state restored");
            world.restore_older(which)?;
        }
        Mishap::PowerCut => {
            report.event("power cut");
            power_cut(&mut world.databases[which], &mut world.rng)?;
        }
    }
    Ok(())
}

/// Whether no application may have the database open meanwhile, as SQLite demands.
fn needs_quiet(mishap: Mishap) -> bool {
    match mishap {
        Mishap::Nothing | Mishap::WritersGoOn | Mishap::StateDeleted | Mishap::StateDamaged => false,
        Mishap::JournalModes
        | Mishap::Checkpoint
        | Mishap::Vacuum
        | Mishap::Recreated
        | Mishap::Replaced
        | Mishap::RestoredOlder
        | Mishap::PowerCut => true,
    }
}

fn open(path: &Path) -> Outcome<Connection> {
    let conn = Connection::open(path).context("open the database")?;
    conn.busy_timeout(Duration::from_secs(5)).context("busy timeout")?;
    Ok(conn)
}

/// `wal_checkpoint(TRUNCATE)`, or a plain open and close, after which the WAL is deleted.
fn checkpoint(path: &Path, truncate: bool) -> Outcome {
    let conn = open(path)?;
    if truncate {
        // Busy is an answer too: a replicator may be reading.
        let _ = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    } else {
        let _ = conn.query_row("SELECT count(*) FROM ledger", [], |_| Ok(()));
    }
    Ok(())
}

/// Another database, with some transactions, is moved over this one.
fn replace(database: &mut Database, rng: &mut Rng) -> Outcome {
    let fresh = database.path.with_extension("fresh");
    schema::create(&fresh, Making::random(rng)).context("make another database")?;
    let conn = open(&fresh)?;
    for _ in 0..rng.range(1..30) {
        let mut delta = Delta::default();
        conn.execute_batch("BEGIN IMMEDIATE").context("begin")?;
        mix::change(&conn, "main", Change::Batch, rng, &mut delta).context("write")?;
        schema::append_entry(&conn, "main", 0, delta).context("write")?;
        conn.execute_batch("COMMIT").context("commit")?;
    }
    drop(conn);
    database.remove_files()?;
    database.went_back = true;
    fs::rename(&fresh, &database.path).context("replace the database")
}

/// All files below `folder`.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Removes the database and makes another under its name. A replicator that opens the files while they change may give SQLite
/// an I/O error: then it is tried again.
fn recreate(world: &mut World, which: usize) -> Outcome {
    for last in [false, false, false, true] {
        world.databases[which].remove_files()?;
        let (path, making) = (world.databases[which].path.clone(), Making::random(&mut world.rng));
        match schema::create(&path, making) {
            Ok(_) => return Ok(()),
            Err(error) if last => return Err(error).context("re-create"),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    }
    unreachable!("the last try returns")
}

/// One of the replicator's own files is cut short, loses a bit, or goes.
fn damage_state(database: &Database, rng: &mut Rng) -> Outcome {
    let files = files_below(&database.state_folder());
    if files.is_empty() {
        return Ok(());
    }
    let path = &files[rng.range(0..files.len() as u64) as usize];
    let mut bytes = fs::read(path).context("read a state file")?;
    match rng.range(0..4) {
        _ if bytes.is_empty() => {}
        0 => bytes.truncate(rng.range(0..bytes.len() as u64) as usize),
        1 => {
            let at = rng.range(0..bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.range(0..8);
        }
        2 => bytes.fill(0),
        _ => return fs::remove_file(path).context("remove a state file"),
    }
    fs::write(path, bytes).context("damage a state file")
}

/// The machine loses what nobody synced: the end of the WAL, and the ends of the replicator's own files. It boots anew.
///
/// A checkpoint syncs the WAL before it copies frames into the database, so no frame is lost that a checkpoint has begun to
/// copy: their number stands in the shared memory, which itself does not survive.
fn power_cut(database: &mut Database, rng: &mut Rng) -> Outcome {
    let wal = database.beside("-wal");
    let shm = fs::read(database.beside("-shm")).unwrap_or_default();
    let bytes = fs::read(&wal).unwrap_or_default();
    if let (Some(word), true) = (shm.get(128..132), bytes.len() > 32) {
        let attempted = u32::from_ne_bytes(word.try_into().expect("four bytes")) as usize;
        let page_size = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
        let synced = (32 + attempted * (24 + page_size)).min(bytes.len());
        let kept = rng.range(synced as u64..bytes.len() as u64 + 1);
        fs::write(&wal, &bytes[..kept as usize]).context("cut the WAL")?;
        database.went_back = true;
    }
    let _ = fs::remove_file(database.beside("-shm"));
    let state = database.state_folder().join("state");
    if let Ok(mut known) = LocalState::decode(&fs::read(&state).unwrap_or_default()) {
        known.boot_id = [rng.draw() as u8; 16];
        fs::write(&state, known.encode()).context("change the boot")?;
    }
    for path in files_below(&database.state_folder()) {
        if rng.percent(30) {
            let len = fs::metadata(&path).context("look at a state file")?.len();
            let file = fs::File::options().write(true).open(&path).context("open a state file")?;
            file.set_len(rng.range(0..len + 1)).context("cut a state file")?;
        }
    }
    Ok(())
}
