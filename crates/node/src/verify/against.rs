//! Compares a database file with a state in a store, page by page.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rhyolite_format::{PageNumber, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_store::Store;

use crate::progress::{Progress, Stage};
use crate::restore::RestoreError;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::draft::refuse_companions;
use crate::restore::reader::Reader;
use crate::restore::sink::PageSink;
use crate::restore::{fetch, plan_in};

/// Differing pages that are listed by number.
const LISTED_MAX: usize = 1000;

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct AgainstOptions {
    /// The part of a store that belongs to one database.
    pub store: Arc<dyn Store>,
    /// Which state.
    pub target: Target,
    /// A database file that nobody writes to and that has no WAL.
    pub file: PathBuf,
    /// Threads that unpack; at least one.
    pub threads: usize,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// How a file and a state differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgainstReport {
    /// The position of the state; its checksum is proved.
    pub pos: Pos,
    /// When it was committed.
    pub time: Timestamp,
    /// Length of the database in the store, in bytes.
    pub expected_bytes: u64,
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// Number of pages that differ. Pages that the file does not have are among them; those that it has beyond are not.
    pub differing: u64,
    /// The first of them, ascending, at most 1,000.
    pub pages: Vec<PageNumber>,
}

impl AgainstReport {
    /// Whether the file is the state, byte for byte.
    pub fn is_equal(&self) -> bool {
        self.differing == 0 && self.expected_bytes == self.file_bytes
    }
}

/// Compares a database file with a state in a store. Must run in a Tokio runtime.
///
/// # Errors
/// What keeps them from being compared: the file has a WAL or a journal, the store's state is damaged.
pub async fn verify_against(options: AgainstOptions) -> Result<AgainstReport, RestoreError> {
    options.progress.enter(Stage::Planning);
    refuse_companions(&options.file)?;
    let file = File::open(&options.file).map_err(|e| RestoreError::io("open", &options.file, e))?;
    let file_bytes = file.metadata().map_err(|e| RestoreError::io("look at", &options.file, e))?.len();
    let reader = Arc::new(Reader::new(options.store));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    let plan = plan_in(&reader, &catalog, &mut Vec::new(), options.target).await?;
    let compare = Arc::new(CompareSink { file, path: options.file, differing: Mutex::default() });
    let sink: Arc<dyn PageSink> = Arc::clone(&compare) as _;
    fetch(&reader, HashMap::new(), &plan, sink, options.threads, &options.progress).await?;
    options.progress.enter(Stage::Done);
    let found = compare.differing.lock().expect("nothing panics while it holds this lock");
    let mut pages: Vec<PageNumber> = found.lowest.iter().copied().collect();
    pages.truncate(LISTED_MAX);
    Ok(AgainstReport {
        pos: plan.pos,
        time: plan.time,
        expected_bytes: plan.commit.bytes(plan.page_size),
        file_bytes,
        differing: found.count,
        pages,
    })
}

/// Compares pages with those of a file.
#[derive(Debug)]
struct CompareSink {
    file: File,
    path: PathBuf,
    differing: Mutex<Differing>,
}

#[derive(Debug, Default)]
struct Differing {
    count: u64,
    /// Never more than [`LISTED_MAX`].
    lowest: std::collections::BTreeSet<PageNumber>,
}

impl CompareSink {
    fn note(&self, index: usize) {
        let pgno = PageNumber::new(index as u32 + 1).expect("one more than an index");
        let mut differing = self.differing.lock().expect("nothing panics while it holds this lock");
        differing.count += 1;
        differing.lowest.insert(pgno);
        if differing.lowest.len() > LISTED_MAX {
            differing.lowest.pop_last();
        }
    }
}

impl PageSink for CompareSink {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        let offset = first.index() as u64 * page_bytes as u64;
        let found = read_up_to(&self.file, &self.path, offset, pages.len())?;
        for (i, page) in pages.chunks(page_bytes).enumerate() {
            let start = i * page_bytes;
            if found.get(start..start + page_bytes) != Some(page) {
                self.note(first.index() + i);
            }
        }
        Ok(())
    }
}

/// The bytes of a file from an offset, fewer when it ends.
fn read_up_to(file: &File, path: &Path, offset: u64, len: usize) -> Result<Vec<u8>, RestoreError> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(RestoreError::io("read", path, e)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
