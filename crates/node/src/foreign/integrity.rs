//! SQLite's own judgement of a database file: all that is left where nobody recorded a checksum of it.
//!
//! It looks at the structure of pages, b-trees and indexes, not at what the application meant: rows that break a constraint are
//! a matter of the application, and not counted as damage of the backup.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// Messages that are asked for at most.
const MESSAGES_MAX: u32 = 100;
/// How `integrity_check` speaks of rows that break a rule of the application's schema.
const ABOUT_CONSTRAINTS: &[&str] = &["CHECK constraint failed in", "value in "];

/// What SQLite says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// The structure is sound.
    Sound,
    /// It is not.
    Broken(Vec<String>),
    /// It could not be looked at, for example because the schema needs an extension that is not here.
    NotChecked(String),
}

impl Integrity {
    /// How it is named in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sound => "ok",
            Self::Broken(_) => "broken",
            Self::NotChecked(_) => "not-checked",
        }
    }
}

/// Looks at a file that nobody else has open and that has no WAL. Nothing is written.
pub(super) fn check(path: &Path) -> Integrity {
    match messages(path) {
        Ok(mut messages) => {
            messages.retain(|message| message != "ok" && !is_about_a_constraint(message));
            if messages.is_empty() { Integrity::Sound } else { Integrity::Broken(messages) }
        }
        Err(rusqlite::Error::SqliteFailure(code, message)) => {
            use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
            let text = message.unwrap_or_else(|| code.to_string());
            let is_damage = matches!(code.code, DatabaseCorrupt | NotADatabase);
            if is_damage { Integrity::Broken(vec![text]) } else { Integrity::NotChecked(text) }
        }
        Err(error) => Integrity::NotChecked(error.to_string()),
    }
}

fn is_about_a_constraint(message: &str) -> bool {
    ABOUT_CONSTRAINTS.iter().any(|part| message.contains(part))
}

fn messages(path: &Path) -> Result<Vec<String>, rusqlite::Error> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({MESSAGES_MAX})"))?;
    check.query_map([], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("a b?.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t(a, b); CREATE INDEX i ON t(a)").unwrap();
        for i in 0..500 {
            connection.execute("INSERT INTO t VALUES (?1, 'some text that fills pages')", [i]).unwrap();
        }
        path
    }

    #[test]
    fn a_sound_database_is_sound() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(&database(folder.path())), Integrity::Sound);
    }

    #[test]
    fn a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = database(folder.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096 * 2..4096 * 3].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(check(&path), Integrity::Broken(_)));
        std::fs::write(&path, "no database at all, but some text that is longer than a header is".repeat(9)).unwrap();
        assert!(matches!(check(&path), Integrity::Broken(_)));
    }

    #[test]
    fn rows_that_break_a_constraint_are_the_applications_matter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.db");
        let connection = Connection::open(&path).unwrap();
        let sql = "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, NULL); PRAGMA writable_schema=ON;
            UPDATE sqlite_schema SET sql = 'CREATE TABLE t(a, b NOT NULL)'";
        connection.execute_batch(sql).unwrap();
        drop(connection);
        assert_eq!(messages(&path).unwrap(), ["NULL value in t.b"]);
        assert_eq!(check(&path), Integrity::Sound);
    }
}
