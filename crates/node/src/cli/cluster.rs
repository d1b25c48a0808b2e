//! Flags of the daemons that say where followers are served.

use std::net::SocketAddr;

use clap::Args;

use super::exit::Failure;
use crate::config::cluster::{ClusterConfig, Token};
use crate::config::{Config, parse_addr};

#[derive(Args, Clone, Debug, Default)]
pub(super) struct ClusterArgs {
    /// Serve the databases at IP:PORT to `rhyolite follow`; a loopback address
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    cluster_listen: Option<SocketAddr>,
    /// Secret that followers must show
    #[arg(long, value_name = "TOKEN", env = "RHYOLITE_CLUSTER_TOKEN", hide_env_values = true)]
    cluster_token: Option<String>,
}

impl ClusterArgs {
    /// Puts what is set here into `config`.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        let token = token(self.cluster_token.as_deref())?;
        let before = config.cluster.take();
        let listen = self.cluster_listen.or(before.as_ref().map(|cluster| cluster.listen));
        let has_token = token.is_some();
        let token = token.or(before.and_then(|cluster| cluster.token));
        match listen {
            Some(listen) => config.cluster = Some(ClusterConfig::new(listen, token).map_err(Failure::usage)?),
            None if has_token => {
                return Err(Failure::usage("--cluster-token has no effect without an address to listen at"));
            }
            None => {}
        }
        Ok(())
    }
}

/// A token as it is given on a command line.
pub(super) fn token(text: Option<&str>) -> Result<Option<Token>, Failure> {
    text.map(Token::new).transpose().map_err(|m| Failure::usage(format!("--cluster-token: {m}")))
}
