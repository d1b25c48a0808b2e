//! The leases of the process: one for each place in a store that is written under one right, shared by all databases there.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhyolite_format::Nonce;
use rhyolite_format::lease::{LeaseRecord, decode_nonces, encode_nonces};
use rhyolite_logic::lease::{Guards, Terms};
use rhyolite_store::{Counted, Counters, StoreError};
use rhyolite_writer::lease_keeper::{LeaseHandle, Memory, lease};
use rustix::fs::{FlockOperation, flock};

use crate::capture::restart;
use crate::config::DatabaseConfig;
use crate::process;
use crate::world::RealWorld;

/// File in the state folder with the nonces of our last writes.
const MEMORY_FILE: &str = "lease";
/// So many nonces are kept: that of the last write that is known to have worked, and those that may still come in.
const NONCES_KEPT: usize = 8;

/// The leases that this process holds or waits for.
#[derive(Debug, Default)]
pub struct LeasePool {
    /// By store; `None` for databases without a lease.
    leases: Mutex<HashMap<(bool, String), Shared>>,
}

/// A lease and the databases that are written under it.
#[derive(Debug)]
struct Shared {
    handle: LeaseHandle,
    users: BTreeSet<PathBuf>,
}

fn place(config: &DatabaseConfig) -> (bool, String) {
    let shared = config.lease.store.as_ref().filter(|_| config.lease.enabled);
    let url = shared.unwrap_or(&config.store);
    (config.lease.enabled, url.trim_end_matches('/').to_owned())
}

impl LeasePool {
    /// The lease under which `config`'s database is written, until [`LeasePool::leave`].
    ///
    /// # Errors
    /// The store's URL is not understood.
    pub fn get(&self, config: &DatabaseConfig, requests: &Arc<Counters>) -> Result<LeaseHandle, StoreError> {
        let place = place(config);
        let mut leases = self.lock();
        if let Some(shared) = leases.get_mut(&place) {
            shared.users.insert(config.path.clone());
            return Ok(shared.handle.clone());
        }
        let handle = if config.lease.enabled {
            keep(&place.1, config, requests)?
        } else {
            LeaseHandle::alone(Arc::new(RealWorld))
        };
        let shared = Shared { handle: handle.clone(), users: BTreeSet::from([config.path.clone()]) };
        leases.insert(place, shared);
        Ok(handle)
    }

    /// A database is not written any more: from this call on it is none of the lease's users. The last one gives the lease up, so that
    /// the next process need not wait; what cannot be given up `within` this time runs out.
    pub fn leave(&self, config: &DatabaseConfig, within: Duration) -> impl Future<Output = ()> + Send + use<> {
        let last = self.forget(config);
        let store = config.store.clone();
        async move {
            let Some(Shared { handle, .. }) = last else { return };
            if tokio::time::timeout(within, handle.release()).await.is_err() {
                tracing::warn!("the lease of {store} could not be given up in time: it runs out by itself");
            }
        }
    }

    /// The lease that has no user any more without this one.
    fn forget(&self, config: &DatabaseConfig) -> Option<Shared> {
        let place = place(config);
        let mut leases = self.lock();
        let shared = leases.get_mut(&place)?;
        shared.users.remove(&config.path);
        if shared.users.is_empty() { leases.remove(&place) } else { None }
    }

    /// Gives all leases up at the end, those too whose users were cut off; what cannot be given up in time runs out.
    pub async fn release_all(&self, within: Duration) {
        let leases: Vec<Shared> = self.lock().drain().map(|(_, shared)| shared).collect();
        let mut releases = tokio::task::JoinSet::new();
        for Shared { handle, .. } in leases {
            releases.spawn(async move { handle.release().await });
        }
        let all = async { while releases.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a lease could not be given up in time: it runs out by itself");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(bool, String), Shared>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts keeping the lease at `url`.
fn keep(url: &str, config: &DatabaseConfig, requests: &Arc<Counters>) -> Result<LeaseHandle, StoreError> {
    let store = rhyolite_store::open(url, &config.store_options())?;
    // Not retried below: the lease has its own ways with answers that are lost.
    let store = Arc::new(Counted::new(store, Arc::clone(requests)));
    let (memory, dead) = remember_in(&config.meta_path);
    let terms = Terms { process: process::own(), ..Terms::new(config.lease.ttl, holder()) };
    let (keeper, handle) = lease(store, Arc::new(RealWorld), memory, terms, Guards::ALL, &dead);
    tokio::spawn(keeper.run());
    Ok(handle)
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
fn holder() -> String {
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
