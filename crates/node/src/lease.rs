//! The leases of the process: one for each place in a store that is written under one right, shared by all databases there.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhyolite_format::Nonce;
use rhyolite_format::lease::{LeaseRecord, decode_nonces, encode_nonces};
use rhyolite_logic::lease::{Guards, Terms};
use rhyolite_store::{Counted, Counters, StoreError};
use rhyolite_writer::lease_keeper::{Forgetful, LeaseHandle, Memory, lease};
use rustix::fs::{FlockOperation, flock};

use crate::config::DatabaseConfig;
use crate::world::RealWorld;

/// File in the state folder with the nonces of our last writes.
const MEMORY_FILE: &str = "lease";
/// So many nonces are kept: that of the last write that is known to have worked, and those that may still come in.
const NONCES_KEPT: usize = 8;
/// How long giving up one lease may take.
const GIVE_UP_WAIT: Duration = Duration::from_secs(5);

/// The leases that this process holds or waits for.
#[derive(Debug, Default)]
pub struct LeasePool {
    leases: Mutex<HashMap<String, LeaseHandle>>,
}

impl LeasePool {
    /// The lease under which `config`'s database is written. The caller has the state folder to itself.
    ///
    /// # Errors
    /// The store's URL is not understood.
    pub fn get(&self, config: &DatabaseConfig, requests: &Arc<Counters>) -> Result<LeaseHandle, StoreError> {
        let url = config.lease.store.as_ref().unwrap_or(&config.store);
        let mut leases = self.lock();
        if let Some(handle) = leases.get(url) {
            return Ok(handle.clone());
        }
        let handle =
            if config.lease.enabled { keep(url, config, requests)? } else { LeaseHandle::alone(Arc::new(RealWorld)) };
        leases.insert(url.clone(), handle.clone());
        Ok(handle)
    }

    /// Gives the lease of one database up, so that it costs nothing while the database is parked. One that others share is kept.
    pub async fn give_up(&self, config: &DatabaseConfig) {
        if config.lease.store.is_some() {
            return;
        }
        let handle = self.lock().remove(&config.store);
        if let Some(handle) = handle {
            // One that cannot be given up in time runs out by itself.
            let _ = tokio::time::timeout(GIVE_UP_WAIT, handle.release()).await;
        }
    }

    /// Gives all leases up, so that the next process need not wait; those that cannot be given up in time run out.
    pub async fn release_all(&self, within: Duration) {
        let handles: Vec<LeaseHandle> = self.lock().drain().map(|(_, handle)| handle).collect();
        let mut releases = tokio::task::JoinSet::new();
        for handle in handles {
            releases.spawn(async move { handle.release().await });
        }
        let all = async { while releases.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a lease could not be given up in time: it runs out by itself");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, LeaseHandle>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts keeping the lease at `url`.
fn keep(url: &str, config: &DatabaseConfig, requests: &Arc<Counters>) -> Result<LeaseHandle, StoreError> {
    let store = rhyolite_store::open(url, &config.store_options())?;
    // Not retried below: the lease has its own ways with answers that are lost.
    let store = Arc::new(Counted::new(store, Arc::clone(requests)));
    let (memory, dead) = remember_in(&config.meta_path);
    let terms = Terms::new(config.lease.ttl, holder());
    let (keeper, handle) = lease(store, Arc::new(RealWorld), memory, terms, Guards::ALL, &dead);
    tokio::spawn(keeper.run());
    Ok(handle)
}

/// The nonces that a dead process has left in the folder, and where ours go. As long as the file is open it is locked: no other process
/// takes us for dead.
fn remember_in(meta_path: &Path) -> (Box<dyn Memory>, Vec<Nonce>) {
    let opened = || -> io::Result<(File, Vec<Nonce>)> {
        let path = meta_path.join(MEMORY_FILE);
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok((file, decode_nonces(&text)))
    };
    match opened() {
        Ok((file, dead)) => (Box::new(Remembered { file, nonces: Mutex::new(dead.clone()) }), dead),
        // The lease of a process before this one is then left to run out.
        Err(error) => {
            tracing::debug!("remember the lease in {}: {error}", meta_path.display());
            (Box::new(Forgetful), Vec::new())
        }
    }
}

/// Nonces in a file.
struct Remembered {
    file: File,
    nonces: Mutex<Vec<Nonce>>,
}

impl Memory for Remembered {
    fn remember(&self, nonce: Nonce) {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.push(nonce);
        let forgotten = nonces.len().saturating_sub(NONCES_KEPT);
        nonces.drain(..forgotten);
        let text = encode_nonces(&nonces);
        let written = self.file.write_all_at(text.as_bytes(), 0).and_then(|()| self.file.set_len(text.len() as u64));
        if let Err(error) = written {
            tracing::debug!("remember a lease: {error}");
        }
    }
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
