//! Restore drills: every so often the newest state is put together from the store, as a restore would do it, and compared with what
//! was committed. Nothing is kept of it (`rhyolite_logic::drill` says when).
//!
//! What is proved:
//!
//! - A database up to `drill.sample`: everything. Each page is fetched and unpacked, and together they must have the checksum that
//!   the log has for that commit.
//! - A larger one: that the plan is whole, the way to every page included, and that the pages of a random sample are those that were
//!   committed: each is compared with the page table that the state folder holds, which was proved by the checksum of that commit. What was
//!   not in the sample is not proved; each drill takes another one.
//!
//! What it costs: at most one drill at a time in the whole process, on one thread that rests as long as it works; 16 MiB of reads under
//! way; of a larger database 8 bytes per page. It has a task of its own, so capture and uploads never wait for it. A failure is told and
//! counted; replication goes on.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rhyolite_format::state::page_table;
use rhyolite_format::{Checksum, Lineage, PageNumber, Pos, Timestamp};
use rhyolite_logic::Target;
use rhyolite_logic::drill::{Last, Outcome, Sample, due};
use rhyolite_logic::restore_plan::{PlanError, RestorePlan};
use rhyolite_store::Store;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::capture::restart::TABLE_FILE;
use crate::capture::table::PageTable;
use crate::config::{DatabaseConfig, DrillConfig};
use crate::progress::{Progress, Silent};
use crate::random;
use crate::restore::catalog::{Catalog, OnDamage};
use crate::restore::reader::Reader;
use crate::restore::sink::PageSink;
use crate::restore::{RestoreError, blocking, fetch, fetch_sample, plan_in};
use crate::status::{DatabaseStatus, Figures, LastError};
use crate::time;

/// Drills of the process that run at the same time.
static AT_ONCE: Semaphore = Semaphore::const_new(1);
/// Threads that unpack.
const THREADS: usize = 1;
/// Longest time between two looks at the clock: it may be set.
const LOOK_MAX: Duration = Duration::from_secs(3600);
/// Time between two looks while nothing is due.
const LOOK_MIN: Duration = Duration::from_secs(10);
/// Longest rest after one piece of work.
const REST_MAX: Duration = Duration::from_millis(100);
/// Name in the state folder.
const NAME: &str = "drill.json";

/// What drills have found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// The last proof.
    pub proved: Option<Proof>,
    /// The last drill, when it failed: why, and when. Gone with the next proof.
    pub failed: Option<LastError>,
    /// Whether that drill found damage, rather than no answer.
    #[serde(default)]
    pub is_damage: bool,
    /// Drills since the process started.
    pub runs: u64,
    /// Those of them that found damage.
    pub failures: u64,
}

/// Proof that a state can be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The state.
    pub pos: Pos,
    /// When it was committed: restorable to then.
    #[serde(with = "time::rfc3339")]
    pub committed: Timestamp,
    /// When that was proved.
    #[serde(with = "time::rfc3339")]
    pub at: Timestamp,
    /// Pages that were compared.
    pub pages_proved: u64,
    /// Pages that the state has, but for the lock page.
    pub pages: u64,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Proof {
    /// Whether every page was proved.
    pub fn is_whole(&self) -> bool {
        self.pages_proved == self.pages
    }
}

impl Drill {
    fn last(&self) -> Option<Last> {
        let proved = self.proved.as_ref().map(|proof| Last { at: proof.at, outcome: Outcome::Proved(proof.pos) });
        let outcome = if self.is_damage { Outcome::Damaged } else { Outcome::Unanswered };
        let failed = self.failed.as_ref().map(|error| Last { at: error.time, outcome });
        failed.or(proved)
    }
}

/// Holds the drills of one database.
#[derive(Debug)]
pub struct Driller {
    /// The database's prefix.
    pub store: Arc<dyn Store>,
    /// When, and how much.
    pub config: DrillConfig,
    /// Figures.
    pub status: Arc<DatabaseStatus>,
}

impl Driller {
    /// Of this database and its store.
    pub fn new(config: &DatabaseConfig, status: &Arc<DatabaseStatus>, store: &Arc<dyn Store>) -> Self {
        Self { store: Arc::clone(store), config: config.drill.clone(), status: Arc::clone(status) }
    }

    /// Runs without end; drop the future to stop it.
    pub async fn run(self) -> std::convert::Infallible {
        remember(&self.status);
        if self.config.interval.is_zero() {
            return std::future::pending().await;
        }
        let look_min = LOOK_MIN.min(self.config.interval);
        loop {
            let wait = self.status.look(|figures| due_in(&self.config, figures)).unwrap_or_default();
            // Commits come, and the clock may be set.
            tokio::time::sleep(wait.clamp(look_min, LOOK_MAX)).await;
            self.hold_if_due().await;
        }
    }

    /// One drill, if it is time for one. Drop the future to end it.
    pub async fn hold_if_due(&self) {
        if self.status.look(|figures| due_in(&self.config, figures)).is_some_and(|wait| wait.is_zero()) {
            self.hold().await;
        }
    }

    /// One drill, on a task of its own that ends with this one.
    async fn hold(&self) {
        let _alone = AT_ONCE.acquire().await.expect("the semaphore is never closed");
        let mut tasks = JoinSet::new();
        let table = self.status.meta_path.join(TABLE_FILE);
        tasks.spawn(drill(Arc::clone(&self.store), self.config.sample_bytes, table));
        let result = match tasks.join_next().await.expect("one was spawned") {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(RestoreError::Cancelled),
        };
        let database = self.status.path.display();
        match &result {
            Ok(proof) => tracing::info!(%database, txid = %proof.pos.txid, "restore drill: {}", in_words(proof)),
            Err(e) if e.may_pass() => tracing::warn!(%database, "a restore drill could not be held: {e}"),
            Err(e) => {
                tracing::error!(%database, "restore drill: the store cannot be restored: {e}");
                self.status.error(format!("restore drill: {e}"));
            }
        }
        self.status.update(|figures| {
            let drill = &mut figures.drill;
            drill.runs += 1;
            match result {
                Ok(proof) => (drill.proved, drill.failed, drill.is_damage) = (Some(proof), None, false),
                Err(e) => {
                    drill.is_damage = !e.may_pass();
                    drill.failures += u64::from(drill.is_damage);
                    drill.failed = Some(LastError { text: e.to_string(), time: time::now() });
                }
            }
        });
        if let Err(e) = save(&self.status.meta_path, &self.status.figures().drill) {
            tracing::debug!(%database, "cannot write {NAME}: {e}");
        }
    }
}

/// Time until the next drill of a database with these figures; `None` for never, as things stand.
pub fn due_in(config: &DrillConfig, figures: &Figures) -> Option<Duration> {
    let now = time::now();
    let next = due(config.interval, figures.durable, figures.drill.last(), now)?;
    Some(Duration::from_millis(next.0.saturating_sub(now.0).max(0).unsigned_abs()))
}

/// What an earlier process has proved.
pub fn remember(status: &DatabaseStatus) {
    let Ok(bytes) = std::fs::read(status.meta_path.join(NAME)) else { return };
    // What does not decode is of no use; the next drill writes it anew.
    let Ok(known) = serde_json::from_slice::<Drill>(&bytes) else { return };
    status.update(|figures| {
        if figures.drill.last().is_none() {
            figures.drill = Drill { runs: 0, failures: 0, ..known };
        }
    });
}

/// `every page proved` or `1234 of 56789 pages proved`.
pub fn in_words(proof: &Proof) -> String {
    if proof.is_whole() {
        return "every page proved".to_owned();
    }
    format!("the way to every page, and {} of {} pages, proved", proof.pages_proved, proof.pages)
}

fn save(meta_path: &Path, drill: &Drill) -> std::io::Result<()> {
    let new = meta_path.join("drill.json.new");
    std::fs::write(&new, serde_json::to_vec_pretty(drill)?)?;
    std::fs::rename(&new, meta_path.join(NAME))
}

/// Puts the newest state together, or a sample of the one of the saved page table. Must run in a Tokio runtime.
///
/// # Errors
/// Those of a restore.
pub async fn drill(store: Arc<dyn Store>, sample_bytes: u64, table: PathBuf) -> Result<Proof, RestoreError> {
    // What was compacted away meanwhile is looked for once more.
    match drill_once(Arc::clone(&store), sample_bytes, &table).await {
        Err(RestoreError::Missing { .. }) => drill_once(store, sample_bytes, &table).await,
        result => result,
    }
}

async fn drill_once(store: Arc<dyn Store>, sample_bytes: u64, table: &Path) -> Result<Proof, RestoreError> {
    let started = Instant::now();
    let reader = Arc::new(Reader::new(store));
    let catalog = Catalog::load(&reader, None, OnDamage::Refuse).await?;
    let plan = plan_in(&reader, &catalog, &mut Vec::new(), Target::Latest).await?;
    let is_small = plan.commit.bytes(plan.page_size) <= sample_bytes;
    let proved = if is_small {
        let progress: Arc<dyn Progress> = Arc::new(Silent);
        fetch(&reader, catalog.cache, &plan, Arc::new(RestingSink::default()), THREADS, &progress).await?;
        (plan, None)
    } else {
        let (plan, pages) = prove_sample(&reader, &catalog, sample_bytes, table.to_owned()).await?;
        (plan, Some(pages))
    };
    let (plan, sampled) = proved;
    let lock_page = u64::from(plan.commit.contains(plan.page_size.lock_page()));
    let pages = u64::from(plan.commit.get()) - lock_page;
    Ok(Proof {
        pos: plan.pos,
        committed: plan.time,
        at: time::now(),
        pages_proved: sampled.unwrap_or(pages),
        pages,
        bytes_fetched: reader.bytes(),
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Compares a sample of the pages with the saved page table, at the position of that.
async fn prove_sample(
    reader: &Arc<Reader>,
    catalog: &Catalog,
    sample_bytes: u64,
    path: PathBuf,
) -> Result<(RestorePlan, u64), RestoreError> {
    let (lineage, shown) = (catalog.identity.lineage, path.clone());
    let (pos, table) = blocking(move || load_table(&path, lineage)).await?;
    let plan = match plan_in(reader, catalog, &mut Vec::new(), Target::Txid(pos.txid)).await {
        // Not uploaded yet, or merged away: no fault of the store.
        Err(RestoreError::Plan(e @ PlanError::NotAPoint { .. })) => return Err(unusable(&shown, e.to_string())),
        planned => planned?,
    };
    if plan.pos != pos {
        return Err(RestoreError::WrongChecksum { pos, found: plan.pos.checksum });
    }
    let sample = Sample::new(u64::from_be_bytes(random::bytes()), sample_bytes, plan.commit.bytes(plan.page_size));
    let sink = Arc::new(ComparingSink { table, wrong: AtomicU64::new(0), rest: RestingSink::default() });
    let pages =
        fetch_sample(reader, HashMap::new(), &plan, Arc::clone(&sink) as Arc<dyn PageSink>, THREADS, sample).await?;
    match PageNumber::new(u32::try_from(sink.wrong.load(Ordering::Relaxed)).expect("a page number")) {
        Some(pgno) => Err(RestoreError::WrongPage { pgno, pos }),
        None => Ok((plan, pages)),
    }
}

fn unusable(path: &Path, why: String) -> RestoreError {
    RestoreError::io("compare with", path, std::io::Error::other(why))
}

/// The saved page table, and the position that it is of.
fn load_table(path: &Path, lineage: Lineage) -> Result<(Pos, PageTable), RestoreError> {
    let file = File::open(path).map_err(|e| RestoreError::io("read", path, e))?;
    let (header, entries) = page_table::read(BufReader::new(file)).map_err(|e| unusable(path, e.to_string()))?;
    let table = PageTable::from_entries(header.page_size, entries);
    if header.lineage != lineage || table.checksum() != header.pos.checksum {
        return Err(unusable(path, "its entries do not give its checksum".to_owned()));
    }
    Ok((header.pos, table))
}

/// Rests after each piece of work as long as that took, so that a drill never takes more than half of a core.
#[derive(Debug, Default)]
struct RestingSink(Mutex<Option<Instant>>);

impl PageSink for RestingSink {
    fn write_run(&self, _first: PageNumber, _page_bytes: usize, _pages: &[u8]) -> Result<(), RestoreError> {
        let mut since = self.0.lock().expect("nothing panics while it holds this lock");
        let worked = since.map_or(Duration::ZERO, |since| since.elapsed());
        std::thread::sleep(worked.min(REST_MAX));
        *since = Some(Instant::now());
        Ok(())
    }
}

/// Compares pages with a page table.
#[derive(Debug)]
struct ComparingSink {
    table: PageTable,
    /// A page that differs; 0 for none.
    wrong: AtomicU64,
    rest: RestingSink,
}

impl PageSink for ComparingSink {
    fn write_run(&self, first: PageNumber, page_bytes: usize, pages: &[u8]) -> Result<(), RestoreError> {
        for (pgno, data) in (first.get()..).filter_map(PageNumber::new).zip(pages.chunks_exact(page_bytes)) {
            if self.table.get(pgno) != Some(Checksum::of_page(pgno, data)) {
                self.wrong.store(u64::from(pgno.get()), Ordering::Relaxed);
            }
        }
        self.rest.write_run(first, page_bytes, pages)
    }
}
