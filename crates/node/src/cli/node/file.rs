//! `node`: a configuration file under the flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::exit::Failure;
use super::super::replicate::DEFAULT_CONFIG;
use super::{NodeArgs, folder};
use crate::config::node::NodeSection;
use crate::config::{Config, ConfigError, Credentials, SocketConfig, file};
use crate::control::Reload;

/// What flags and file make together.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// As if everything had been said by flags.
    pub(super) args: NodeArgs,
    /// The control socket, with the permissions that only a file can give it.
    pub(super) socket: Option<SocketConfig>,
    /// Keys of the store, which only a file can give.
    pub(super) credentials: Credentials,
    /// The file, if there is one.
    pub(super) path: Option<PathBuf>,
}

/// Lays flags over the file.
pub(super) fn resolve(args: &NodeArgs) -> Result<Resolved, Failure> {
    let own = args.socket.clone().map(SocketConfig::private);
    let Some(path) = path(args)? else {
        return Ok(Resolved { args: args.clone(), socket: own, credentials: Credentials::default(), path: None });
    };
    let config = file::load(&path, !args.no_expand_env)?;
    let Some(node) = &config.node else {
        let text = "no `node`: the keys of a node of a cluster stand there";
        return Err(Failure::usage(format!("{}: {text}", path.display())));
    };
    Ok(Resolved {
        args: over(args, &config, node),
        socket: own.or_else(|| config.socket.clone()),
        credentials: if args.store.is_none() { node.credentials.clone() } else { Credentials::default() },
        path: Some(path),
    })
}

/// The file that is to be read: one that a flag names, or where no folder is named, the one that `replicate` would read.
fn path(args: &NodeArgs) -> Result<Option<PathBuf>, Failure> {
    let is_of_environment = |path: &PathBuf| std::env::var_os("RHYOLITE_CONFIG").is_some_and(|of| of == **path);
    match (&args.config, &args.dir) {
        (Some(path), None) => Ok(Some(path.clone())),
        (Some(path), Some(_)) => Ok(Some(path.clone()).filter(|path| !is_of_environment(path))),
        (None, Some(_)) => Ok(None),
        (None, None) if Path::new(DEFAULT_CONFIG).exists() => Ok(Some(DEFAULT_CONFIG.into())),
        (None, None) => Err(Failure::usage(format!(
            "no node: name DIR, --store and --listen, or a configuration file ({DEFAULT_CONFIG} does not exist)"
        ))),
    }
}

fn over(args: &NodeArgs, config: &Config, node: &NodeSection) -> NodeArgs {
    let tls = node.tls.as_ref();
    NodeArgs {
        dir: args.dir.clone().or_else(|| node.dir.clone()),
        at: args.at.clone().or_else(|| node.at.clone()),
        store: args.store.clone().or_else(|| node.store.clone()),
        listen: args.listen.or(node.listen),
        config: args.config.clone(),
        no_expand_env: args.no_expand_env,
        advertise: args.advertise.clone().or_else(|| node.advertise.clone()),
        push_to: if args.push_to.is_empty() { node.push_to.clone() } else { args.push_to.clone() },
        accept: args.accept.or(node.accept),
        cluster_token: args.cluster_token.clone().or_else(|| Some(node.token.as_ref()?.secret().to_owned())),
        cluster_cert: args.cluster_cert.clone().or_else(|| Some(tls?.cert.clone())),
        cluster_key: args.cluster_key.clone().or_else(|| Some(tls?.key.clone())),
        cluster_ca: args.cluster_ca.clone().or_else(|| tls?.client_ca.clone()),
        lease: args.lease.clone().or_else(|| node.lease.clone()),
        candidate: args.candidate.or(node.candidate),
        durability: args.durability.or(node.durability),
        nodes: args.nodes.or(node.nodes),
        durability_timeout: args.durability_timeout.or(node.durability_timeout),
        write_forwarding: args.write_forwarding.or(node.write_forwarding),
        exec: args.exec.clone().or_else(|| config.exec.clone()),
        addr: args.addr.or(config.addr),
        socket: args.socket.clone(),
        log_level: args.log_level.or(Some(config.logging.level)),
        log_format: args.log_format.or(Some(config.logging.format)),
        shutdown_sync_timeout: args.shutdown_sync_timeout.or(Some(config.shutdown_sync_timeout)),
        proxy: args.proxy.or(&node.proxy),
        settings: args.settings.or(&node.settings),
    }
}

/// Reads the file again, when there is one. Only how databases are replicated may be another then.
pub(super) fn reload(given: &NodeArgs, begun: &Resolved) -> Option<Reload> {
    let path = begun.path.clone()?;
    let (given, begun) = (given.clone(), begun.clone());
    Some(Arc::new(move || {
        let refused = |failure: Failure| ConfigError::new(failure.line());
        let again = resolve(&given).map_err(refused)?;
        let changed = changed(&begun, &again);
        if !changed.is_empty() {
            let keys = changed.join(", ");
            let text =
                format!("{keys} cannot change while the node runs: start it again, and nothing else was taken over");
            return Err(ConfigError { file: Some(path.clone()), ..ConfigError::new(text) });
        }
        let folder = folder(&again).map_err(refused)?;
        Ok(Config { folders: vec![folder], ..Config::default() })
    }))
}

/// Keys that have another value and cannot be taken over.
fn changed(begun: &Resolved, again: &Resolved) -> Vec<&'static str> {
    let (a, b) = (&begun.args, &again.args);
    let keys = [
        ("node.dir", a.dir == b.dir),
        ("node.at", a.at == b.at),
        ("node.replica", (&a.store, &begun.credentials) == (&b.store, &again.credentials)),
        ("cluster.listen", a.listen == b.listen),
        ("cluster.push-to", a.push_to == b.push_to),
        ("cluster.token", a.cluster_token == b.cluster_token),
        (
            "cluster.tls",
            (&a.cluster_cert, &a.cluster_key, &a.cluster_ca) == (&b.cluster_cert, &b.cluster_key, &b.cluster_ca),
        ),
        ("node.advertise", a.advertise == b.advertise),
        ("node.accept", a.accept == b.accept),
        ("node.lease", a.lease == b.lease),
        ("node.candidate", a.candidate == b.candidate),
        ("node.durability", a.durability == b.durability),
        ("node.nodes", a.nodes == b.nodes),
        ("node.durability-timeout", a.durability_timeout == b.durability_timeout),
        ("node.write-forwarding", a.write_forwarding == b.write_forwarding),
        ("node.proxy", a.proxy == b.proxy),
        ("lease.ttl", a.settings.lease_ttl == b.settings.lease_ttl),
        ("addr", a.addr == b.addr),
        ("exec", a.exec == b.exec),
        ("socket", begun.socket == again.socket),
        ("logging", (a.log_level, a.log_format) == (b.log_level, b.log_format)),
        ("shutdown-sync-timeout", a.shutdown_sync_timeout == b.shutdown_sync_timeout),
    ];
    keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key).collect()
}
