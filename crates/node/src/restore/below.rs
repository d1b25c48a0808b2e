//! The databases that a store holds below a prefix: whatever has an identity.

use std::sync::Arc;

use rhyolite_format::keys;
use rhyolite_store::{LIST_PAGE, Store, StoreError};

/// Their prefixes, in order.
pub(crate) async fn prefixes(base: &Arc<dyn Store>) -> Result<Vec<String>, StoreError> {
    let mut prefixes = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = base.list_after("", after.as_deref(), LIST_PAGE).await?;
        let is_last = page.len() < LIST_PAGE;
        after = page.last().map(|e| e.key.clone());
        for prefix in page.iter().filter_map(|e| e.key.strip_suffix(keys::ID)?.strip_suffix('/')) {
            prefixes.push(prefix.to_owned());
            // What else there is of this database need not be listed: the manifest is the last of its keys.
            let end = format!("{prefix}/{}", keys::MANIFEST);
            after = after.filter(|after| !after.starts_with(&format!("{prefix}/")) || *after > end).or(Some(end));
        }
        if is_last {
            return Ok(prefixes);
        }
    }
}
