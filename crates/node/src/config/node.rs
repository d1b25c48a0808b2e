//! `node`: what `rhyolite node` is told by a file, before flags are laid over it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rhyolite_logic::pick::Pattern;
use serde::Deserialize;

use super::Credentials;
use super::cluster::{TlsFiles, Token};
use super::folder::FolderConfig;
use super::settings::{self, Settings};
use crate::durability::Level;

/// How long a holder of the lease that is not heard of keeps it. Long enough for two renewals to fail while a store hiccups, and for an
/// application to stop; a primary that is lost is missed for this time and a margin.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// The keys `node` and `cluster`, and the settings of its databases. What is missing may be given by flags; what depends on several keys is checked when
/// flags are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSection {
    /// Absolute path of the folder (`node.dir`).
    pub dir: Option<PathBuf>,
    /// Where it is mounted (`node.at`).
    pub at: Option<PathBuf>,
    /// The store of the cluster (`node.replica`).
    pub store: Option<String>,
    /// Keys of the store.
    pub credentials: Credentials,
    /// Address at which the other nodes are served (`cluster.listen`).
    pub listen: Option<SocketAddr>,
    /// Where they reach this one (`node.advertise`).
    pub advertise: Option<String>,
    /// Replicas that are dialed (`cluster.push-to`).
    pub push_to: Vec<String>,
    /// Where the primary dials (`node.accept`).
    pub accept: Option<SocketAddr>,
    /// What the nodes show each other (`cluster.token`).
    pub token: Option<Token>,
    /// By what they know each other (`cluster.tls`).
    pub tls: Option<TlsFiles>,
    /// Where the lease lies, as it was written (`node.lease`).
    pub lease: Option<String>,
    /// Whether it may become the primary (`node.candidate`).
    pub candidate: Option<bool>,
    /// On how many disks a commit is before it counts as safe (`node.durability`).
    pub durability: Option<DurabilityLevel>,
    /// How many nodes the cluster has (`node.nodes`).
    pub nodes: Option<u32>,
    /// How long a commit on the mount waits for other nodes (`node.durability-timeout`).
    pub durability_timeout: Option<Duration>,
    /// How applications on a replica write (`node.write-forwarding`).
    pub write_forwarding: Option<WriteForwarding>,
    /// The proxy (`node.proxy`).
    pub proxy: ProxySection,
    /// How databases are replicated.
    pub settings: Settings,
}

/// The values of `--durability` and `node.durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityLevel {
    /// This disk, and the store when it gets there
    Local,
    /// The disk of one other node
    Replica,
    /// The disks of a majority of the nodes
    Quorum,
}

/// The values of `--write-forwarding` and `node.write-forwarding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WriteForwarding {
    /// By `rhyolite run --write-lock` and over the control socket
    #[default]
    Explicit,
    /// Also by any application, on the mount
    Transparent,
}

/// How many nodes may be named.
pub const NODES: std::ops::RangeInclusive<i64> = 2..=33;

/// The keys of `node.proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySection {
    /// Where it listens.
    pub listen: Option<SocketAddr>,
    /// Where the application listens.
    pub target: Option<String>,
    /// Where an application listens that only reads.
    pub read_target: Option<String>,
    /// Where the other proxies reach this one.
    pub advertise: Option<String>,
    /// The database for whose commits clients wait.
    pub db: Option<String>,
    /// Paths that have nothing to do with the database.
    pub passthrough: Vec<String>,
    /// Paths that are written to by GET as well.
    pub always_forward: Vec<String>,
    /// How long a read waits for the database.
    pub read_wait: Option<Duration>,
    /// How long requests are held.
    pub hold: Option<Duration>,
    /// A replica that is farther behind is not healthy.
    pub max_lag: Option<Duration>,
    /// Answer writes on a replica with `fly-replay`.
    pub fly_replay: Option<bool>,
    /// Where what a write has committed must be before it is answered.
    pub durability: Option<Level>,
    /// The least that a client may ask for.
    pub durability_min: Option<Level>,
    /// How long an answer is held for that.
    pub durability_timeout: Option<Duration>,
}

/// The databases of a node: everything in its folder, under one lease.
///
/// # Errors
/// One line: settings contradict each other.
pub fn folder(
    dir: PathBuf,
    store: String,
    credentials: Credentials,
    settings: &Settings,
) -> Result<FolderConfig, String> {
    let mut folder = FolderConfig::everything(dir.clone(), dir, store);
    // What restores leave when they are cut off looks like a database.
    folder.pick.exclude.push(Pattern::new("*-rhyolite-*").expect("it is one"));
    folder.template.credentials = credentials;
    folder.template.lease.ttl = LEASE_TTL;
    settings.apply(&mut folder.template);
    settings::validate(&folder.template)?;
    folder.share_lease();
    Ok(folder)
}
