//! Flags of the proxy in front of an application.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use crate::config::parse_addr;
use crate::config::units::parse_duration;
use crate::proxy::ProxyConfig;

/// How long a read waits for the database.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long requests are held: longer than a lost primary is missed at the lease's default time.
const HOLD: Duration = Duration::from_secs(20);
/// A replica that is farther behind is not healthy.
const LAG_MAX: Duration = Duration::from_secs(10);

#[derive(Args, Clone, Debug, Default)]
pub(super) struct ProxyArgs {
    /// Pass HTTP requests that come in at IP:PORT to the application: reads here, writes on the primary
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr, requires = "proxy_target")]
    proxy_listen: Option<SocketAddr>,
    /// Where the application of this node listens: HOST:PORT
    #[arg(long, value_name = "HOST:PORT", requires = "proxy_listen")]
    proxy_target: Option<String>,
    /// Where an application listens that only reads, beside a replica; never the place where that of --exec will listen: HOST:PORT
    #[arg(long, value_name = "HOST:PORT", requires = "proxy_listen")]
    proxy_read_target: Option<String>,
    /// Where the proxies of the other nodes reach this one, if not at the address of --proxy-listen: HOST:PORT
    #[arg(long, value_name = "HOST:PORT", requires = "proxy_listen")]
    proxy_advertise: Option<String>,
    /// Database for whose commits clients wait, by its path in the folder; needed where there are several
    #[arg(long, value_name = "NAME", requires = "proxy_listen")]
    proxy_db: Option<String>,
    /// Paths that have nothing to do with the database, with `*` for anything: always answered here; may be given again
    #[arg(long, value_name = "PATTERN", requires = "proxy_listen")]
    proxy_passthrough: Vec<String>,
    /// Paths that are written to by GET as well, with `*` for anything; may be given again
    #[arg(long, value_name = "PATTERN", requires = "proxy_listen")]
    proxy_always_forward: Vec<String>,
    /// How long a read waits for the commits that its client has seen, before the primary answers it (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "proxy_listen")]
    proxy_read_wait: Option<Duration>,
    /// How long requests are held while there is no primary, or the application does not listen (20s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "proxy_listen")]
    proxy_hold: Option<Duration>,
    /// A replica that is farther behind says on /rhyolite/health that it is not healthy (10s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "proxy_listen")]
    proxy_max_lag: Option<Duration>,
    /// Answer writes on a replica with the header fly-replay, for Fly.io's own proxy, instead of passing them on
    #[arg(long, requires = "proxy_listen")]
    proxy_fly_replay: bool,
}

impl ProxyArgs {
    /// The proxy, if there is to be one.
    pub(super) fn config(&self, dir: &Path) -> Result<Option<ProxyConfig>, Failure> {
        let (Some(listen), Some(target)) = (self.proxy_listen, &self.proxy_target) else { return Ok(None) };
        let is_place = |text: &str| {
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let places = [
            ("--proxy-target", Some(target)),
            ("--proxy-read-target", self.proxy_read_target.as_ref()),
            ("--proxy-advertise", self.proxy_advertise.as_ref()),
        ];
        for (flag, place) in places {
            if let Some(place) = place.filter(|place| !is_place(place)) {
                return Err(Failure::usage(format!("{flag} {place}: write HOST:PORT")));
            }
        }
        if self.proxy_advertise.is_none() && listen.ip().is_unspecified() {
            return Err(Failure::usage(format!(
                "--proxy-listen {listen} is no address for others: say by --proxy-advertise where they reach this proxy"
            )));
        }
        Ok(Some(ProxyConfig {
            listen,
            advertise: self.proxy_advertise.clone().unwrap_or_else(|| listen.to_string()),
            target: target.clone(),
            read_target: self.proxy_read_target.clone(),
            dir: dir.to_owned(),
            database: self.proxy_db.clone(),
            passthrough: self.proxy_passthrough.clone(),
            always_forward: self.proxy_always_forward.clone(),
            read_wait: self.proxy_read_wait.unwrap_or(READ_WAIT),
            hold: self.proxy_hold.unwrap_or(HOLD),
            lag_max: self.proxy_max_lag.unwrap_or(LAG_MAX),
            fly_replay: self.proxy_fly_replay,
        }))
    }
}
