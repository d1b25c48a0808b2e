//! Another configuration while the process runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DatabaseId, Source, Stage, Supervisor};
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::lease;
use crate::replicate::{Past, RELEASE_WAIT};

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
        self.reload_folders(folders, &mut done);
        let mut wanted: HashMap<PathBuf, DatabaseConfig> =
            databases.into_iter().map(|config| (config.path.clone(), config)).collect();
        let named = self.members.iter().filter(|(_, m)| matches!(m.source, Source::Named(_)) && !m.is_leaving);
        let named: Vec<_> = named.map(|(id, m)| (*id, m.status.path.to_path_buf())).collect();
        for (id, path) in named {
            match wanted.remove(&path) {
                None => {
                    self.remove(id);
                    done.removed += 1;
                }
                Some(config) => done.changed += usize::from(self.change(id, Source::Named(Arc::new(config)))),
            }
        }
        let mut ids = Vec::new();
        for config in wanted.into_values() {
            match self.check_distinct(&config) {
                Ok(()) => ids.push(self.add(Source::Named(Arc::new(config)))),
                Err(text) => tracing::error!("not added: {text}"),
            }
        }
        done.added += ids.len();
        self.place(ids).await;
        done
    }

    fn reload_folders(&mut self, folders: Vec<FolderConfig>, done: &mut Reloaded) {
        let mut wanted = folders;
        for index in (0..self.folders.list.len()).rev() {
            let config = Arc::clone(&self.folders.list[index].config);
            let same = wanted.iter().position(|w| w.dir == config.dir && w.pick == config.pick);
            let Some(found) = same.map(|at| wanted.swap_remove(at)) else {
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
                self.change(id, Source::Found(Arc::clone(&config), name));
            }
        }
        done.added += wanted.len();
        wanted.into_iter().for_each(|folder| self.folders.push(folder));
    }

    /// Gives a database another configuration; `false` when it is the same.
    fn change(&mut self, id: DatabaseId, source: Source) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let (before, after) = (member.source.config(), source.config());
        member.source = source;
        if before == after {
            return false;
        }
        member.past = Past::default();
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
                if !matches!(member.stage, Stage::InLine) {
                    self.watcher.forget(id);
                    self.wake(id);
                }
            }
            // With another store, or another state folder, everything is to be asked anew.
            Stage::Parked | Stage::Failed if before.store != after.store || before.meta_path != after.meta_path => {
                self.watcher.forget(id);
                self.wake(id);
            }
            Stage::Parked | Stage::Failed | Stage::InLine => {}
        }
        true
    }
}
