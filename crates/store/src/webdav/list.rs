//! Walking folders in the order of keys: a folder is sorted as its name with a slash behind, as in the directory backend.

use std::collections::{BTreeMap, HashSet};

use super::WebDav;
use super::multistatus::Resource;
use super::request::Asked;
use crate::key::RESERVED_PREFIX;
use crate::types::Entry;
use crate::{Operation, StoreError, StoreErrorKind as Kind};

/// Deepest nesting of folders that is followed.
const DEPTH_MAX: usize = 64;

impl WebDav {
    /// At most `limit` objects below `prefix` (no slash at its end), sorted, strictly after `after`.
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let asked = Asked { operation: Operation::List, key: prefix };
        let mut found = Vec::new();
        // Folders that are still to be walked, and the objects among them, next one last.
        let mut ahead = vec![Step::Folder(if prefix.is_empty() { String::new() } else { format!("{prefix}/") })];
        while found.len() < limit {
            match ahead.pop() {
                None => break,
                Some(Step::Object(entry)) => found.push(entry),
                Some(Step::Folder(folder)) => {
                    let is_before = after.is_some_and(|after| folder.as_str() < after && !after.starts_with(&folder));
                    if is_before || folder.matches('/').count() > DEPTH_MAX {
                        continue;
                    }
                    let steps = self.children(asked, &folder).await?.into_iter().filter_map(|(name, resource)| {
                        let key = format!("{folder}{name}");
                        if resource.is_folder {
                            return Some(Step::Folder(key));
                        }
                        let entry = Entry { size: resource.size?, modified: resource.modified, key };
                        after.is_none_or(|after| entry.key.as_str() > after).then_some(Step::Object(entry))
                    });
                    let steps: Vec<_> = steps.collect();
                    ahead.extend(steps.into_iter().rev());
                }
            }
        }
        Ok(found)
    }

    /// What lies in a folder, by name; the names of folders end with a slash.
    async fn children(&self, asked: Asked<'_>, folder: &str) -> Result<BTreeMap<String, Resource>, StoreError> {
        let Some(resources) = self.dav.look(asked, folder, 1).await? else { return Ok(BTreeMap::new()) };
        let own = self.dav.server_path(folder);
        if !resources.iter().any(|r| r.path == own) {
            let seen = resources.first().map_or("nothing", |r| r.path.as_str());
            let reason = format!("the server lists {own} as {seen}: does a proxy before it change paths?");
            return Err(self.dav.error(asked, Kind::Invalid, reason));
        }
        let below = format!("{}/", own.trim_end_matches('/'));
        let mut children = BTreeMap::new();
        for resource in resources {
            let Some(name) = resource.path.strip_prefix(&below).filter(|n| !n.is_empty() && !n.contains('/')) else {
                continue;
            };
            if !name.starts_with(RESERVED_PREFIX) {
                let name = if resource.is_folder { format!("{name}/") } else { name.to_owned() };
                children.insert(name, resource);
            }
        }
        Ok(children)
    }

    /// Keys of the objects right in a folder.
    pub(super) async fn files_in(&self, asked: Asked<'_>, folder: &str) -> Result<HashSet<String>, StoreError> {
        let children = self.children(asked, folder).await?;
        Ok(children.into_iter().filter(|(_, r)| !r.is_folder).map(|(name, _)| format!("{folder}{name}")).collect())
    }
}

enum Step {
    Folder(String),
    Object(Entry),
}
