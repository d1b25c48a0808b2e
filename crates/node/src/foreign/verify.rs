//! Proves what can be proved of a replica that another program has written.
//!
//! Every object is read whole and its checksums compared; the newest state is put together; SQLite looks at its structure. No
//! checksum of the database was recorded, so this does not prove that it is what was committed: the report says what was.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_logic::Target;
use rhyolite_logic::litestream_plan;
use rhyolite_logic::store_kind::ReplicaKind;

use super::integrity::{self, Integrity};
use super::produce::check_first_page;
use super::{Files, Image, Replica, ReplicaReport, litestream3, litestream5};
use crate::progress::{Progress, Stage};
use crate::random;
use crate::restore::draft::{Draft, spool_folder};
use crate::restore::{RestoreError, blocking};
use crate::verify::{Damage, as_damage};

/// How to verify a replica.
#[derive(Clone, Debug)]
pub struct VerifyReplicaOptions {
    /// Where the newest state is put together; it takes as much space as the database. By default `TMPDIR`, then `/var/tmp`.
    pub spool: Option<PathBuf>,
    /// Who wants to know how far it is.
    pub progress: Arc<dyn Progress>,
}

/// What was verified, and what was found.
#[derive(Clone, Debug)]
pub struct ReplicaVerifyReport {
    /// What it is.
    pub kind: ReplicaKind,
    /// The newest state, if it can be put together.
    pub newest: Option<ReplicaReport>,
    /// What SQLite says of it.
    pub integrity: Option<Integrity>,
    /// Objects that were read whole.
    pub objects: u64,
    /// States that can be restored.
    pub points: u64,
    /// Everything that is not as it should be.
    pub damage: Vec<Damage>,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
    /// Requests to the store.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl ReplicaVerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// A folder that vanishes with this value.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(spool: Option<PathBuf>) -> Result<Self, RestoreError> {
        let name = format!("rhyolite-verify-{:032x}", u128::from_be_bytes(random::bytes()));
        let path = spool_folder(spool).join(name);
        fs::create_dir(&path).map_err(|e| RestoreError::io("create", &path, e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays lies in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Verifies a replica. Must run in a Tokio runtime with more than one thread.
///
/// # Errors
/// What keeps it from being judged. Damage is not an error but part of the report.
pub async fn verify(replica: &Replica, options: VerifyReplicaOptions) -> Result<ReplicaVerifyReport, RestoreError> {
    let started = Instant::now();
    options.progress.enter(Stage::Planning);
    let (objects, points, mut damage) = check_objects(replica).await?;
    let progress = Arc::clone(&options.progress);
    let newest = match as_damage(put_together(replica, options).await)? {
        Ok(found) => Some(found),
        Err(wrong) => {
            damage.push(wrong);
            None
        }
    };
    let (image, integrity) = newest.unzip();
    if let Some(Integrity::Broken(messages)) = &integrity {
        let detail = format!("SQLite finds the newest state broken: {}", messages.join("; "));
        damage.push(Damage { key: String::new(), detail });
    }
    progress.enter(Stage::Done);
    let (bytes_fetched, requests) = (replica.reader.bytes(), replica.reader.requests());
    let newest = image.map(|image| image.report(replica, started.elapsed()));
    let (kind, elapsed) = (replica.kind, started.elapsed());
    Ok(ReplicaVerifyReport { kind, newest, integrity, objects, points, damage, bytes_fetched, requests, elapsed })
}

/// Reads every object: how many there are, how many points, and what is wrong with them.
async fn check_objects(replica: &Replica) -> Result<(u64, u64, Vec<Damage>), RestoreError> {
    let reader = Arc::clone(&replica.reader);
    match &replica.files {
        Files::Five(files) => {
            let facts: Vec<_> = files.files().iter().map(|listed| listed.file).collect();
            let points = litestream_plan::points(&facts).len() as u64;
            let files = files.files().to_vec();
            blocking(move || {
                let mut damage = Vec::new();
                for listed in &files {
                    damage.extend(as_damage(litestream5::check(&reader, listed))?.err());
                }
                Ok((files.len() as u64, points, damage))
            })
            .await
        }
        Files::Three(files) => {
            let points = files.points(usize::MAX).len() as u64;
            let sources = files.sources();
            blocking(move || {
                let mut damage = Vec::new();
                for source in &sources {
                    damage.extend(as_damage(source.check(&reader))?.err());
                }
                Ok((sources.len() as u64, points, damage))
            })
            .await
        }
    }
}

/// Puts the newest state together in a file of its own and has SQLite look at it.
async fn put_together(replica: &Replica, options: VerifyReplicaOptions) -> Result<(Image, Integrity), RestoreError> {
    let (reader, progress) = (Arc::clone(&replica.reader), options.progress);
    let scratch = Scratch::new(options.spool)?;
    let draft = Draft::open(&scratch.0.join("newest.db"))?;
    let check = move |draft: &Draft, image: Image| {
        check_first_page(draft, &image)?;
        let integrity = if image.commit.get() == 0 { Integrity::Sound } else { integrity::check(draft.path()) };
        Ok((image, integrity))
    };
    match &replica.files {
        Files::Five(files) => {
            let plan = files.plan(&reader, Target::Latest).await?;
            blocking(move || {
                let _scratch = scratch;
                litestream5::fill(&reader, &plan, &draft, &*progress).and_then(|image| check(&draft, image))
            })
            .await
        }
        Files::Three(files) => {
            let plan = files.plan(Target::Latest)?;
            blocking(move || {
                let _scratch = scratch;
                litestream3::fill(&reader, &plan, &draft, &*progress).and_then(|image| check(&draft, image))
            })
            .await
        }
    }
}
