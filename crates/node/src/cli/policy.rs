//! What `compact`, `prune` and `plan` share: which stores, and by which rules, from flags or from a configuration file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rhyolite_format::Epoch;
use rhyolite_logic::history_plan::{Duty, Policy};
use rhyolite_store::Store;

use super::exit::{Failure, Status};
use super::{restore_all, store};
use crate::config::settings::{self, Settings};
use crate::config::units::parse_duration;
use crate::config::{DatabaseConfig, file};
use crate::epoch;
use crate::history::{HistoryError, HistoryOptions};
use crate::time;

/// Which stores.
#[derive(Args, Clone, Debug)]
pub(super) struct Stores {
    /// Store of one database; with --config, only that one of the file
    #[arg(value_name = "STORE", required_unless_present = "config")]
    store: Option<String>,
    /// Configuration file of `rhyolite replicate` that names stores, keys and rules
    #[arg(long, value_name = "PATH", env = "RHYOLITE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// What is kept.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct KeepArgs {
    /// Keep every commit restorable for this long (24h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    keep_every_commit: Option<Duration>,
    /// Keep one restore point per hour for this long (7d)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    keep_hourly: Option<Duration>,
    /// Keep one restore point per day for this long (30d)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    keep_daily: Option<Duration>,
}

/// When objects are rewritten.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct RewriteArgs {
    /// Bundle uploaded segments this often (5m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    bundle_interval: Option<Duration>,
    /// Merge bundles by page this often (1h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    merge_interval: Option<Duration>,
    /// Write a full snapshot this often (24h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    snapshot_interval: Option<Duration>,
}

/// When objects are deleted.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct GraceArgs {
    /// Leave what is no longer needed in the store for this long, for readers that still want it (1h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    retention_grace: Option<Duration>,
}

/// Settings from those flags that a command has.
pub(super) fn settings(keep: &KeepArgs, rewrite: &RewriteArgs, grace: &GraceArgs) -> Settings {
    Settings {
        bundle_interval: rewrite.bundle_interval,
        merge_interval: rewrite.merge_interval,
        snapshot_interval: rewrite.snapshot_interval,
        keep_every_commit: keep.keep_every_commit,
        keep_hourly: keep.keep_hourly,
        keep_daily: keep.keep_daily,
        retention_grace: grace.retention_grace,
        ..Settings::default()
    }
}

/// One store and its rules.
#[derive(Debug)]
pub(super) struct Subject {
    /// As the user wrote it.
    pub(super) url: String,
    /// Opened.
    pub(super) store: Arc<dyn Store>,
    /// What is kept, and when what is done.
    pub(super) config: DatabaseConfig,
}

impl Stores {
    /// All of them, opened. No request is made yet.
    pub(super) fn subjects(&self, settings: &Settings) -> Result<Vec<Subject>, Failure> {
        let configs = match &self.config {
            Some(path) => self.in_file(path, settings)?,
            None => {
                let store = self.store.clone().expect("required without a configuration");
                let mut config = DatabaseConfig::new(PathBuf::from("/"), store);
                settings.apply(&mut config);
                settings::validate(&config).map_err(Failure::usage)?;
                vec![config]
            }
        };
        let open = |config: DatabaseConfig| {
            let store = store::open_with(&config.store, &config.store_options())?;
            Ok(Subject { url: config.store.clone(), store, config })
        };
        configs.into_iter().map(open).collect()
    }

    fn in_file(&self, path: &Path, settings: &Settings) -> Result<Vec<DatabaseConfig>, Failure> {
        if *settings != Settings::default() {
            return Err(Failure::usage("the rules are in the configuration file: give either it or flags"));
        }
        let config = file::load(path, true)?;
        let mut databases = config.databases;
        for folder in &config.folders {
            databases.extend(store::block_on(restore_all::stored(folder))?);
        }
        if let Some(store) = &self.store {
            databases.retain(|database| database.store == *store);
        }
        if databases.is_empty() {
            let which = self.store.as_ref().map(|store| format!(" with the store {store}")).unwrap_or_default();
            return Err(Failure::usage(format!("{}: no database{which}", path.display())));
        }
        Ok(databases)
    }
}

impl Subject {
    /// What to look after, under the epoch of whoever holds the right to write.
    pub(super) async fn options(&self, duty: Duty) -> Result<HistoryOptions, Failure> {
        let found = epoch::of_holder(&*self.store).await.map_err(HistoryError::Manifest);
        let epoch: Epoch =
            found.and_then(|epoch| epoch.ok_or(HistoryError::NoManifest)).map_err(|e| self.failure(&e))?;
        let policy: Policy = self.config.history.clone();
        let store = Arc::clone(&self.store);
        Ok(HistoryOptions { store, policy, duty, epoch, now: time::now(), segments: None })
    }

    /// How an error ends the command.
    pub(super) fn failure(&self, error: &HistoryError) -> Failure {
        let what = format!("look after {}", self.url);
        match error {
            HistoryError::Read(error) => store::failure(&what, error),
            HistoryError::NoManifest => {
                let text = format!("cannot {what}: it holds no replicated database");
                Failure::new(Status::NoRestorePoint, text)
            }
            error => Failure::failed(format!("cannot {what}: {error}")),
        }
    }
}
