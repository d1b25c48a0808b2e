//! The application of the nodes: a web server over one SQLite database, as its own process.
//!
//! `POST /add/CLIENT/NUMBER` commits a row; `GET /rows/CLIENT` tells the numbers of a client's rows. SIGTERM lets requests that are under way finish. What it
//! commits it notes in a file, with the time.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use super::http;
use super::setting::Journal;
use crate::args::Args;
use crate::error::{Context, Outcome, fail};

/// How often it is looked for connections, and for the signal.
const LOOK: Duration = Duration::from_millis(1);
/// How long SQLite waits for a lock.
const BUSY: Duration = Duration::from_secs(10);

static IS_TOLD: AtomicBool = AtomicBool::new(false);

extern "C" fn note_signal(_: libc::c_int) {
    IS_TOLD.store(true, Ordering::SeqCst);
}

struct App {
    database: PathBuf,
    /// Where rows are written, and noted; `None` for who only reads.
    writer: Option<Mutex<(Connection, File)>>,
}

/// `cluster-app PORT DATABASE [--notes FOLDER --journal MODE]`: without notes it only reads.
pub fn run(mut args: Args) -> Outcome {
    let (Some(port), Some(database)) = (args.word(), args.word()) else { return fail("cluster-app PORT DATABASE") };
    let notes: Option<PathBuf> = args.option("--notes")?;
    let journal: Journal = args.option_or("--journal", Journal::Wal)?;
    args.finish()?;
    // SAFETY: the handler does nothing but to set a flag.
    unsafe { libc::signal(libc::SIGTERM, note_signal as *const () as libc::sighandler_t) };
    let database = PathBuf::from(database);
    let writer = notes.map(|folder| open_writer(&database, &folder, journal)).transpose()?.map(Mutex::new);
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).context("listen")?;
    listener.set_nonblocking(true).context("listen")?;
    let (app, busy) = (Arc::new(App { database, writer }), Arc::new(AtomicUsize::new(0)));
    while !IS_TOLD.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                let (app, busy) = (Arc::clone(&app), Arc::clone(&busy));
                busy.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // A client that has gone is no concern of ours.
                    let _ = app.serve(&stream);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => return fail(format!("accept: {error}")),
        }
    }
    drop(listener);
    while busy.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn open_writer(database: &Path, folder: &Path, journal: Journal) -> Outcome<(Connection, File)> {
    let db = Connection::open(database).context("open the database")?;
    db.busy_timeout(BUSY).context("open the database")?;
    let mode = db.query_row(&format!("PRAGMA journal_mode = {}", journal.name()), [], |row| row.get::<_, String>(0));
    let mode = mode.context("set the journal mode")?;
    if mode != journal.name() {
        return fail(format!("journal mode {mode}"));
    }
    db.execute_batch(
        "PRAGMA synchronous = normal;
         CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, client INTEGER NOT NULL, number INTEGER NOT NULL, more BLOB);
         CREATE INDEX IF NOT EXISTS of_client ON t(client, number);",
    )
    .context("make the table")?;
    let path = folder.join(std::process::id().to_string());
    let notes = File::options().create(true).append(true).open(&path).context("open the notes")?;
    Ok((db, notes))
}

impl App {
    fn serve(&self, stream: &TcpStream) -> Outcome {
        stream.set_nonblocking(false).context("wait for a request")?;
        let (method, path) = http::receive(stream)?;
        let words: Vec<&str> = path.split('/').skip(1).collect();
        let done = match (method.as_str(), words.as_slice()) {
            ("POST", ["add", client, number]) => self.add(client, number),
            ("GET", ["rows", client]) => self.rows(client),
            _ => fail("no such path"),
        };
        match done {
            Ok(body) => http::answer(stream, 200, &body),
            Err(error) => http::answer(stream, 500, &error.to_string()),
        }
    }

    fn add(&self, client: &str, number: &str) -> Outcome<String> {
        let Some(writer) = &self.writer else { return fail("this one only reads") };
        let mut writer = writer.lock().expect("no request panics");
        let (db, notes) = &mut *writer;
        db.execute("INSERT INTO t(client, number, more) VALUES (?1, ?2, randomblob(200))", [client, number])
            .context("insert")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_micros();
        notes.write_all(format!("{now}\n").as_bytes()).context("note")?;
        Ok(String::new())
    }

    fn rows(&self, client: &str) -> Outcome<String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.database, flags).context("open")?;
        db.busy_timeout(BUSY).context("open")?;
        let client: u64 = client.parse().context("number of a client")?;
        Ok(http::write_numbers(&numbers_of(&db, client)?))
    }
}

/// Commits a row as another application than the node's own.
pub fn add_on_the_mount(database: &Path, client: u64, number: u64) -> Outcome {
    // Where nothing is mounted nothing is made.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(database, flags).context("open")?;
    db.busy_timeout(BUSY / 4).context("open")?;
    let sql = "INSERT INTO t(client, number, more) VALUES (?1, ?2, randomblob(200))";
    db.execute(sql, [client as i64, number as i64]).context("insert").map(drop)
}

/// The numbers of a client's rows, ascending.
pub fn numbers_of(db: &Connection, client: u64) -> Outcome<Vec<u64>> {
    let mut statement = db.prepare("SELECT number FROM t WHERE client = ?1 ORDER BY number").context("read rows")?;
    let rows = statement.query_map([client as i64], |row| row.get::<_, i64>(0)).context("read rows")?;
    rows.map(|number| number.map(|number| number as u64)).collect::<Result<_, _>>().context("read rows")
}
