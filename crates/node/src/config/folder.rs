//! A folder of databases: an entry of `dbs` with `dir`, or with a pattern as its `path`.

use std::path::PathBuf;

use rhyolite_logic::pick::{Pattern, Pick};

use super::{DatabaseConfig, default_meta_path};

/// A folder of databases that are replicated alike, each to a prefix of its own: its path relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderConfig {
    /// Absolute path of the folder (`dbs[].dir`).
    pub dir: PathBuf,
    /// Which files in it (`dbs[].pattern`, `dbs[].include`, `dbs[].exclude`).
    pub pick: Pick,
    /// Whether folders below it are searched too (`dbs[].recursive`).
    pub recursive: bool,
    /// Whether databases that come and go while the process runs are noticed (`dbs[].watch`).
    pub watch: bool,
    /// Where state folders are, in the same tree as the databases; beside each database by default (`dbs[].meta-path`).
    pub meta_path: Option<PathBuf>,
    /// How each is replicated; `path` is the folder, `store` what their prefixes are appended to.
    pub template: DatabaseConfig,
}

/// The lease of a folder's databases is remembered in a state folder of its own, as if a database with this name were there.
const LEASE_NAME: &str = "lease";
/// What SQLite puts beside a database, and what no search need open.
const BESIDE: [&str; 3] = ["*-wal", "*-shm", "*-journal"];

impl FolderConfig {
    /// Whether a database at `path`, relative to the folder, is one of those that are meant.
    pub fn takes(&self, path: &str) -> bool {
        (self.recursive || !path.contains('/')) && self.pick.takes(path)
    }

    /// All databases in a folder and those below it, as they come and go, with their state folders in the same tree below `meta_path`.
    pub fn everything(dir: PathBuf, meta_path: PathBuf, store: String) -> Self {
        let pattern = |text| Pattern::new(text).expect("it is one");
        Self {
            pick: Pick { include: vec![pattern("*")], exclude: BESIDE.map(pattern).to_vec() },
            recursive: true,
            watch: true,
            meta_path: Some(meta_path),
            template: DatabaseConfig { refuses_links: true, ..DatabaseConfig::new(dir.clone(), store) },
            dir,
        }
    }

    /// One lease for all: ten thousand would have to be renewed, each with requests of its own.
    pub fn share_lease(&mut self) {
        let lease = &mut self.template.lease;
        lease.store.get_or_insert_with(|| self.template.store.clone());
        lease.meta_path = Some(default_meta_path(&self.meta_path.as_ref().unwrap_or(&self.dir).join(LEASE_NAME)));
    }

    /// The configuration of the database at `path`, relative to the folder.
    pub fn database(&self, path: &str) -> DatabaseConfig {
        let database = self.dir.join(path);
        let meta_path = match &self.meta_path {
            Some(root) => default_meta_path(&root.join(path)),
            None => default_meta_path(&database),
        };
        let store = store_below(&self.template.store, path);
        DatabaseConfig { path: database, store, meta_path, ..self.template.clone() }
    }
}

/// The address of a store below another one.
pub fn store_below(store: &str, path: &str) -> String {
    let (address, options) = match store.split_once('?') {
        Some((address, options)) if store.contains("://") => (address, Some(options)),
        _ => (store, None),
    };
    let mut below = format!("{}/{path}", address.trim_end_matches('/'));
    if let Some(options) = options {
        below.push('?');
        below.push_str(options);
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_the_store_below_that_of_its_folder() {
        for (store, expected) in [
            ("./backup", "./backup/x/a.db"),
            ("./back?up/", "./back?up/x/a.db"),
            ("s3://bucket/all?region=r", "s3://bucket/all/x/a.db?region=r"),
            ("s3://bucket", "s3://bucket/x/a.db"),
        ] {
            assert_eq!(store_below(store, "x/a.db"), expected);
        }
    }
}
