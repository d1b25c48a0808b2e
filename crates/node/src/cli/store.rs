//! What the commands that read a store share.

use std::future::Future;
use std::sync::Arc;

use rhyolite_store::{RetryPolicy, Retrying, Store, StoreOptions};

use super::exit::Failure;
use crate::config::io_text;

/// Threads of the runtime: they move bytes; unpacking has threads of its own.
const WORKER_THREADS: usize = 2;
/// Threads for calls that block, such as reading a folder.
const BLOCKING_THREADS_MAX: usize = 16;

/// Opens a store for reading, with the usual retries. No request is made yet.
pub(super) fn open(url: &str) -> Result<Arc<dyn Store>, Failure> {
    let store = rhyolite_store::open(url, &StoreOptions::default()).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(Arc::new(Retrying::new(store, RetryPolicy::default())))
}

/// Runs a command's future on a runtime that ends with it, whatever still hangs.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start threads: {}", io_text(&e))))?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}
