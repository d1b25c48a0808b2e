//! `rhyolite.yml`: the keys as they are written, and their resolution into a [`Config`].
//!
//! Key names are Litestream's where the meaning is the same. An unknown key is an error with its line. Keys that describe
//! how a database is replicated may also stand at the top of the file, as defaults for every database.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::cluster::{ClusterConfig, TlsFiles, Token};
use super::folder::FolderConfig;
use super::litestream::{self, Translation};
use super::settings::{self, Settings};
use super::units::{DurationText, SizeText, format_duration};
use super::{
    Config, ConfigError, Credentials, DEFAULT_SOCKET, DatabaseConfig, IfHeld, LogFormat, LogLevel, SocketConfig,
    expand, parse_addr, suggest,
};

mod folders;
mod node;

pub use node::{NodeFile, ProxyFile};

/// Most a configuration may hold: parsed values, which bounds what aliases can multiply.
const NODES_MAX: usize = 20_000;
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Declares a mapping of the file that carries the settings of databases beside its own keys.
macro_rules! with_settings {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
            /// See [`Settings::monitor_interval`].
            pub monitor_interval: Option<DurationText>,
            /// See [`Settings::busy_timeout`].
            pub busy_timeout: Option<DurationText>,
            /// See [`Settings::enable_wal`].
            pub enable_wal: Option<bool>,
            /// See [`Settings::checkpoint_interval`].
            pub checkpoint_interval: Option<DurationText>,
            /// See [`Settings::min_checkpoint_page_count`].
            pub min_checkpoint_page_count: Option<NonZeroU32>,
            /// See [`Settings::truncate_page_n`].
            pub truncate_page_n: Option<NonZeroU32>,
            /// See [`Settings::max_log_size`].
            pub max_log_size: Option<SizeText>,
            /// See [`Settings::max_segment_size`].
            pub max_segment_size: Option<SizeText>,
            /// See [`Settings::bundle_interval`].
            pub bundle: IntervalFile,
            /// See [`Settings::merge_interval`].
            pub merge: IntervalFile,
            /// See [`Settings::snapshot_interval`].
            pub snapshot: IntervalFile,
            /// What the store keeps.
            pub keep: KeepFile,
            /// The right to write.
            pub lease: LeaseFile,
            /// Who deletes, and when.
            pub retention: RetentionFile,
            /// Restore drills.
            pub drill: DrillFile,
        }

        impl $name {
            fn settings(&self) -> Settings {
                Settings {
                    sync_interval: None,
                    monitor_interval: self.monitor_interval.map(|d| d.0),
                    busy_timeout: self.busy_timeout.map(|d| d.0),
                    enable_wal: self.enable_wal,
                    checkpoint_interval: self.checkpoint_interval.map(|d| d.0),
                    min_checkpoint_page_count: self.min_checkpoint_page_count,
                    truncate_page_n: self.truncate_page_n,
                    max_log_size: self.max_log_size.map(|s| s.0),
                    max_segment_size: self.max_segment_size.map(|s| s.0),
                    bundle_interval: self.bundle.interval.map(|d| d.0),
                    merge_interval: self.merge.interval.map(|d| d.0),
                    snapshot_interval: self.snapshot.interval.map(|d| d.0),
                    keep_every_commit: self.keep.every_commit.map(|d| d.0),
                    keep_hourly: self.keep.hourly.map(|d| d.0),
                    keep_daily: self.keep.daily.map(|d| d.0),
                    lease: self.lease.enabled,
                    lease_ttl: self.lease.ttl.map(|d| d.0),
                    if_held: self.lease.if_held,
                    lease_url: self.lease.url.clone(),
                    retention_enabled: self.retention.enabled,
                    retention_grace: self.retention.grace.map(|d| d.0),
                    drill_interval: self.drill.interval.map(|d| d.0),
                    drill_sample: self.drill.sample.map(|s| s.0),
                }
            }
        }
    };
}

with_settings! {
    /// The whole file.
    pub struct ConfigFile {
        /// Address of the HTTP server.
        pub addr: Option<Spanned<String>>,
        /// Command to run beside replication.
        pub exec: Option<String>,
        /// How long the last upload may take at the end.
        pub shutdown_sync_timeout: Option<DurationText>,
        /// What is logged, and how.
        pub logging: LoggingFile,
        /// The control socket.
        pub socket: SocketFile,
        /// What others may follow.
        pub cluster: ClusterFile,
        /// A node of a cluster.
        pub node: Option<Spanned<NodeFile>>,
        /// Default of `replica.sync-interval`.
        pub sync_interval: Option<DurationText>,
        /// The databases.
        pub dbs: Vec<Spanned<DatabaseFile>>,
    }
}

with_settings! {
    /// One entry of `dbs`.
    pub struct DatabaseFile {
        /// Path of the database, or a pattern.
        pub path: Option<String>,
        /// Folder of databases.
        pub dir: Option<String>,
        /// Which files in it.
        pub pattern: Option<String>,
        /// Further patterns.
        pub include: Vec<String>,
        /// Patterns of what is left out.
        pub exclude: Vec<String>,
        /// Folders below it too.
        pub recursive: Option<bool>,
        /// Databases come and go.
        pub watch: Option<bool>,
        /// State folder.
        pub meta_path: Option<String>,
        /// Root of the state folders.
        pub meta_dir: Option<String>,
        /// The store.
        pub replica: ReplicaFile,
    }
}

/// `logging`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LoggingFile {
    /// Least severity that is logged.
    pub level: Option<LogLevel>,
    /// Text or JSON.
    pub r#type: Option<LogFormat>,
}

/// `socket`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct SocketFile {
    /// Whether there is one.
    pub enabled: Option<bool>,
    /// Where.
    pub path: Option<String>,
    /// Octal file mode.
    pub permissions: Option<String>,
}

/// `cluster`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ClusterFile {
    /// Address at which followers are served.
    pub listen: Option<Spanned<String>>,
    /// Replicas that are dialed.
    pub push_to: Vec<String>,
    /// Secret that they must show.
    pub token: Option<String>,
    /// How the node proves who it is.
    pub tls: TlsFile,
}

/// `cluster.tls`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TlsFile {
    /// PEM file with the certificate.
    pub cert: Option<String>,
    /// PEM file with its private key.
    pub key: Option<String>,
    /// PEM file with the certificates of those who vouch for followers.
    pub client_ca: Option<String>,
}

impl std::fmt::Debug for ClusterFile {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterFile").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// `bundle`, `merge` and `snapshot`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct IntervalFile {
    /// How often.
    pub interval: Option<DurationText>,
}

/// `keep`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct KeepFile {
    /// See [`Settings::keep_every_commit`].
    pub every_commit: Option<DurationText>,
    /// See [`Settings::keep_hourly`].
    pub hourly: Option<DurationText>,
    /// See [`Settings::keep_daily`].
    pub daily: Option<DurationText>,
}

/// `lease`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LeaseFile {
    /// See [`Settings::lease`].
    pub enabled: Option<bool>,
    /// See [`Settings::lease_ttl`].
    pub ttl: Option<DurationText>,
    /// See [`Settings::if_held`].
    pub if_held: Option<IfHeld>,
    /// See [`Settings::lease_url`].
    pub url: Option<String>,
}

/// `retention`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RetentionFile {
    /// See [`Settings::retention_enabled`].
    pub enabled: Option<bool>,
    /// See [`Settings::retention_grace`].
    pub grace: Option<DurationText>,
}

/// `drill`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DrillFile {
    /// See [`Settings::drill_interval`].
    pub interval: Option<DurationText>,
    /// See [`Settings::drill_sample`].
    pub sample: Option<SizeText>,
}

/// `replica`: a URL, or its parts.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ReplicaFile {
    /// The store as on the command line. Excludes the parts.
    pub url: Option<String>,
    /// Kind of store of which the parts follow.
    pub r#type: Option<ReplicaType>,
    /// Folder, or prefix in the bucket.
    pub path: Option<String>,
    /// Bucket or container.
    pub bucket: Option<String>,
    /// S3: region.
    pub region: Option<String>,
    /// URL of another server.
    pub endpoint: Option<String>,
    /// S3: which service it is, when its host does not tell.
    pub provider: Option<String>,
    /// S3: bucket in the path of requests, not in the host name.
    pub force_path_style: Option<bool>,
    /// Trust any certificate.
    pub skip_verify: Option<bool>,
    /// Azure: the storage account.
    pub account_name: Option<String>,
    /// S3: id of the key, with or without a URL.
    pub access_key_id: Option<String>,
    /// S3: the key.
    pub secret_access_key: Option<String>,
    /// Azure: key of the account.
    pub account_key: Option<String>,
    /// SFTP: name or address of the server, with its port.
    pub host: Option<String>,
    /// SFTP: the user.
    pub user: Option<String>,
    /// SFTP: the user's password, with or without a URL.
    pub password: Option<String>,
    /// SFTP: file with the user's key.
    pub key_path: Option<String>,
    /// SFTP: the server's key.
    pub host_key: Option<String>,
    /// WebDAV: URL of the server.
    pub webdav_url: Option<String>,
    /// WebDAV: the user, with or without a URL.
    pub webdav_username: Option<String>,
    /// WebDAV: the user's password, with or without a URL.
    pub webdav_password: Option<String>,
    /// See [`Settings::sync_interval`].
    pub sync_interval: Option<DurationText>,
}

impl std::fmt::Debug for ReplicaFile {
    /// Without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaFile").field("type", &self.r#type).field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// `replica.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaType {
    /// A folder.
    File,
    /// S3 and compatible services.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Abs,
    /// A server that is reached by SFTP.
    Sftp,
    /// A WebDAV server.
    Webdav,
}

/// Reads and resolves the file at `path`; `$` is left alone when `expand_env` is false.
///
/// # Errors
/// The file cannot be read, or something in it is wrong; with file and line.
pub fn load(path: &Path, expand_env: bool) -> Result<Config, ConfigError> {
    let text = read(path).map_err(ConfigError::new).map_err(|e| e.in_file(path))?;
    if litestream::is_litestreams(path) {
        return load_translated(&text, expand_env).map_err(|e| e.in_file(path));
    }
    let parsed = if expand_env {
        expand::expand(&text, |name| std::env::var(name).ok()).and_then(|text| parse(&text))
    } else {
        parse(&text)
    };
    parsed.map_err(|e| e.in_file(path))
}

/// A configuration of Litestream's. Lines of the translation say nothing to whoever wrote the file.
fn load_translated(text: &str, expand_env: bool) -> Result<Config, ConfigError> {
    let Translation { text, notes } = litestream::translate(text)?;
    let expanded = if expand_env { expand::expand(&text, |name| std::env::var(name).ok()) } else { Ok(text) };
    let parsed = expanded.and_then(|text| parse(&text));
    let config = parsed.map_err(|e| ConfigError::new(format!("in its translation: {}", e.message)))?;
    Ok(Config { notes, ..config })
}

/// Reads a file of Litestream's and translates it.
///
/// # Errors
/// The file cannot be read, or cannot be translated.
pub fn translate(path: &Path) -> Result<Translation, ConfigError> {
    let text = read(path).map_err(ConfigError::new);
    text.and_then(|text| litestream::translate(&text)).map_err(|e| e.in_file(path))
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| super::io_text(&e))?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{size} bytes are too many for a configuration file (at most {FILE_BYTES_MAX})"));
    }
    std::fs::read_to_string(path).map_err(|e| super::io_text(&e))
}

/// Reads and resolves the text of a file, with variables already replaced.
///
/// # Errors
/// Something in it is wrong; with the line.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    resolve(&parse_yaml(text)?)
}

fn parse_yaml(text: &str) -> Result<ConfigFile, ConfigError> {
    parse_as(text)
}

/// Reads YAML within the bounds of a configuration.
pub(super) fn parse_as<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let budget = serde_saphyr::budget! { max_nodes: NODES_MAX };
    let options = serde_saphyr::options! { budget: budget, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| yaml_error(&e))
}

fn yaml_error(error: &serde_saphyr::Error) -> ConfigError {
    let error = error.without_snippet();
    let message = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
        serde_saphyr::Error::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
        other => message_alone(&other.render()),
    };
    ConfigError { file: None, line: error.location().map(|l| l.line()), message }
}

/// The parser's message as one line, without the place, which is said in our own way.
fn message_alone(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.rfind(" at line ").unwrap_or(line.len());
    line[..end].to_owned()
}

fn unknown(what: &str, word: &str, known: &[&'static str]) -> String {
    if let Some(hint) = suggest::litestream_key(word) {
        return format!("unknown {what} `{word}`: {hint}");
    }
    match suggest::nearest(word, known.iter().copied()) {
        Some(near) => format!("unknown {what} `{word}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{word}`; known here: {}", known.join(", ")),
    }
}

/// Fills in defaults and checks what the types cannot.
fn resolve(file: &ConfigFile) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    if let Some(addr) = &file.addr {
        config.addr = Some(parse_addr(&addr.value).map_err(|m| ConfigError::at(addr.referenced.line(), m))?);
    }
    config.exec.clone_from(&file.exec);
    config.logging.level = file.logging.level.unwrap_or(config.logging.level);
    config.logging.format = file.logging.r#type.unwrap_or(config.logging.format);
    config.shutdown_sync_timeout = file.shutdown_sync_timeout.map_or(config.shutdown_sync_timeout, |d| d.0);
    let mut defaults = file.settings();
    defaults.sync_interval = file.sync_interval.map(|d| d.0);
    config.socket = resolve_socket(&file.socket).map_err(ConfigError::new)?;
    if let Some(section) = &file.node {
        let (node, databases) = node::resolve(section, file)?;
        config.node = Some(node);
        config.folders.extend(databases);
        return Ok(config);
    }
    config.cluster = resolve_cluster(&file.cluster)?;
    let mut taken = Taken::default();
    for entry in &file.dbs {
        let line = entry.referenced.line();
        let resolved = folders::resolve(&entry.value, &defaults).map_err(|m| ConfigError::at(line, m))?;
        match resolved {
            Some(folder) => {
                taken.folder(&folder, line)?;
                config.folders.push(folder);
            }
            None => {
                let database = resolve_database(&entry.value, &defaults).map_err(|m| ConfigError::at(line, m))?;
                taken.database(&database, line)?;
                config.databases.push(database);
            }
        }
    }
    Ok(config)
}

/// Address, token and certificates of `cluster`.
type ClusterParts = (Option<SocketAddr>, Option<Token>, Option<TlsFiles>);

/// What belongs together is not looked at yet.
fn cluster_parts(file: &ClusterFile) -> Result<ClusterParts, ConfigError> {
    let token = file.token.clone().map(Token::new).transpose();
    let token = token.map_err(|m| ConfigError::new(format!("cluster.token: {m}")))?;
    let TlsFile { cert, key, client_ca } = &file.tls;
    let path = |path: &Option<String>| path.as_deref().map(absolute).transpose().map_err(ConfigError::new);
    let tls = TlsFiles::new(path(cert)?, path(key)?, path(client_ca)?);
    let tls = tls.map_err(|m| ConfigError::new(format!("cluster.tls: {m}")))?;
    let listen = file.listen.as_ref().map(|text| (parse_addr(&text.value), text.referenced.line()));
    let listen = listen.map(|(address, line)| address.map_err(|m| ConfigError::at(line, m))).transpose()?;
    Ok((listen, token, tls))
}

fn resolve_cluster(file: &ClusterFile) -> Result<Option<ClusterConfig>, ConfigError> {
    let (listen, token, tls) = cluster_parts(file)?;
    let (has_token, has_tls) = (token.is_some(), tls.is_some());
    let line = file.listen.as_ref().map_or(0, |listen| listen.referenced.line());
    let cluster = ClusterConfig::new(listen, &file.push_to, token, tls).map_err(|m| ConfigError::at(line, m))?;
    let no_effect =
        |key| Err(ConfigError::new(format!("{key} has no effect without cluster.listen or cluster.push-to")));
    match (cluster.has_effect(), has_token, has_tls) {
        (true, ..) => Ok(Some(cluster)),
        (false, true, _) => no_effect("cluster.token"),
        (false, _, true) => no_effect("cluster.tls"),
        (false, false, false) => Ok(None),
    }
}

fn resolve_database(file: &DatabaseFile, defaults: &Settings) -> Result<DatabaseConfig, String> {
    let name = file.path.as_deref().filter(|path| !path.is_empty()).ok_or("a database needs a `path`")?;
    let path = absolute(name)?;
    let store = file.replica.store().map_err(|m| format!("database {name}: {m}"))?;
    let credentials = file.replica.credentials(&store).map_err(|m| format!("database {name}: {m}"))?;
    let mut config = DatabaseConfig { credentials, ..DatabaseConfig::new(path, store) };
    if let Some(meta_path) = &file.meta_path {
        config.meta_path = absolute(meta_path)?;
    }
    apply_settings(file, defaults, &mut config).map_err(|m| format!("database {name}: {m}"))?;
    Ok(config)
}

fn apply_settings(file: &DatabaseFile, defaults: &Settings, config: &mut DatabaseConfig) -> Result<(), String> {
    defaults.apply(config);
    let mut own = file.settings();
    own.sync_interval = file.replica.sync_interval.map(|d| d.0);
    own.apply(config);
    settings::validate(config)
}

fn resolve_socket(file: &SocketFile) -> Result<Option<SocketConfig>, String> {
    if file.enabled != Some(true) {
        // Where it would be may stay written.
        return Ok(None);
    }
    let path = absolute(file.path.as_deref().unwrap_or(DEFAULT_SOCKET))?;
    let digits = file.permissions.as_deref().unwrap_or("600").trim_start_matches("0o");
    let permissions = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
    let permissions =
        permissions.ok_or_else(|| format!("socket.permissions: {digits} is no file mode such as 0600"))?;
    Ok(Some(SocketConfig { path, permissions }))
}

/// `text` as an absolute path, with `~/` for the home folder.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let home = || std::env::var_os("HOME").map(PathBuf::from).ok_or_else(|| format!("{text}: HOME is not set"));
    let path = match text.strip_prefix("~/") {
        Some(rest) => home()?.join(rest),
        None => PathBuf::from(text),
    };
    std::path::absolute(&path).map_err(|e| format!("{text}: {}", super::io_text(&e)))
}

/// What entries claim for themselves: two with one database, one state folder or one store would destroy each other's history.
#[derive(Default)]
struct Taken {
    claims: HashMap<(&'static str, String), u64>,
    /// Leases that several may share, by their stores, with the line that names each first.
    leases: HashMap<String, (Duration, u64)>,
}

impl Taken {
    fn database(&mut self, database: &DatabaseConfig, line: u64) -> Result<(), ConfigError> {
        let path = database.path.display().to_string();
        let meta_path = database.meta_path.display().to_string();
        self.lease(database, line)?;
        self.claim([("path", path), ("meta-path", meta_path), ("store", database.store.clone())], line)
    }

    /// A lease runs out at one time for all who share it.
    fn lease(&mut self, config: &DatabaseConfig, line: u64) -> Result<(), ConfigError> {
        let (Some(store), true) = (&config.lease.store, config.lease.enabled) else { return Ok(()) };
        let (ttl, first) = *self.leases.entry(store.clone()).or_insert((config.lease.ttl, line));
        if ttl == config.lease.ttl {
            return Ok(());
        }
        let (theirs, ours) = (format_duration(ttl), format_duration(config.lease.ttl));
        let message = format!("lease.ttl is {ours}, and {theirs} for the same lease ({store}) on line {first}");
        Err(ConfigError::at(line, message))
    }

    fn folder(&mut self, folder: &FolderConfig, line: u64) -> Result<(), ConfigError> {
        let patterns: Vec<_> = folder.pick.include.iter().map(ToString::to_string).collect();
        let files = format!("{}/{}", folder.dir.display(), patterns.join(","));
        self.lease(&folder.template, line)?;
        self.claim([("dir and pattern", files), ("store", folder.template.store.clone())], line)
    }

    fn claim(
        &mut self,
        claims: impl IntoIterator<Item = (&'static str, String)>,
        line: u64,
    ) -> Result<(), ConfigError> {
        for (what, value) in claims {
            if let Some(first) = self.claims.insert((what, value.clone()), line) {
                let message = format!("{what} {value} is already used by the database on line {first}");
                return Err(ConfigError::at(line, message));
            }
        }
        Ok(())
    }
}

impl ReplicaFile {
    /// Names of the parts of a URL that are given, with their values.
    fn options(&self) -> Vec<(&'static str, String)> {
        let flag = |value: Option<bool>| value.map(|v| v.to_string());
        let options = [
            ("region", self.region.clone()),
            ("endpoint", self.endpoint.clone()),
            ("provider", self.provider.clone()),
            ("force-path-style", flag(self.force_path_style)),
            ("skip-verify", flag(self.skip_verify)),
            ("account", self.account_name.clone()),
            ("key-path", self.key_path.clone()),
            ("host-key", self.host_key.clone()),
        ];
        options.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Whether nothing is said of a store.
    fn is_empty(&self) -> bool {
        let Self { url, r#type, path, bucket, host, user, webdav_url, .. } = self;
        let parts = [url, path, bucket, host, user, webdav_url];
        r#type.is_none() && parts.iter().all(|part| part.is_none()) && self.options().is_empty()
    }

    /// The store's URL, from `url` or from the parts.
    fn store(&self) -> Result<String, String> {
        let parts = [
            ("type", self.r#type.is_some()),
            ("path", self.path.is_some()),
            ("bucket", self.bucket.is_some()),
            ("host", self.host.is_some()),
            ("user", self.user.is_some()),
            ("webdav-url", self.webdav_url.is_some()),
        ];
        let part = parts.iter().find(|(_, given)| *given).map(|(name, _)| *name);
        let part = part.or_else(|| self.options().first().map(|(name, _)| *name));
        match (&self.url, part) {
            (Some(_), Some(part)) => Err(format!("replica.url excludes replica.{part}: put it into the URL")),
            (Some(url), None) => Ok(url.clone()),
            (None, _) => self.url_of_parts(),
        }
    }

    fn url_of_parts(&self) -> Result<String, String> {
        let kind = self.r#type.ok_or("a database needs `replica.url`, or `replica.type` with `path` or `bucket`")?;
        self.check_parts(kind)?;
        let scheme = match kind {
            ReplicaType::File if self.bucket.is_some() || !self.options().is_empty() => {
                return Err("replica.type file takes only `path`".to_owned());
            }
            ReplicaType::File => {
                let path = self.path.as_ref().ok_or("replica.type file needs `path`")?;
                return Ok(absolute(path)?.display().to_string());
            }
            ReplicaType::S3 => "s3",
            ReplicaType::Gs => "gs",
            ReplicaType::Abs => "abs",
            ReplicaType::Sftp => return Ok(self.with_options(self.sftp_url()?)),
            ReplicaType::Webdav => return Ok(self.with_options(self.webdav_store()?)),
        };
        let bucket = self.bucket.as_ref().ok_or_else(|| format!("replica.type {scheme} needs `bucket`"))?;
        let path = self.path.as_deref().unwrap_or("").trim_matches('/');
        Ok(self.with_options(format!("{scheme}://{bucket}/{path}")))
    }

    /// Keys that belong to another kind of store would have no effect. Options are checked when the URL is understood.
    fn check_parts(&self, kind: ReplicaType) -> Result<(), String> {
        let (is_sftp, is_webdav) = (kind == ReplicaType::Sftp, kind == ReplicaType::Webdav);
        let parts = [
            ("bucket", self.bucket.is_some(), !is_sftp && !is_webdav),
            ("host", self.host.is_some(), is_sftp),
            ("user", self.user.is_some(), is_sftp),
            ("webdav-url", self.webdav_url.is_some(), is_webdav),
        ];
        match parts.iter().find(|(_, given, has_effect)| *given && !has_effect) {
            Some((name, ..)) => Err(format!("replica.{name} has no effect on this replica.type")),
            None => Ok(()),
        }
    }

    /// A path that does not begin with a slash is below the user's home folder, as Litestream has it.
    fn sftp_url(&self) -> Result<String, String> {
        let host = self.host.as_ref().ok_or("replica.type sftp needs `host`")?;
        let path = self.path.as_ref().ok_or("replica.type sftp needs `path`")?;
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let path = if path.starts_with('/') { path.clone() } else { format!("/~/{path}") };
        Ok(format!("sftp://{user}{host}{}", path.replace('%', "%25").replace('?', "%3F")))
    }

    /// `http` and `https` as Litestream's key has them become our schemes.
    fn webdav_store(&self) -> Result<String, String> {
        let given = self.webdav_url.as_ref().ok_or("replica.type webdav needs `webdav-url`")?;
        let url = match given.split_once("://") {
            Some(("http" | "webdav", rest)) => format!("webdav://{rest}"),
            Some(("https" | "webdavs", rest)) => format!("webdavs://{rest}"),
            _ => return Err(format!("replica.webdav-url {given:?} does not begin with http:// or https://")),
        };
        if url.contains('?') {
            return Err("replica.webdav-url has options: put the whole into replica.url".to_owned());
        }
        let path = self.path.as_deref().unwrap_or("").trim_matches('/').replace('%', "%25").replace('?', "%3F");
        Ok(format!("{}/{path}", url.trim_end_matches('/')))
    }

    /// The URL with what else is given behind it.
    fn with_options(&self, mut url: String) -> String {
        for (index, (name, value)) in self.options().iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            url.push_str(&format!("{separator}{name}={}", query_value(value)));
        }
        url
    }

    /// The environment variables that carry the keys. A key for another kind of store would have no effect.
    fn credentials(&self, store: &str) -> Result<Credentials, String> {
        let s3 = [
            ("access-key-id", "AWS_ACCESS_KEY_ID", &self.access_key_id),
            ("secret-access-key", "AWS_SECRET_ACCESS_KEY", &self.secret_access_key),
        ];
        let azure = [("account-key", "AZURE_STORAGE_ACCOUNT_KEY", &self.account_key)];
        let sftp = [("password", "SFTP_PASSWORD", &self.password)];
        let webdav = [
            ("webdav-username", "WEBDAV_USERNAME", &self.webdav_username),
            ("webdav-password", "WEBDAV_PASSWORD", &self.webdav_password),
        ];
        let mut credentials = Credentials::default();
        let kinds = [
            (&s3[..], &["s3"][..], "S3"),
            (&azure[..], &["abs", "az"][..], "Azure"),
            (&sftp[..], &["sftp"][..], "SFTP"),
            (&webdav[..], &["webdav", "webdavs"][..], "WebDAV"),
        ];
        for (keys, schemes, kind) in kinds {
            for (key, variable, value) in keys {
                let Some(value) = value else { continue };
                if !schemes.iter().any(|scheme| store.starts_with(&format!("{scheme}://"))) {
                    return Err(format!("replica.{key} is for {kind}, but the store is another kind"));
                }
                credentials.0.insert((*variable).to_owned(), value.clone());
            }
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err("replica.access-key-id and replica.secret-access-key go together".to_owned());
        }
        Ok(credentials)
    }
}

/// Escapes what would end a value in the query of a URL.
fn query_value(value: &str) -> String {
    let escape = |c: char| match c {
        '&' | '#' | '%' | '+' | ' ' => format!("%{:02X}", c as u32),
        c => c.to_string(),
    };
    value.chars().map(escape).collect()
}
