//! Turns for writes to stores: so many of the process are on their way at a time to each store, and a store that hangs holds up none of the
//! writes to another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Writes to one store that are on their way at a time.
const UPLOADS_MAX: usize = 32;

/// The turns of all stores.
#[derive(Debug, Default)]
pub(crate) struct UploadTurns {
    stores: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl UploadTurns {
    /// The turns of the store with this URL: it shares them with all prefixes of the same bucket or server. Local folders share theirs.
    pub(crate) fn of(&self, url: &str) -> Arc<Semaphore> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = stores.entry(server(url).to_owned()).or_insert_with(|| Arc::new(Semaphore::new(UPLOADS_MAX)));
        Arc::clone(turns)
    }
}

/// Scheme and host of a URL; empty for a path.
fn server(url: &str) -> &str {
    let Some(host) = url.find("://").map(|at| at + 3) else { return "" };
    let end = url[host..].find(['/', '?']).map_or(url.len(), |at| host + at);
    &url[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_a_bucket_share_their_turns_and_buckets_do_not() {
        let turns = UploadTurns::default();
        let of = |url| turns.of(url);
        assert!(Arc::ptr_eq(&of("s3://a/x?region=r"), &of("s3://a/y")));
        assert!(Arc::ptr_eq(&of("s3://a?region=r"), &of("s3://a")));
        assert!(!Arc::ptr_eq(&of("s3://a/x"), &of("s3://b/x")));
        assert!(Arc::ptr_eq(&of("/backup/a"), &of("./b")));
    }
}
