//! The LTX checksum of a database file: the XOR of the checksums of its pages, the lock page left out.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize};
use serde::Serialize;

use crate::cli::exit::Failure;
use crate::cli::output::Output;

#[derive(Debug, Args)]
pub(in crate::cli) struct ChecksumArgs {
    /// SQLite databases
    #[arg(required = true, value_name = "DB")]
    files: Vec<PathBuf>,
    /// Print one JSON object per database
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ChecksumLine<'a> {
    file: &'a Path,
    checksum: Checksum,
    page_size: Option<PageSize>,
    page_count: PageCount,
}

pub(super) fn run(args: &ChecksumArgs) -> Result<(), Failure> {
    let mut out = Output::new();
    for file in &args.files {
        refuse_side_files(file)?;
        let mut checksum = Checksum::EMPTY;
        let geometry = for_each_page(file, &mut |pgno, page| {
            checksum = checksum.toggle(Checksum::of_page(pgno, page));
            Ok(())
        })?;
        if args.json {
            let (page_size, page_count) = (geometry.map(|g| g.0), geometry.map_or(PageCount(0), |g| g.1));
            out.json(&ChecksumLine { file, checksum, page_size, page_count })?;
        } else {
            out.line(format!("{checksum}  {}", file.display()))?;
        }
    }
    out.finish()
}

/// A `-wal` or `-journal` that holds something means that the file alone is not the database.
pub(super) fn refuse_side_files(database: &Path) -> Result<(), Failure> {
    for suffix in ["-wal", "-journal"] {
        let side = with_suffix(database, suffix);
        if std::fs::metadata(&side).is_ok_and(|meta| meta.len() > 0) {
            let (side, database) = (side.display(), database.display());
            let todo = "open the database once with SQLite and run PRAGMA wal_checkpoint(TRUNCATE)";
            return Err(Failure::failed(format!("{side} holds changes that {database} may not have: {todo}")));
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What is called with each page of a database.
pub(super) type OnPage<'a> = &'a mut dyn FnMut(PageNumber, &[u8]) -> Result<(), Failure>;

/// Gives out every page but the lock page. `None` for an empty file, which is an empty database.
pub(super) fn for_each_page(path: &Path, on_page: OnPage<'_>) -> Result<Option<(PageSize, PageCount)>, Failure> {
    let no_database =
        |detail: String| Failure::failed(format!("{} is not a SQLite database: {detail}", path.display()));
    let read_error = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof => no_database("the file ends early".to_owned()),
        _ => Failure::io("read", path, &e),
    };
    let file = File::open(path).map_err(|e| Failure::io("open", path, &e))?;
    let size = file.metadata().map_err(&read_error)?.len();
    if size == 0 {
        return Ok(None);
    }
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut start = [0; DATABASE_HEADER_SIZE];
    input.read_exact(&mut start).map_err(&read_error)?;
    let header = DatabaseHeader::decode(&start).map_err(|e| no_database(e.to_string()))?;
    let (page_size, page_count) = (header.page_size, header.page_count(size));
    let mut page = vec![0; page_size.bytes()];
    page[..DATABASE_HEADER_SIZE].copy_from_slice(&start);
    let mut filled = DATABASE_HEADER_SIZE;
    for number in 1..=page_count.get() {
        let pgno = PageNumber::new(number).expect("counted from 1");
        input.read_exact(&mut page[filled..]).map_err(&read_error)?;
        filled = 0;
        if pgno != page_size.lock_page() {
            on_page(pgno, &page)?;
        }
    }
    Ok(Some((page_size, page_count)))
}
