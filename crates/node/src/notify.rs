//! What the service manager is told (`sd_notify(3)`): that we are ready, alive, stopping, and in words how things stand.
//!
//! Without `NOTIFY_SOCKET` in the environment nobody is told anything. A manager that cannot be told is no reason to stop.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::config::units::format_duration;
use crate::pulse::PATIENCE;
use crate::status::{State, StatusBoard};
use crate::time;

/// Time between two reports where the manager does not ask for a shorter one.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// The manager kills us when it hears nothing for this long.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment of the process says.
    pub fn from_environment() -> Self {
        let ours = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
        let microseconds = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let watchdog = microseconds.filter(|_| ours).map(Duration::from_micros);
        Self { socket: std::env::var_os("NOTIFY_SOCKET").and_then(open), watchdog }
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::debug!("tell the service manager: {error}");
        }
    }

    /// The databases are being replicated, or waited for.
    pub fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// The end has begun, which may take so long.
    pub fn stopping(&self, bound: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", bound.as_micros()));
    }

    /// Reports without end; drop the future to stop it. It says that it lives as long as the supervisor answers and its figures can be read:
    /// about a process that hangs it is silent, and the manager's watchdog ends it.
    pub async fn keep_reporting(self: Arc<Self>, board: Arc<StatusBoard>) {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        let interval = self.watchdog.map_or(REPORT_INTERVAL, |watchdog| watchdog / 3);
        loop {
            let is_there = self.watchdog.is_some() && board.pulse.is_there(interval.min(PATIENCE)).await;
            let alive = if is_there { "WATCHDOG=1\n" } else { "" };
            self.tell(&format!("{alive}STATUS={}\n", summary(&board)));
            tokio::time::sleep(interval).await;
        }
    }
}

fn open(address: OsString) -> Option<(UnixDatagram, SocketAddr)> {
    let bytes = address.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    Some((UnixDatagram::unbound().ok()?, address.ok()?))
}

/// One line for people: `2 of 3 databases replicating, 1.5 s behind at most`.
fn summary(board: &StatusBoard) -> String {
    let now = time::now();
    let figures: Vec<_> = board.databases().iter().map(|database| database.figures()).collect();
    let replicating = figures.iter().filter(|f| f.state == State::Replicating).count();
    let lag = figures.iter().map(|f| f.lag_ms(now)).max().unwrap_or(0);
    let lag = format_duration(Duration::from_millis(lag));
    format!("{replicating} of {} databases replicating, {lag} behind at most", figures.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_addresses_are_understood() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let name = format!("rhyolite-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let other = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (address, manager) in [(path.into_os_string(), manager), (format!("@{name}").into(), other)] {
            let notifier = Notifier { socket: open(address), watchdog: None };
            notifier.ready();
            notifier.stopping(Duration::from_secs(2));
            let mut bytes = [0; 100];
            let read = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..read], b"READY=1\n");
            let read = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..read], b"STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000\n");
        }
    }

    #[test]
    fn the_summary_is_one_line() {
        let board = StatusBoard::new();
        assert_eq!(summary(&board), "0 of 0 databases replicating, 0 behind at most");
        board.add("/a.db".into(), "/m".into(), "./b".into()).set_state(State::Replicating);
        board.add("/b.db".into(), "/n".into(), "./c".into());
        assert_eq!(summary(&board), "1 of 2 databases replicating, 0 behind at most");
    }
}
