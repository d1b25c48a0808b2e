//! Another configuration while the process runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DatabaseId, Source, Stage, Supervisor};
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::lease;
use crate::replicate::{RELEASE_WAIT, SharedPast};

/// What a new configuration has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Databases and folders that are new.
    pub added: usize,
    /// Those that are not replicated any more.
    pub removed: usize,
    /// Those with other settings.
    pub changed: usize,
}

impl Supervisor {
    /// Replicates what is wanted from now on. What is the same is left alone.
    pub(super) async fn reload(&mut self, databases: Vec<DatabaseConfig>, folders: Vec<FolderConfig>) -> Reloaded {
        let mut done = Reloaded::default();
        // What was wanted before is not any more.
        self.awaiting.clear();
        self.reload_folders(folders, &mut done);
        let mut wanted: HashMap<PathBuf, DatabaseConfig> =
            databases.into_iter().map(|config| (config.path.clone(), config)).collect();
        let named = self.members.iter().filter(|(_, m)| matches!(m.source, Source::Named(_)) && !m.is_leaving);
        let named: Vec<_> = named.map(|(id, m)| (*id, m.status.path.to_path_buf(), m.is_added)).collect();
        for (id, path, is_added) in named {
            match wanted.remove(&path) {
                // The configuration never knew it.
                None if is_added => {}
                None => {
                    self.remove(id);
                    done.removed += 1;
                }
                Some(config) => done.changed += usize::from(self.change(id, Source::Named(Arc::new(config)))),
            }
        }
        self.awaiting = wanted.into_values().collect();
        self.has_left = true;
        done.added += self.add_awaited().await + self.awaiting.len();
        done
    }

    /// Adds what is wanted and has its place free. Where somebody is still on the way out, it is tried again when he has left. Gives how many were added.
    pub(super) async fn add_awaited(&mut self) -> usize {
        if self.awaiting.is_empty() || !self.has_left || self.folders.is_searching() {
            return 0;
        }
        self.has_left = false;
        let mut taken = Taken::default();
        self.members.values().for_each(|m| taken.take(m.source.config(), m.is_leaving));
        let mut ids = Vec::new();
        for config in std::mem::take(&mut self.awaiting) {
            match taken.is_taken(&config) {
                None => {
                    taken.take(config.clone(), false);
                    ids.push(self.add(Source::Named(Arc::new(config))));
                }
                Some(By::Leaving) => self.awaiting.push(config),
                Some(By::Staying(other)) => {
                    let (path, other) = (config.path.display(), other.display());
                    tracing::error!("not added: {path} has path, store or state folder of {other}");
                }
            }
        }
        let added = ids.len();
        self.place(ids).await;
        added
    }

    fn reload_folders(&mut self, folders: Vec<FolderConfig>, done: &mut Reloaded) {
        let mut wanted = folders;
        for index in (0..self.folders.list.len()).rev() {
            let config = Arc::clone(&self.folders.list[index].config);
            let Some(found) = self.take_successor(&config, &mut wanted) else {
                let searched = self.drop_folder(index);
                searched.names.into_values().for_each(|id| self.remove(id));
                done.removed += 1;
                continue;
            };
            if found == *config {
                self.folders.list[index].search_again();
                continue;
            }
            done.changed += 1;
            let searched = self.drop_folder(index);
            self.folders.push(found);
            let new = self.folders.list.last_mut().expect("just pushed");
            new.names = searched.names;
            let config = Arc::clone(&new.config);
            let names: Vec<_> = new.names.iter().map(|(name, id)| (Arc::clone(name), *id)).collect();
            for (name, id) in names {
                if !config.takes(&name) {
                    let list = &mut self.folders.list;
                    list.last_mut().expect("just pushed").names.remove(&name);
                    self.remove(id);
                    done.removed += 1;
                    continue;
                }
                self.change(id, Source::Found(Arc::clone(&config), name));
            }
        }
        done.added += wanted.len();
        wanted.into_iter().for_each(|folder| self.folders.push(folder));
    }

    /// The wanted folder that goes on with what `config` has found: the same one, or the only one with the same path.
    fn take_successor(&self, config: &FolderConfig, wanted: &mut Vec<FolderConfig>) -> Option<FolderConfig> {
        let exact = wanted.iter().position(|w| w.dir == config.dir && w.pick == config.pick);
        let is_only = |mut dirs: Box<dyn Iterator<Item = &PathBuf> + '_>| {
            dirs.by_ref().find(|dir| **dir == config.dir).is_some() && !dirs.any(|dir| *dir == config.dir)
        };
        let old = self.folders.list.iter().map(|s| &s.config.dir);
        let is_plain = is_only(Box::new(old)) && is_only(Box::new(wanted.iter().map(|w| &w.dir)));
        let at = exact.or_else(|| wanted.iter().position(|w| w.dir == config.dir).filter(|_| is_plain))?;
        Some(wanted.swap_remove(at))
    }

    /// Gives a database another configuration; `false` when it is the same.
    fn change(&mut self, id: DatabaseId, source: Source) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let (before, after) = (member.source.config(), source.config());
        member.source = source;
        member.is_added = false;
        // Something may have been mended that the configuration does not show: a file with keys, say.
        member.failures.forgive();
        if before == after {
            if matches!(member.stage, Stage::Failed) {
                self.wake(id);
            }
            return false;
        }
        if before.store != after.store || !lease::is_same(&before, &after) {
            // Of another store the past says nothing.
            member.past = SharedPast::default();
        }
        match &member.stage {
            Stage::Awake(control) => {
                let begun_with = member.restart.get_or_insert_with(|| Box::new(before));
                control.restart(lease::is_same(begun_with, &after));
                return true;
            }
            Stage::Parked | Stage::Failed | Stage::InLine if !lease::is_same(&before, &after) => {
                drop(tokio::spawn(self.leases.leave(&before, &member.status, RELEASE_WAIT)));
                // Under the new lease it is written from its next life on, which begins now and asks everything.
                member.trust = false;
                self.wake(id);
            }
            // With another store, or another state folder, everything is to be asked anew.
            Stage::Parked if before.store != after.store || before.meta_path != after.meta_path => self.wake(id),
            // Other settings may do better.
            Stage::Failed => self.wake(id),
            Stage::Parked => {
                self.plan_history(id);
                self.plan_drill(id);
            }
            Stage::InLine => {}
        }
        true
    }
}

/// What belongs to a database alone: two with one path, store or state folder would destroy each other's history.
#[derive(Default)]
struct Taken {
    paths: HashMap<PathBuf, By>,
    stores: HashMap<String, By>,
    state_folders: HashMap<PathBuf, By>,
}

/// Whose something is.
#[derive(Clone)]
enum By {
    Leaving,
    Staying(Arc<PathBuf>),
}

impl Taken {
    fn take(&mut self, config: DatabaseConfig, is_leaving: bool) {
        let by = if is_leaving { By::Leaving } else { By::Staying(Arc::new(config.path.clone())) };
        self.paths.insert(config.path, by.clone());
        self.stores.insert(config.store, by.clone());
        self.state_folders.insert(config.meta_path, by);
    }

    fn is_taken(&self, config: &DatabaseConfig) -> Option<By> {
        let by = self.paths.get(&config.path).or_else(|| self.stores.get(&config.store));
        by.or_else(|| self.state_folders.get(&config.meta_path)).cloned()
    }
}
