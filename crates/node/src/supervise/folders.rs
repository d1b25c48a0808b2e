//! Folders of databases: searched at the start, when names in them come and go, and slowly in between.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rhyolite_store::Store;
use tokio::task::JoinHandle;

use super::search::{Found, search};
use super::{DatabaseId, Source, Supervisor};
use crate::config::folder::FolderConfig;

/// Time from a name that comes or goes to the search for what that means.
const SETTLE: Duration = Duration::from_millis(100);
/// Time between two searches of a watched folder that nothing asks for: events may be lost.
const RESCAN: Duration = Duration::from_secs(60);
/// Less often where a search takes long: it may have one part in so many of a processor, up to this time between two.
const RESCAN_SHARE: u32 = 4000;
const RESCAN_MAX: Duration = Duration::from_secs(300);
/// A file that may become a database is looked at again so often, and for so long.
const UNSURE_AGAIN: Duration = Duration::from_millis(500);
const UNSURE_PATIENCE: Duration = Duration::from_secs(30);
/// A folder that cannot be read is tried again so often, watched or not.
const MISSING_AGAIN: Duration = Duration::from_secs(5);
/// A search that took long is not begun again before so many times as long.
const REST_FACTOR: u32 = 10;

/// A folder that is searched.
#[derive(Debug)]
pub(super) struct Searched {
    pub(super) config: Arc<FolderConfig>,
    /// The store that its databases have their prefixes in.
    base: Option<Arc<dyn Store>>,
    pub(super) names: HashMap<Arc<str>, DatabaseId>,
    /// Folders whose names are told.
    watched: HashSet<PathBuf>,
    due: Option<Instant>,
    not_before: Instant,
    last_event: Instant,
    was_searched: bool,
    problems: Vec<String>,
    /// Databases that were found while another was still on its way out at their place.
    held_up: HashSet<PathBuf>,
    /// Databases of other entries that were told of.
    told: HashSet<Arc<str>>,
}

/// All folders.
#[derive(Debug, Default)]
pub(super) struct Folders {
    pub(super) list: Vec<Searched>,
    running: Option<(Arc<FolderConfig>, JoinHandle<SearchEnd>)>,
    /// Every database that the process replicates, wherever it comes from.
    replicated: BTreeSet<Arc<Path>>,
}

/// Which folder, what was found, and how long it took.
pub(super) type SearchEnd = (Arc<FolderConfig>, Found, Duration);

impl Folders {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn is_searching(&self) -> bool {
        self.running.is_some()
    }

    /// Searches each folder once more in which new databases are to be found, without any pause. A search that is under way may have passed them
    /// by.
    pub(super) fn search_at_end(&mut self) {
        let now = Instant::now();
        for searched in &mut self.list {
            let is_wanted = searched.config.watch || searched.is_due() || !searched.was_searched;
            searched.due = is_wanted.then_some(now);
            searched.not_before = now;
        }
    }

    /// Whether a search is under way, or is to be made.
    pub(super) fn is_to_search(&self) -> bool {
        self.is_searching() || self.list.iter().any(Searched::is_due)
    }

    /// The folders of which that is so.
    pub(super) fn to_search(&self) -> HashSet<PathBuf> {
        let due = self.list.iter().filter(|s| s.is_due()).map(|s| &s.config);
        due.chain(self.running.iter().map(|(config, _)| config)).map(|config| config.dir.clone()).collect()
    }

    pub(super) fn push(&mut self, config: FolderConfig) {
        let now = Instant::now();
        self.list.push(Searched {
            config: Arc::new(config),
            base: None,
            names: HashMap::new(),
            watched: HashSet::new(),
            due: Some(now),
            not_before: now,
            last_event: now,
            was_searched: false,
            problems: Vec::new(),
            held_up: HashSet::new(),
            told: HashSet::new(),
        });
    }

    /// The store of a folder.
    pub(super) fn base(&mut self, config: &Arc<FolderConfig>) -> Result<Arc<dyn Store>, String> {
        let known = self.list.iter_mut().find(|s| Arc::ptr_eq(&s.config, config));
        if let Some(base) = known.as_ref().and_then(|s| s.base.clone()) {
            return Ok(base);
        }
        let template = &config.template;
        let base = rhyolite_store::open(&template.store, &template.store_options()).map_err(|e| e.to_string())?;
        if let Some(known) = known {
            known.base = Some(Arc::clone(&base));
        }
        Ok(base)
    }

    pub(super) fn note_added(&mut self, path: &Arc<Path>) {
        self.replicated.insert(Arc::clone(path));
    }

    /// A database is not replicated any more: whoever found another at its place looks again.
    pub(super) fn note_left(&mut self, path: &Path) {
        self.replicated.remove(path);
        self.list.iter_mut().filter(|s| s.held_up.contains(path)).for_each(Searched::search_again);
    }

    /// What is replicated below a folder, by the paths there.
    fn known_in(&self, dir: &Path) -> HashSet<Arc<str>> {
        let below = self.replicated.range::<Path, _>((Bound::Excluded(dir), Bound::Unbounded));
        let below = below.map_while(|path| path.strip_prefix(dir).ok());
        below.filter_map(|path| path.to_str().map(Arc::from)).collect()
    }

    pub(super) fn note_name(&mut self, path: &Path) {
        let now = Instant::now();
        for searched in self.list.iter_mut().filter(|s| s.config.watch && path.starts_with(&s.config.dir)) {
            searched.last_event = now;
            searched.plan(now + SETTLE);
        }
    }

    pub(super) fn note_lost(&mut self) {
        let now = Instant::now();
        self.list.iter_mut().filter(|s| s.config.watch).for_each(|s| s.plan(now + SETTLE));
    }

    /// The result of the next search. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> SearchEnd {
        loop {
            if let Some((_, running)) = &mut self.running {
                let found = running.await;
                self.running = None;
                match found {
                    Ok(found) => return found,
                    Err(error) => tracing::error!("search a folder: {error}"),
                }
            }
            let due = self.list.iter().enumerate().filter_map(|(i, s)| Some((s.due?.max(s.not_before), i))).min();
            let Some((when, index)) = due else { return std::future::pending().await };
            tokio::time::sleep_until(when.into()).await;
            let searched = &mut self.list[index];
            searched.due = None;
            let config = Arc::clone(&searched.config);
            let known = self.known_in(&config.dir);
            let searching = tokio::task::spawn_blocking({
                let config = Arc::clone(&config);
                move || {
                    let began = Instant::now();
                    let found = search(&config, &known);
                    (config, found, began.elapsed())
                }
            });
            self.running = Some((config, searching));
        }
    }
}

impl Searched {
    pub(super) fn search_again(&mut self) {
        self.plan(Instant::now());
    }

    fn is_due(&self) -> bool {
        self.due.is_some()
    }

    fn plan(&mut self, when: Instant) {
        self.due = Some(self.due.map_or(when, |due| due.min(when)));
    }
}

impl Supervisor {
    /// Takes in what a search has found: databases that are new, and those that are gone.
    pub(super) async fn take_found(&mut self, (config, found, took): SearchEnd) {
        let Some(index) = self.folders.list.iter().position(|s| Arc::ptr_eq(&s.config, &config)) else { return };
        let searched = &mut self.folders.list[index];
        // One that is not there yet, or cannot be read, is as good as not searched.
        searched.was_searched |= !found.is_unread();
        searched.held_up.clear();
        for problem in found.problems.iter().filter(|p| !searched.problems.contains(p)) {
            tracing::warn!("search {}: {problem}", config.dir.display());
        }
        searched.problems.clone_from(&found.problems);
        // At the end no other search follows, and who is gone ends by itself: what was captured of it is still to be uploaded.
        if !*self.stop.borrow() {
            self.plan_search(index, &found, took);
            self.let_go(index, &found);
        }
        self.take_new(index, found).await;
        self.note_unsearched();
    }

    /// When the folder is searched again.
    fn plan_search(&mut self, index: usize, found: &Found, took: Duration) {
        let searched = &mut self.folders.list[index];
        searched.not_before = Instant::now() + took * REST_FACTOR;
        if found.is_unread() {
            searched.plan(Instant::now() + MISSING_AGAIN);
        }
        if searched.config.watch {
            searched.plan(Instant::now() + (took * RESCAN_SHARE).clamp(RESCAN, RESCAN_MAX));
            if found.unsure > 0 && searched.last_event.elapsed() < UNSURE_PATIENCE {
                searched.plan(Instant::now() + UNSURE_AGAIN);
            }
            self.watch_folders(index, &found.folders);
        }
    }

    /// Takes those that are gone out of replication.
    fn let_go(&mut self, index: usize, found: &Found) {
        let searched = &self.folders.list[index];
        let config = Arc::clone(&searched.config);
        let gone: Vec<_> = searched.names.iter().filter(|(name, _)| !found.databases.contains(*name)).collect();
        let gone: Vec<_> = gone.into_iter().map(|(name, id)| (Arc::clone(name), *id)).collect();
        for (name, id) in gone.into_iter().filter(|(name, _)| !found.may_hide(name)) {
            tracing::info!(database = %config.dir.join(&*name).display(), "the database is gone: not replicated any more");
            self.folders.list[index].names.remove(&name);
            self.remove(id);
        }
    }

    /// Takes in those that are new.
    async fn take_new(&mut self, index: usize, found: Found) {
        let config = Arc::clone(&self.folders.list[index].config);
        let names = &self.folders.list[index].names;
        let mut new: Vec<_> = found.databases.into_iter().filter(|name| !names.contains_key(name)).collect();
        new.sort();
        let mut ids = Vec::new();
        for name in new {
            let path = config.dir.join(&*name);
            if let Some(id) = self.by_path.get(&*path) {
                // It is named by itself, or still on its way out; or another entry has found it first, and only that one counts.
                let member = self.members.get(id);
                let is_leaving = member.is_some_and(|m| m.is_leaving);
                let is_others = member.is_some_and(|m| matches!(m.source, Source::Found(..)));
                let searched = &mut self.folders.list[index];
                if is_leaving {
                    searched.held_up.insert(path);
                } else if is_others && searched.told.insert(Arc::clone(&name)) {
                    tracing::warn!(
                        "{} belongs to another entry already: it is replicated by that one alone",
                        path.display()
                    );
                }
                continue;
            }
            let id = self.add(Source::Found(Arc::clone(&config), Arc::clone(&name)));
            self.folders.list[index].names.insert(name, id);
            ids.push(id);
        }
        if !ids.is_empty() {
            tracing::info!("{} databases found in {}", ids.len(), config.dir.display());
            self.place(ids).await;
        }
    }

    /// Says how many folders are still to be searched for the first time.
    pub(super) fn note_unsearched(&self) {
        self.board.set_unsearched(self.folders.list.iter().filter(|s| !s.was_searched).count());
    }

    /// Keeps a watch on each folder that was searched. One that is new must be searched again: what came into it before it was watched
    /// was perhaps not seen.
    fn watch_folders(&mut self, index: usize, folders: &[PathBuf]) {
        let searched = &mut self.folders.list[index];
        let folders: HashSet<PathBuf> = folders.iter().cloned().collect();
        for gone in searched.watched.difference(&folders) {
            self.watcher.end_search(gone);
        }
        let mut is_new = false;
        for folder in folders.difference(&searched.watched) {
            is_new |= self.watcher.search(folder);
        }
        searched.watched = folders;
        if is_new {
            searched.plan(Instant::now());
        }
    }

    /// Ends the watches of a folder that is not wanted any more.
    pub(super) fn drop_folder(&mut self, index: usize) -> Searched {
        let searched = self.folders.list.remove(index);
        searched.watched.iter().for_each(|folder| self.watcher.end_search(folder));
        searched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_knows_every_database_in_its_folder_wherever_it_comes_from() {
        let mut folders = Folders::default();
        for path in ["/a", "/a-b/x.db", "/a/x.db", "/a/sub/y.db", "/a/sub-y.db", "/b/x.db"] {
            folders.note_added(&Arc::from(Path::new(path)));
        }
        folders.note_left(Path::new("/a/sub-y.db"));
        let mut known: Vec<_> = folders.known_in(Path::new("/a")).into_iter().collect();
        known.sort();
        assert_eq!(known, [Arc::from("sub/y.db"), Arc::<str>::from("x.db")]);
    }
}
