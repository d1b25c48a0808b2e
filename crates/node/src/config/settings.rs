//! Settings of one database that may come from a flag, from the database's entry in the file, or from the top of the file.
//!
//! One list serves all three; a later [`Settings::apply`] wins over an earlier one.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use rhyolite_logic::history_plan::Duty;

use super::units::{format_duration, format_size, parse_duration, parse_size};
use super::{DatabaseConfig, IfHeld};

/// What may be set for a database; `None` leaves what was there.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Database settings (defaults in parentheses)")]
pub struct Settings {
    /// Collect commits this long before uploading them; 0 uploads each commit at once (1s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub sync_interval: Option<Duration>,
    /// Look at a database that seems idle at least this often (1s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub monitor_interval: Option<Duration>,
    /// Wait this long for SQLite's locks (1s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub busy_timeout: Option<Duration>,
    /// Switch a database that is in rollback journal mode to WAL mode (true or false; false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_wal: Option<bool>,
    /// Checkpoint a WAL that is not empty after this time even when it is small; 0 never (1m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub checkpoint_interval: Option<Duration>,
    /// Checkpoint before the WAL holds more pages than this (1000)
    #[arg(long, value_name = "PAGES")]
    pub min_checkpoint_page_count: Option<NonZeroU32>,
    /// Truncate the WAL file as well when it holds this many pages (121359)
    #[arg(long, value_name = "PAGES")]
    pub truncate_page_n: Option<NonZeroU32>,
    /// Let the local log grow to this size while the store is away (1GiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_log_size: Option<u64>,
    /// Upload a segment before its interval ends when it reaches this size (8MiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_segment_size: Option<u64>,
    /// Bundle uploaded segments this often (5m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub bundle_interval: Option<Duration>,
    /// Merge bundles by page this often (1h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub merge_interval: Option<Duration>,
    /// Write a full snapshot this often (24h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub snapshot_interval: Option<Duration>,
    /// Keep every commit restorable for this long (24h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub keep_every_commit: Option<Duration>,
    /// Keep one restore point per hour for this long (7d)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub keep_hourly: Option<Duration>,
    /// Keep one restore point per day for this long (30d)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub keep_daily: Option<Duration>,
    /// Hold a lease in the store, so that two processes cannot write there at a time. A flag of the commands, because it is another one for a node
    /// of a cluster.
    #[arg(skip)]
    pub lease: Option<bool>,
    /// A holder of the lease that is not heard of keeps it this long (1m)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub lease_ttl: Option<Duration>,
    /// While another process holds the lease: wait, and take over; or exit (wait)
    #[arg(long, value_name = "WHAT")]
    pub if_held: Option<IfHeld>,
    /// Where the lease lies, when several databases share one. A flag of the command, because it has no default.
    #[arg(skip)]
    pub lease_url: Option<String>,
    /// Expire restore points and delete what is no longer needed; false leaves that to `rhyolite prune` (true or false; true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub retention_enabled: Option<bool>,
    /// Leave what is no longer needed in the store for this long, for readers that still want it (1h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub retention_grace: Option<Duration>,
    /// Prove this often that the store can be restored; 0 never (24h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub drill_interval: Option<Duration>,
    /// Prove about so many bytes of a database that is larger, other ones each time (1GiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub drill_sample: Option<u64>,
}

fn set<T: Copy>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

impl Settings {
    /// What is set here, and otherwise what is set there.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            sync_interval: self.sync_interval.or(other.sync_interval),
            monitor_interval: self.monitor_interval.or(other.monitor_interval),
            busy_timeout: self.busy_timeout.or(other.busy_timeout),
            enable_wal: self.enable_wal.or(other.enable_wal),
            checkpoint_interval: self.checkpoint_interval.or(other.checkpoint_interval),
            min_checkpoint_page_count: self.min_checkpoint_page_count.or(other.min_checkpoint_page_count),
            truncate_page_n: self.truncate_page_n.or(other.truncate_page_n),
            max_log_size: self.max_log_size.or(other.max_log_size),
            max_segment_size: self.max_segment_size.or(other.max_segment_size),
            bundle_interval: self.bundle_interval.or(other.bundle_interval),
            merge_interval: self.merge_interval.or(other.merge_interval),
            snapshot_interval: self.snapshot_interval.or(other.snapshot_interval),
            keep_every_commit: self.keep_every_commit.or(other.keep_every_commit),
            keep_hourly: self.keep_hourly.or(other.keep_hourly),
            keep_daily: self.keep_daily.or(other.keep_daily),
            lease: self.lease.or(other.lease),
            lease_ttl: self.lease_ttl.or(other.lease_ttl),
            if_held: self.if_held.or(other.if_held),
            lease_url: self.lease_url.clone().or(other.lease_url.clone()),
            retention_enabled: self.retention_enabled.or(other.retention_enabled),
            retention_grace: self.retention_grace.or(other.retention_grace),
            drill_interval: self.drill_interval.or(other.drill_interval),
            drill_sample: self.drill_sample.or(other.drill_sample),
        }
    }

    /// Puts what is set here into `config`.
    pub fn apply(&self, config: &mut DatabaseConfig) {
        set(&mut config.sync_interval, self.sync_interval);
        set(&mut config.monitor_interval, self.monitor_interval);
        set(&mut config.busy_timeout, self.busy_timeout);
        set(&mut config.enable_wal, self.enable_wal);
        set(&mut config.checkpoint.interval, self.checkpoint_interval);
        set(&mut config.checkpoint.pages_min, self.min_checkpoint_page_count.map(NonZeroU32::get));
        set(&mut config.checkpoint.truncate_pages, self.truncate_page_n.map(NonZeroU32::get));
        set(&mut config.log_bytes_max, self.max_log_size);
        set(&mut config.segment_bytes_max, self.max_segment_size);
        set(&mut config.history.bundle_interval, self.bundle_interval);
        set(&mut config.history.merge_interval, self.merge_interval);
        set(&mut config.history.snapshot_interval, self.snapshot_interval);
        set(&mut config.history.keep_every_commit, self.keep_every_commit);
        set(&mut config.history.keep_hourly, self.keep_hourly);
        set(&mut config.history.keep_daily, self.keep_daily);
        set(&mut config.lease.enabled, self.lease);
        set(&mut config.lease.ttl, self.lease_ttl);
        set(&mut config.lease.if_held, self.if_held);
        if self.lease_url.is_some() {
            config.lease.store.clone_from(&self.lease_url);
        }
        set(&mut config.duty, self.retention_enabled.map(|enabled| if enabled { Duty::All } else { Duty::Compact }));
        set(&mut config.history.grace, self.retention_grace);
        set(&mut config.drill.interval, self.drill_interval);
        set(&mut config.drill.sample_bytes, self.drill_sample);
    }
}

/// The smallest segment and local log that make sense: one page of the largest size and what goes around it.
const BYTES_MIN: u64 = 128 << 10;
/// Below these, looking would cost more than it finds, and rewriting more than it saves.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);
const HISTORY_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A shorter lease would be lost by every hiccup.
const LEASE_TTL_MIN: Duration = Duration::from_secs(1);

/// Checks what no single value can show.
///
/// # Errors
/// One line that names the settings and their values.
pub fn validate(config: &DatabaseConfig) -> Result<(), String> {
    let history = &config.history;
    let durations = [
        ("monitor-interval", config.monitor_interval, LOOK_INTERVAL_MIN),
        ("bundle.interval", history.bundle_interval, HISTORY_INTERVAL_MIN),
        ("merge.interval", history.merge_interval, HISTORY_INTERVAL_MIN),
        ("snapshot.interval", history.snapshot_interval, HISTORY_INTERVAL_MIN),
        ("lease.ttl", config.lease.ttl, LEASE_TTL_MIN),
        ("retention.grace", history.grace, HISTORY_INTERVAL_MIN),
    ];
    if let Some((name, value, min)) = durations.iter().find(|(_, value, min)| value < min) {
        return Err(format!("{name} is {}, but must be at least {}", format_duration(*value), format_duration(*min)));
    }
    let sizes = [("max-segment-size", config.segment_bytes_max), ("max-log-size", config.log_bytes_max)];
    if let Some((name, value)) = sizes.iter().find(|(_, value)| *value < BYTES_MIN) {
        return Err(format!("{name} is {}, but must be at least {}", format_size(*value), format_size(BYTES_MIN)));
    }
    let drill = config.drill.interval;
    if !drill.is_zero() && drill < HISTORY_INTERVAL_MIN {
        let (drill, min) = (format_duration(drill), format_duration(HISTORY_INTERVAL_MIN));
        return Err(format!("drill.interval is {drill}, but must be 0 or at least {min}"));
    }
    let ordered = [
        ("bundle.interval", history.bundle_interval, "merge.interval", history.merge_interval),
        ("merge.interval", history.merge_interval, "snapshot.interval", history.snapshot_interval),
    ];
    if let Some((low, a, high, b)) = ordered.iter().find(|(_, a, _, b)| a > b) {
        let (a, b) = (format_duration(*a), format_duration(*b));
        return Err(format!("{low} ({a}) must not be longer than {high} ({b})"));
    }
    let checkpoint = &config.checkpoint;
    if checkpoint.truncate_pages < checkpoint.pages_min {
        let (truncate, min) = (checkpoint.truncate_pages, checkpoint.pages_min);
        return Err(format!("truncate-page-n ({truncate}) must not be less than min-checkpoint-page-count ({min})"));
    }
    if config.log_bytes_max < config.segment_bytes_max {
        let (log, segment) = (format_size(config.log_bytes_max), format_size(config.segment_bytes_max));
        return Err(format!("max-log-size ({log}) must not be less than max-segment-size ({segment})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::config::LeaseConfig;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    /// The text in the last parentheses of a flag's help.
    fn stated_default(help: &str) -> &str {
        let inside =
            help.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).expect("a default in parentheses");
        inside.rsplit("; ").next().expect("split gives one")
    }

    #[test]
    fn the_help_states_the_defaults() {
        let command = Flags::command();
        let flags = command.get_arguments().filter(|a| a.get_id() != "help").map(|argument| {
            let help = argument.get_help().expect("every setting has help").to_string();
            format!("--{}={}", argument.get_long().expect("settings are long"), stated_default(&help))
        });
        let flags: Vec<_> = std::iter::once("rhyolite".to_owned()).chain(flags).collect();
        let settings = Flags::try_parse_from(&flags).expect("defaults parse").settings;
        let default = DatabaseConfig::new("/a.db".into(), "./a".to_owned());
        let hour = Duration::from_secs(3_600);
        let mut config = DatabaseConfig {
            sync_interval: hour,
            monitor_interval: hour,
            busy_timeout: hour,
            enable_wal: true,
            checkpoint: crate::config::CheckpointConfig { pages_min: 1, interval: hour, truncate_pages: 1 },
            log_bytes_max: 0,
            segment_bytes_max: 0,
            ..default.clone()
        };
        config.history.bundle_interval = Duration::ZERO;
        config.history.merge_interval = Duration::ZERO;
        config.history.snapshot_interval = Duration::ZERO;
        config.history.keep_every_commit = Duration::ZERO;
        config.history.keep_hourly = Duration::ZERO;
        config.history.keep_daily = Duration::ZERO;
        config.lease = LeaseConfig { enabled: true, ttl: hour, if_held: IfHeld::Exit, store: None, meta_path: None };
        config.history.grace = Duration::ZERO;
        config.duty = Duty::Prune;
        config.drill = crate::config::DrillConfig { interval: Duration::ZERO, sample_bytes: 0 };
        settings.apply(&mut config);
        assert_eq!(config, default);
        assert_eq!(validate(&default), Ok(()));
    }
}
