//! The leases of the process: one for each place in a store that is written under one right, shared by all databases there.
//!
//! A database is a user of its lease as long as the process answers for it, parked or awake. Who gave it up while a database is at rest would
//! hand the database to a process that waits, for nothing.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhyolite_format::Nonce;
use rhyolite_format::lease::{LeaseRecord, decode_nonces, encode_nonces};
use rhyolite_logic::lease::{Guards, LastWill, Standing, Terms};
use rhyolite_store::{Counted, Counters, StoreError};
use rhyolite_writer::lease_keeper::{LeaseHandle, Memory, lease};
use rhyolite_writer::lease_place::{InStore, LeasePlace};
use rustix::fs::{FlockOperation, flock};

use crate::capture::restart;
use crate::config::DatabaseConfig;
use crate::fencing;
use crate::process;
use crate::status::DatabaseStatus;
use crate::world::RealWorld;

/// File in the state folder with the nonces of our last writes.
const MEMORY_FILE: &str = "lease";
/// So many nonces are kept: that of the last write that is known to have worked, and those that may still come in.
const NONCES_KEPT: usize = 8;

/// Whether there is a lease, and the store in which it lies.
pub(crate) type Place = (bool, String);

/// The leases that this process holds or waits for.
#[derive(Debug, Default)]
pub struct LeasePool {
    leases: Mutex<Leases>,
    /// One that is somebody else's to keep and to give up: all databases of a cluster's node are written under it.
    lent: Option<LeaseHandle>,
}

#[derive(Debug, Default)]
struct Leases {
    shared: HashMap<Place, Shared>,
    /// Those that are being given up.
    leaving: Vec<LeaseHandle>,
}

/// A lease and the databases that are written under it.
#[derive(Debug)]
struct Shared {
    handle: LeaseHandle,
    users: BTreeSet<Arc<Path>>,
}

/// A lease that a database has got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) handle: LeaseHandle,
    /// No other database of the process had it before.
    pub(crate) is_first: bool,
}

/// Where the lease of a database lies.
pub(crate) fn place(config: &DatabaseConfig) -> Place {
    let shared = config.lease.store.as_ref().filter(|_| config.lease.enabled);
    let url = shared.unwrap_or(&config.store);
    (config.lease.enabled, url.trim_end_matches('/').to_owned())
}

/// Whether a database with one of these configurations is written under the same lease as with the other.
pub(crate) fn is_same(one: &DatabaseConfig, other: &DatabaseConfig) -> bool {
    place(one) == place(other)
}

impl LeasePool {
    /// A pool in which everything is written under a lease that was lent, if there is one.
    pub fn new(lent: Option<LeaseHandle>) -> Self {
        Self { leases: Mutex::default(), lent }
    }

    /// Whether a lease was lent that nobody else can take: the logs alone tell that somebody writes instead.
    pub(crate) fn is_lent_alone(&self) -> bool {
        self.lent.as_ref().is_some_and(LeaseHandle::is_alone)
    }

    /// Whether a lease was lent, and is over: nothing is left to wait for.
    pub(crate) fn is_over(&self) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.standing() == Standing::Ended)
    }

    /// The lease under which `config`'s database is written, until [`LeasePool::leave`].
    ///
    /// # Errors
    /// The store's URL is not understood.
    pub(crate) fn get(&self, config: &DatabaseConfig, status: &DatabaseStatus) -> Result<Got, StoreError> {
        if let Some(lent) = &self.lent {
            return Ok(Got { handle: lent.clone(), is_first: false });
        }
        let place = place(config);
        let mut leases = self.lock();
        if let Some(shared) = leases.shared.get_mut(&place) {
            shared.users.insert(Arc::clone(&status.path));
            return Ok(Got { handle: shared.handle.clone(), is_first: false });
        }
        let handle = if config.lease.enabled {
            let terms = Terms { process: process::own(), ..Terms::new(config.lease.ttl, holder()) };
            keep(in_store(&place.1, config, &status.requests)?, config, terms, true)
        } else {
            LeaseHandle::alone(Arc::new(RealWorld))
        };
        let shared = Shared { handle: handle.clone(), users: BTreeSet::from([Arc::clone(&status.path)]) };
        leases.shared.insert(place, shared);
        Ok(Got { handle, is_first: true })
    }

    /// The process does not answer for a database any more, or not under this lease: from this call on it is none of its users. The
    /// last one gives the lease up, so that the next process need not wait; what cannot be given up `within` this time runs out.
    pub(crate) fn leave(
        &self,
        config: &DatabaseConfig,
        status: &DatabaseStatus,
        within: Duration,
    ) -> impl Future<Output = ()> + Send + use<> {
        let last = self.forget(config, &status.path);
        let store = config.store.clone();
        async move {
            let Some(handle) = last else { return };
            if tokio::time::timeout(within, handle.release(LastWill::default())).await.is_err() {
                tracing::warn!("the lease of {store} could not be given up in time: it runs out by itself");
            }
        }
    }

    /// The lease that has no user any more without this one.
    fn forget(&self, config: &DatabaseConfig, user: &Path) -> Option<LeaseHandle> {
        let place = place(config);
        let mut leases = self.lock();
        let shared = leases.shared.get_mut(&place)?;
        shared.users.remove(user);
        if !shared.users.is_empty() {
            return None;
        }
        let handle = leases.shared.remove(&place)?.handle;
        leases.leaving.retain(|handle| handle.standing() != Standing::Ended);
        leases.leaving.push(handle.clone());
        Some(handle)
    }

    /// Gives all leases up at the end, those too whose users were cut off; what cannot be given up in time runs out.
    pub async fn release_all(&self, within: Duration) {
        let Leases { shared, leaving } = std::mem::take(&mut *self.lock());
        let mut releases = tokio::task::JoinSet::new();
        for handle in shared.into_values().map(|shared| shared.handle).chain(leaving) {
            releases.spawn(async move { handle.release(LastWill::default()).await });
        }
        let all = async { while releases.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a lease could not be given up in time: it runs out by itself");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place in the store at `url`.
pub(crate) fn in_store(
    url: &str,
    config: &DatabaseConfig,
    requests: &Arc<Counters>,
) -> Result<Arc<dyn LeasePlace>, StoreError> {
    let store = rhyolite_store::open(url, &config.store_options())?;
    // Not retried below: the lease has its own ways with answers that are lost.
    let store = fencing::guarded(Arc::new(Counted::new(store, Arc::clone(requests))), &config.meta_path);
    Ok(Arc::new(InStore(store)))
}

/// Starts keeping the lease at `place`, under which databases like `config`'s are written; it is taken when it is free if this one `competes`.
pub(crate) fn keep(place: Arc<dyn LeasePlace>, config: &DatabaseConfig, terms: Terms, competes: bool) -> LeaseHandle {
    let (memory, dead) = remember_in(config.lease.meta_path.as_ref().unwrap_or(&config.meta_path));
    let (keeper, handle) = lease(place, Arc::new(RealWorld), memory, terms, Guards::ALL, &dead);
    handle.set_competes(competes);
    tokio::spawn(keeper.run());
    handle
}

/// The nonces that a dead process has left in the folder, and where ours go. As long as the file is open it is locked: no other process
/// takes us for dead.
fn remember_in(meta_path: &Path) -> (Box<dyn Memory>, Vec<Nonce>) {
    let path = meta_path.join(MEMORY_FILE);
    let (file, dead) = match open_memory(&path) {
        Ok((file, dead)) => (Some(file), dead),
        // The lease of a process before this one is then left to run out.
        Err(error) => {
            tracing::debug!("remember the lease in {}: {error}", path.display());
            (None, Vec::new())
        }
    };
    (Box::new(Remembered { path, state: Mutex::new((file, dead.clone())) }), dead)
}

/// Opens and locks the file, and reads it, if it is the one that was written: a copy of a state folder knows nothing of the process that
/// goes on with the original.
fn open_memory(path: &Path) -> io::Result<(File, Vec<Nonce>)> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let place = place_of(&file)?;
    let nonces = match text.split_once('\n') {
        Some((written, nonces)) if written == place => decode_nonces(nonces),
        _ => Vec::new(),
    };
    Ok((file, nonces))
}

/// Where a file lies: boot of the machine, device, inode.
fn place_of(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let boot: String = restart::boot_id().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{boot} {} {}", metadata.dev(), metadata.ino()))
}

/// Nonces in a file, which another process may still have locked for a moment.
struct Remembered {
    path: PathBuf,
    state: Mutex<(Option<File>, Vec<Nonce>)>,
}

impl Memory for Remembered {
    fn remember(&self, nonce: Nonce) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, nonces) = &mut *state;
        nonces.push(nonce);
        let forgotten = nonces.len().saturating_sub(NONCES_KEPT);
        nonces.drain(..forgotten);
        let written = match file {
            Some(file) => write_memory(file, nonces),
            None => open_memory(&self.path).and_then(|(opened, _)| write_memory(file.insert(opened), nonces)),
        };
        if let Err(error) = written {
            tracing::debug!("remember a lease in {}: {error}", self.path.display());
        }
    }
}

fn write_memory(file: &File, nonces: &[Nonce]) -> io::Result<()> {
    let text = format!("{}\n{}", place_of(file)?, encode_nonces(nonces));
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// Who we are, for people.
pub(crate) fn holder() -> String {
    let host = rustix::system::uname();
    format!("{} (process {})", host.nodename().to_string_lossy(), std::process::id())
}

/// Who has the lease, for people: `web-1 (process 77)`.
pub fn describe(record: &LeaseRecord) -> String {
    match &record.address {
        Some(address) => format!("{} at {address}", record.holder),
        None => record.holder.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_wrote_is_known_to_the_next_but_not_beside_it_and_not_in_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (first, dead) = remember_in(folder.path());
        assert_eq!(dead, []);
        let nonces: Vec<Nonce> = (1..=10).map(|n| Nonce([n; 16])).collect();
        nonces.iter().for_each(|nonce| first.remember(*nonce));
        let (beside, dead) = remember_in(folder.path());
        assert_eq!(dead, [], "the first one lives");
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join(MEMORY_FILE), copy.path().join(MEMORY_FILE)).unwrap();
        assert_eq!(remember_in(copy.path()).1, [], "a copy");
        drop(first);
        beside.remember(Nonce([77; 16]));
        drop(beside);
        let (_, dead) = remember_in(folder.path());
        assert_eq!(dead, [Nonce([77; 16])], "of the one that got the lock last");
    }
}
