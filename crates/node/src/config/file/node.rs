//! The keys of `rhyolite node`.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{ConfigFile, DurationText, ReplicaFile, absolute, cluster_parts};
use crate::config::ConfigError;
use crate::config::folder::FolderConfig;
use crate::config::node::{DurabilityLevel, NODES, NodeSection, ProxySection, WriteForwarding, folder};
use crate::config::parse_addr;
use crate::durability::Level;
use crate::lease_place::LeaseUrl;

/// `node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NodeFile {
    /// Folder of the databases.
    pub dir: Option<String>,
    /// Where it is mounted.
    pub at: Option<String>,
    /// Store of the cluster.
    pub replica: ReplicaFile,
    /// Where the other nodes reach this one.
    pub advertise: Option<String>,
    /// Where the primary dials this node.
    pub accept: Option<Spanned<String>>,
    /// Where the lease lies.
    pub lease: Option<Spanned<String>>,
    /// Whether it may become the primary.
    pub candidate: Option<bool>,
    /// On how many disks a commit is before it counts as safe.
    pub durability: Option<DurabilityLevel>,
    /// How many nodes the cluster has.
    pub nodes: Option<Spanned<u32>>,
    /// How long a commit on the mount waits for other nodes.
    pub durability_timeout: Option<DurationText>,
    /// How applications on a replica write.
    pub write_forwarding: Option<WriteForwarding>,
    /// The proxy in front of the application.
    pub proxy: ProxyFile,
}

/// `node.proxy`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ProxyFile {
    /// See [`ProxySection::listen`].
    pub listen: Option<Spanned<String>>,
    /// See [`ProxySection::target`].
    pub target: Option<String>,
    /// See [`ProxySection::read_target`].
    pub read_target: Option<String>,
    /// See [`ProxySection::advertise`].
    pub advertise: Option<String>,
    /// See [`ProxySection::db`].
    pub db: Option<String>,
    /// See [`ProxySection::passthrough`].
    pub passthrough: Vec<String>,
    /// See [`ProxySection::always_forward`].
    pub always_forward: Vec<String>,
    /// See [`ProxySection::read_wait`].
    pub read_wait: Option<DurationText>,
    /// See [`ProxySection::hold`].
    pub hold: Option<DurationText>,
    /// See [`ProxySection::max_lag`].
    pub max_lag: Option<DurationText>,
    /// See [`ProxySection::fly_replay`].
    pub fly_replay: Option<bool>,
    /// See [`ProxySection::durability`].
    pub durability: Option<Level>,
    /// See [`ProxySection::durability_min`].
    pub durability_min: Option<Level>,
    /// See [`ProxySection::durability_timeout`].
    pub durability_timeout: Option<DurationText>,
}

/// What a file says of a node, and its databases where it says which they are.
pub(super) fn resolve(
    node: &Spanned<NodeFile>,
    file: &ConfigFile,
) -> Result<(NodeSection, Option<FolderConfig>), ConfigError> {
    let line = node.referenced.line();
    let node = &node.value;
    if let Some(entry) = file.dbs.first() {
        let text = "`dbs` has no effect beside `node`: the databases of a node are those in `node.dir`";
        return Err(ConfigError::at(entry.referenced.line(), text));
    }
    for (key, is_given) in [("enabled", file.lease.enabled.is_some()), ("url", file.lease.url.is_some())] {
        if is_given {
            let text =
                format!("lease.{key} has no effect beside `node`: `node.lease` says where the lease of a node lies");
            return Err(ConfigError::new(text));
        }
    }
    let mut settings = file.settings();
    settings.sync_interval = node.replica.sync_interval.or(file.sync_interval).map(|d| d.0);
    let at = |m: String| ConfigError::at(line, format!("node: {m}"));
    let store = if node.replica.is_empty() { None } else { Some(node.replica.store().map_err(at)?) };
    let credentials = node.replica.credentials(store.as_deref().unwrap_or_default()).map_err(at)?;
    if let Some(lease) = &node.lease {
        LeaseUrl::parse(&lease.value)
            .map_err(|m| ConfigError::at(lease.referenced.line(), format!("node.lease: {m}")))?;
    }
    let (listen, token, tls) = cluster_parts(&file.cluster)?;
    let section = NodeSection {
        dir: node.dir.as_deref().map(absolute).transpose().map_err(at)?,
        at: node.at.as_deref().map(absolute).transpose().map_err(at)?,
        store,
        credentials,
        listen,
        advertise: node.advertise.clone(),
        push_to: file.cluster.push_to.clone(),
        accept: address(node.accept.as_ref())?,
        token,
        tls,
        lease: node.lease.as_ref().map(|lease| lease.value.clone()),
        candidate: node.candidate,
        durability: node.durability,
        nodes: nodes(node.nodes.as_ref())?,
        durability_timeout: node.durability_timeout.map(|d| d.0),
        write_forwarding: node.write_forwarding,
        proxy: proxy(&node.proxy)?,
        settings,
    };
    let databases = section.dir.clone().zip(section.store.clone());
    let databases = databases.map(|(dir, store)| {
        folder(dir.canonicalize().unwrap_or(dir), store, section.credentials.clone(), &section.settings)
    });
    let databases = databases.transpose().map_err(ConfigError::new)?;
    Ok((section, databases))
}

fn nodes(nodes: Option<&Spanned<u32>>) -> Result<Option<u32>, ConfigError> {
    let Some(nodes) = nodes else { return Ok(None) };
    if NODES.contains(&i64::from(nodes.value)) {
        return Ok(Some(nodes.value));
    }
    let text = format!("node.nodes is {}, not {} to {}", nodes.value, NODES.start(), NODES.end());
    Err(ConfigError::at(nodes.referenced.line(), text))
}

fn address(text: Option<&Spanned<String>>) -> Result<Option<std::net::SocketAddr>, ConfigError> {
    let parse =
        |text: &Spanned<String>| parse_addr(&text.value).map_err(|m| ConfigError::at(text.referenced.line(), m));
    text.map(parse).transpose()
}

fn proxy(file: &ProxyFile) -> Result<ProxySection, ConfigError> {
    Ok(ProxySection {
        listen: address(file.listen.as_ref())?,
        target: file.target.clone(),
        read_target: file.read_target.clone(),
        advertise: file.advertise.clone(),
        db: file.db.clone(),
        passthrough: file.passthrough.clone(),
        always_forward: file.always_forward.clone(),
        read_wait: file.read_wait.map(|d| d.0),
        hold: file.hold.map(|d| d.0),
        max_lag: file.max_lag.map(|d| d.0),
        fly_replay: file.fly_replay,
        durability: file.durability,
        durability_min: file.durability_min,
        durability_timeout: file.durability_timeout.map(|d| d.0),
    })
}
