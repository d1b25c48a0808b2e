//! Flags of the daemons that say where followers are served, and which are dialed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::exit::Failure;
use crate::config::cluster::{ClusterConfig, TlsFiles, Token};
use crate::config::{Config, parse_addr};

#[derive(Args, Clone, Debug, Default)]
pub(super) struct ClusterArgs {
    /// Serve the databases at IP:PORT to `rhyolite follow`; without TLS a loopback address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    cluster_listen: Option<SocketAddr>,
    /// Dial this replica, which cannot reach this process and listens with --accept: HOST:PORT, over TLS with --cluster-cert; https://HOST:PORT in any case; may be given again
    #[arg(long, value_name = "HOST:PORT")]
    cluster_push_to: Vec<String>,
    /// Secret that followers must show
    #[arg(long, value_name = "TOKEN", env = "RHYOLITE_CLUSTER_TOKEN", hide_env_values = true)]
    cluster_token: Option<String>,
    /// Certificate of this node, with those that lead to its root: a PEM file, read again when it changes
    #[arg(long, value_name = "PATH")]
    cluster_cert: Option<PathBuf>,
    /// Private key of the certificate: a PEM file
    #[arg(long, value_name = "PATH")]
    cluster_key: Option<PathBuf>,
    /// Followers must show a certificate for which one of these vouches: a PEM file
    #[arg(long, value_name = "PATH")]
    cluster_client_ca: Option<PathBuf>,
}

impl ClusterArgs {
    /// Puts what is set here into `config`.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        let token = token(self.cluster_token.as_deref())?;
        let before = config.cluster.take();
        let listen = self.cluster_listen.or(before.as_ref().and_then(|cluster| cluster.listen));
        let push_to = match (&before, &self.cluster_push_to) {
            (Some(before), own) if own.is_empty() => before.push_to.iter().map(ToString::to_string).collect(),
            (_, own) => own.clone(),
        };
        let tls = TlsFiles::new(self.cluster_cert.clone(), self.cluster_key.clone(), self.cluster_client_ca.clone());
        let tls = tls.map_err(|m| Failure::usage(format!("--cluster-cert and --cluster-key: {m}")))?;
        let (has_token, has_tls) = (token.is_some(), tls.is_some());
        let (token_before, tls_before) = before.map_or((None, None), |cluster| (cluster.token, cluster.tls));
        let (token, tls) = (token.or(token_before), tls.or(tls_before));
        let cluster = ClusterConfig::new(listen, &push_to, token, tls).map_err(Failure::usage)?;
        match (cluster.has_effect(), has_token, has_tls) {
            (true, ..) => config.cluster = Some(cluster),
            (false, true, _) => {
                return Err(Failure::usage(
                    "--cluster-token has no effect without an address to listen at, or to dial",
                ));
            }
            (false, false, true) => {
                return Err(Failure::usage("--cluster-cert has no effect without an address to listen at, or to dial"));
            }
            (false, false, false) => {}
        }
        Ok(())
    }
}

/// A token as it is given on a command line.
pub(super) fn token(text: Option<&str>) -> Result<Option<Token>, Failure> {
    text.map(Token::new).transpose().map_err(|m| Failure::usage(format!("--cluster-token: {m}")))
}
