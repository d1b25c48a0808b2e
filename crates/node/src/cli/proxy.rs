//! Flags of the proxy in front of an application.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use crate::cluster::witness::Durability;
use crate::config::node::ProxySection;
use crate::config::parse_addr;
use crate::config::units::parse_duration;
use crate::durability::Level;
use crate::proxy::{Durable, ProxyConfig};

/// How long a read waits for the database.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long requests are held: longer than a lost primary is missed at the lease's default time.
const HOLD: Duration = Duration::from_secs(20);
/// A replica that is farther behind is not healthy.
const LAG_MAX: Duration = Duration::from_secs(10);
/// How long an answer is held.
const DURABILITY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyArgs {
    /// Pass HTTP requests that come in at IP:PORT to the application: reads here, writes on the primary
    #[arg(long, value_name = "ADDRESS", value_parser = parse_addr)]
    proxy_listen: Option<SocketAddr>,
    /// Where the application of this node listens: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    proxy_target: Option<String>,
    /// Where an application listens that only reads, beside a replica; never the place where that of --exec will listen: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    proxy_read_target: Option<String>,
    /// Where the proxies of the other nodes reach this one, if not at the address of --proxy-listen: HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    proxy_advertise: Option<String>,
    /// Database for whose commits clients wait, by its path in the folder; needed where there are several
    #[arg(long, value_name = "NAME")]
    proxy_db: Option<String>,
    /// Paths that have nothing to do with the database, with `*` for anything: always answered here; may be given again
    #[arg(long, value_name = "PATTERN")]
    proxy_passthrough: Vec<String>,
    /// Paths that are written to by GET as well, with `*` for anything; may be given again
    #[arg(long, value_name = "PATTERN")]
    proxy_always_forward: Vec<String>,
    /// How long a read waits for the commits that its client has seen, before the primary answers it (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    proxy_read_wait: Option<Duration>,
    /// How long requests are held while there is no primary, or the application does not listen (20s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    proxy_hold: Option<Duration>,
    /// A replica that is farther behind says on /rhyolite/health that it is not healthy (10s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    proxy_max_lag: Option<Duration>,
    /// Answer writes on a replica with the header fly-replay, for Fly.io's own proxy, instead of passing them on
    #[arg(long)]
    proxy_fly_replay: bool,
    /// Where what a write has committed must be before its client gets the answer: `replica` and `quorum` where --durability keeps them; otherwise it gets an error that says where it is. A client may ask for
    /// more by the header Rhyolite-Durability (local)
    #[arg(long, value_name = "LEVEL")]
    proxy_durability: Option<Level>,
    /// The least that a client may ask for by that header, if it is to be less (the level of --proxy-durability)
    #[arg(long, value_name = "LEVEL")]
    proxy_durability_min: Option<Level>,
    /// How long an answer is held for that (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    proxy_durability_timeout: Option<Duration>,
}

impl ProxyArgs {
    /// What is set here, and otherwise what a file says.
    pub(super) fn or(&self, file: &ProxySection) -> Self {
        let list = |own: &[String], file: &[String]| if own.is_empty() { file.to_vec() } else { own.to_vec() };
        Self {
            proxy_listen: self.proxy_listen.or(file.listen),
            proxy_target: self.proxy_target.clone().or_else(|| file.target.clone()),
            proxy_read_target: self.proxy_read_target.clone().or_else(|| file.read_target.clone()),
            proxy_advertise: self.proxy_advertise.clone().or_else(|| file.advertise.clone()),
            proxy_db: self.proxy_db.clone().or_else(|| file.db.clone()),
            proxy_passthrough: list(&self.proxy_passthrough, &file.passthrough),
            proxy_always_forward: list(&self.proxy_always_forward, &file.always_forward),
            proxy_read_wait: self.proxy_read_wait.or(file.read_wait),
            proxy_hold: self.proxy_hold.or(file.hold),
            proxy_max_lag: self.proxy_max_lag.or(file.max_lag),
            proxy_fly_replay: self.proxy_fly_replay || file.fly_replay.unwrap_or(false),
            proxy_durability: self.proxy_durability.or(file.durability),
            proxy_durability_min: self.proxy_durability_min.or(file.durability_min),
            proxy_durability_timeout: self.proxy_durability_timeout.or(file.durability_timeout),
        }
    }

    /// The first of those flags that have no effect without a proxy.
    fn idle(&self) -> Option<&'static str> {
        let flags = [
            ("--proxy-read-target", self.proxy_read_target.is_some()),
            ("--proxy-advertise", self.proxy_advertise.is_some()),
            ("--proxy-db", self.proxy_db.is_some()),
            ("--proxy-passthrough", !self.proxy_passthrough.is_empty()),
            ("--proxy-always-forward", !self.proxy_always_forward.is_empty()),
            ("--proxy-read-wait", self.proxy_read_wait.is_some()),
            ("--proxy-hold", self.proxy_hold.is_some()),
            ("--proxy-max-lag", self.proxy_max_lag.is_some()),
            ("--proxy-fly-replay", self.proxy_fly_replay),
            ("--proxy-durability", self.proxy_durability.is_some()),
            ("--proxy-durability-min", self.proxy_durability_min.is_some()),
            ("--proxy-durability-timeout", self.proxy_durability_timeout.is_some()),
        ];
        flags.into_iter().find(|(_, is_given)| *is_given).map(|(flag, _)| flag)
    }

    /// What holds for the answers to writes, on a node that keeps `durability`.
    fn durable(&self, durability: Durability) -> Result<Durable, Failure> {
        let level = self.proxy_durability.unwrap_or(Level::Local);
        durability.keeps(level).map_err(|m| Failure::usage(format!("--proxy-durability {level}: {m}")))?;
        let least = self.proxy_durability_min.unwrap_or(level);
        if least > level {
            return Err(Failure::usage(format!(
                "--proxy-durability-min {least} is more than --proxy-durability {level}: what nobody may ask for less than is that"
            )));
        }
        let timeout = self.proxy_durability_timeout.unwrap_or(DURABILITY_TIMEOUT);
        if timeout.is_zero() {
            return Err(Failure::usage("--proxy-durability-timeout must not be 0: no answer could be held"));
        }
        Ok(Durable { level, least, timeout })
    }

    /// The proxy, if there is to be one.
    pub(super) fn config(&self, dir: &Path, durability: Durability) -> Result<Option<ProxyConfig>, Failure> {
        let (listen, target) = match (self.proxy_listen, &self.proxy_target) {
            (Some(listen), Some(target)) => (listen, target),
            (Some(_), None) => {
                return Err(Failure::usage("--proxy-listen needs --proxy-target: where the application listens"));
            }
            (None, Some(_)) => return Err(Failure::usage("--proxy-target needs --proxy-listen: where clients ask")),
            (None, None) => {
                let no_effect =
                    |flag| Failure::usage(format!("{flag} has no effect without --proxy-listen and --proxy-target"));
                return self.idle().map_or(Ok(None), |flag| Err(no_effect(flag)));
            }
        };
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
            durable: self.durable(durability)?,
        }))
    }
}
