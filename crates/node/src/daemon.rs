//! The life of `replicate`: status, HTTP and the application around the replication itself, and an end within a bound.
//!
//! ```text
//! application starts -> databases are opened -> ... -> stop signal, or the application ends
//!   -> the application gets the signal and `shutdown-sync-timeout` to end, then it is killed
//!   -> replication is told to stop and gets `shutdown-sync-timeout` for its last upload
//!   -> what is not durable by then stays in the local log and is uploaded after the next start
//! ```
//!
//! Beside all this a thread of its own ends the process when even that does not come to an end ([`crate::signals`]).

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;

use crate::cli::exit::{Failure, Status};
use crate::config::SocketConfig;
use crate::config::cluster::{ClusterConfig, TlsFiles};
use crate::config::units::format_duration;
use crate::control::{self, Controller};
use crate::exec::Application;
use crate::notify::Notifier;
use crate::observe::{http, status_file};
use crate::proxy::About;
use crate::signals::StopRequest;
use crate::status::{DatabaseStatus, Figures, StatusBoard};
use crate::stream::client::Address;
use crate::stream::push::{self, Right};
use crate::stream::server::{self, Server};
use crate::stream::tls::{self, Acceptor};
use crate::time;

/// What the daemon is given beside the replication.
#[derive(Debug)]
pub struct Daemon {
    /// Figures of all databases; the replication adds and updates them.
    pub board: Arc<StatusBoard>,
    /// Address of the HTTP server.
    pub addr: Option<SocketAddr>,
    /// The control socket.
    pub socket: Option<SocketConfig>,
    /// Where followers are served.
    pub cluster: Option<ClusterConfig>,
    /// What it is answered with; also reads the configuration again on SIGHUP.
    pub controller: Controller,
    /// How long the application may take to end.
    pub stop_timeout: Duration,
    /// How long replication may take to end after that. It bounds its last upload itself; this is for when it fails to.
    pub upload_timeout: Duration,
    /// The running application of `--exec`.
    pub application: Option<Application>,
    /// The first stop signal.
    pub stop: StopRequest,
}

/// Why the daemon stops.
enum Cause {
    Signal(Signal),
    ApplicationEnded(u8),
    ReplicationEnded(Result<u8, Failure>),
}

impl Daemon {
    /// Runs `replicate` until it ends by itself or is told to. It gets a receiver that becomes `true` when it shall upload
    /// what is left and return, and gives an exit status.
    ///
    /// # Errors
    /// Replication failed, the address is taken, or the last upload did not succeed in time.
    pub async fn run<F>(self, replicate: impl FnOnce(watch::Receiver<bool>) -> F) -> Result<u8, Failure>
    where
        F: Future<Output = Result<u8, Failure>>,
    {
        let Self { board, addr, socket, cluster, controller, stop_timeout, upload_timeout, mut application, mut stop } =
            self;
        if let Err(message) = listen(addr, socket.as_ref(), cluster, controller).await {
            end_application(&mut application, Signal::TERM, stop_timeout).await;
            return Err(Failure::failed(message));
        }
        let _socket_file = socket.map(|config| SocketFile(config.path));
        tokio::spawn(status_file::keep_written(Arc::clone(&board)));
        let manager = Arc::new(Notifier::from_environment());
        tokio::spawn(Arc::clone(&manager).keep_reporting(Arc::clone(&board)));
        let (tell_stop, told_stop) = watch::channel(false);
        let mut replication = std::pin::pin!(replicate(told_stop));
        manager.ready();
        let cause = tokio::select! {
            result = &mut replication => Cause::ReplicationEnded(result),
            signal = first_signal(&mut stop) => Cause::Signal(signal),
            code = application_end(&mut application) => Cause::ApplicationEnded(code),
        };
        manager.stopping(stop_timeout + upload_timeout);
        let code = match cause {
            Cause::Signal(signal) => end_application(&mut application, signal, stop_timeout).await,
            Cause::ApplicationEnded(code) => {
                tracing::info!("the application has ended with status {code}");
                code
            }
            Cause::ReplicationEnded(result) => {
                status_file::write_changed(&board);
                end_application(&mut application, Signal::TERM, stop_timeout).await;
                return result;
            }
        };
        // Nobody listens only when the replication has ended already.
        let _ = tell_stop.send(true);
        let ended = tokio::time::timeout(upload_timeout, replication).await;
        status_file::write_changed(&board);
        match ended {
            Ok(Err(failure)) => Err(failure),
            // The application's own failure matters more to whoever started both.
            Ok(Ok(_)) | Err(_) if code != 0 => Ok(code),
            Ok(Ok(code)) => check_durable(&board, None).map(|()| code),
            Err(_) => check_durable(&board, Some(upload_timeout)).map(|()| code),
        }
    }
}

/// Opens what others may ask at.
async fn listen(
    addr: Option<SocketAddr>,
    socket: Option<&SocketConfig>,
    cluster: Option<ClusterConfig>,
    controller: Controller,
) -> Result<(), String> {
    if let Some(addr) = addr {
        let listener = http::bind(addr).await?;
        tokio::spawn(http::serve(listener, Arc::clone(&controller.board)));
    }
    if let Some(cluster) = cluster {
        serve_followers(cluster, &controller).await?;
    }
    if let Some(socket) = socket {
        let listener = control::bind(socket)?;
        tokio::spawn(control::serve(listener, controller.clone()));
    }
    if controller.reload.is_some() {
        tokio::spawn(controller.reload_on_hangup());
    }
    Ok(())
}

/// Serves those who dial, and dials those who are to be.
async fn serve_followers(cluster: ClusterConfig, controller: &Controller) -> Result<(), String> {
    let ClusterConfig { listen, push_to, token, tls, proxy } = cluster;
    let files = tls.as_ref().map(TlsFiles::as_client).unwrap_or_default();
    if push_to.iter().any(Address::is_secret) {
        // That the files can be read is seen before anything is begun.
        tls::client_config(&files)?;
    }
    let acceptor = tls.map(Acceptor::new).transpose()?;
    let handoffs = controller.node.as_ref().map(|node| node.handoffs.clone());
    let replicas = controller.node.as_ref().map(|node| node.folder.clone());
    let about = About { proxy };
    let (board, waits) = (Arc::clone(&controller.board), controller.waits());
    let server = Arc::new(Server::new(board, token.clone(), acceptor, about, handoffs, replicas, waits));
    if let Some(listen) = listen {
        let listener = http::bind(listen).await?;
        tokio::spawn(server::serve(listener, Arc::clone(&server)));
    }
    if !push_to.is_empty() {
        let right = if controller.node.is_some() { Right::OfNode } else { Right::OfDatabases };
        tokio::spawn(push::push(server, push_to, token, files, right));
    }
    Ok(())
}

/// The file of the control socket, which goes with the process.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        control::remove_file(&self.0);
    }
}

async fn first_signal(stop: &mut StopRequest) -> Signal {
    match stop.wait_for(Option::is_some).await.map(|signal| *signal) {
        Ok(Some(signal)) => {
            tracing::info!("stopping: uploading what is left (a second signal ends at once)");
            signal
        }
        // The thread that receives signals lives as long as the process.
        _ => std::future::pending().await,
    }
}

async fn application_end(application: &mut Option<Application>) -> u8 {
    match application {
        Some(application) => application.wait().await,
        None => std::future::pending().await,
    }
}

async fn end_application(application: &mut Option<Application>, signal: Signal, bound: Duration) -> u8 {
    match application {
        Some(application) => application.stop(signal, bound).await,
        None => Status::Ok.code(),
    }
}

/// Success only when the store has every commit: those that were captured, and those of a database that was never reached.
fn check_durable(board: &StatusBoard, waited: Option<Duration>) -> Result<(), Failure> {
    let now = time::now();
    let all = board.databases().into_iter().map(|database| (database.figures(), database));
    let behind: Vec<_> = all.filter(|(figures, database)| !is_durable(figures, database)).collect();
    let Some((figures, first)) = behind.iter().max_by_key(|(figures, _)| figures.lag_ms(now)) else {
        return match waited {
            None => Ok(()),
            Some(waited) => {
                let waited = format_duration(waited);
                Err(Failure::new(Status::NotDurable, format!("replication did not end within {waited}")))
            }
        };
    };
    let path = first.path.display();
    let others = if behind.len() > 1 { format!(" (and {} other databases)", behind.len() - 1) } else { String::new() };
    let what = match figures.pending_since {
        Some(_) => format!("the last {} of commits", format_duration(Duration::from_millis(figures.lag_ms(now)))),
        None => "the newest commits".to_owned(),
    };
    let error = figures.last_error.as_ref().map(|e| format!("; last error: {}", e.text)).unwrap_or_default();
    let store = &first.store;
    let message =
        format!("stopped before {store} had {what} to {path}{others}: they are uploaded after the next start{error}");
    Err(Failure::new(Status::NotDurable, message))
}

fn is_durable(figures: &Figures, database: &DatabaseStatus) -> bool {
    let holds_something = || std::fs::metadata(&database.path).is_ok_and(|meta| meta.len() > 0);
    // What another process captures is not for this one to judge.
    let is_known = || figures.local.is_some() || figures.standby || !holds_something();
    figures.pending_since.is_none() && is_known()
}

#[cfg(test)]
mod tests {
    use rhyolite_format::Timestamp;

    use super::*;
    use crate::exec::{RunningChild, spawn};

    fn daemon(application: Option<&str>) -> (Daemon, watch::Sender<Option<Signal>>) {
        let (sender, stop) = watch::channel(None);
        let application = application.map(|command| spawn(command, RunningChild::default()).unwrap());
        let minute = Duration::from_secs(60);
        let board = StatusBoard::new();
        let (commands, _) = tokio::sync::mpsc::channel(1);
        let controller = Controller { board: Arc::clone(&board), commands, reload: None, node: None };
        (
            Daemon {
                board,
                addr: None,
                socket: None,
                cluster: None,
                controller,
                stop_timeout: minute,
                upload_timeout: minute,
                application,
                stop,
            },
            sender,
        )
    }

    async fn until_told(mut stop: watch::Receiver<bool>) -> Result<u8, Failure> {
        stop.wait_for(|stop| *stop).await.expect("the daemon lives longer");
        Ok(Status::Ok.code())
    }

    #[tokio::test]
    async fn a_signal_stops_replication_and_application() {
        for application in [None, Some("sleep 1000")] {
            let (daemon, signals) = daemon(application);
            signals.send(Some(Signal::TERM)).unwrap();
            let expected = if application.is_some() { 128 + 15 } else { 0 };
            assert_eq!(daemon.run(until_told).await, Ok(expected));
        }
    }

    #[tokio::test]
    async fn the_end_of_the_application_stops_replication() {
        for (command, code) in [("true", 0), ("sh -c 'exit 9'", 9)] {
            let (daemon, _signals) = daemon(Some(command));
            assert_eq!(daemon.run(until_told).await, Ok(code), "{command}");
        }
    }

    #[tokio::test]
    async fn the_end_of_replication_stops_the_application() {
        let (daemon, _signals) = daemon(Some("sleep 1000"));
        let failure = Failure::failed("no");
        assert_eq!(daemon.run(async |_| Err(failure.clone())).await, Err(failure.clone()));
    }

    #[tokio::test]
    async fn a_store_that_hangs_is_not_success() {
        let (mut daemon, signals) = daemon(None);
        daemon.upload_timeout = Duration::from_millis(10);
        let status = daemon.board.add("/a.db".into(), "/nonexistent/m".into(), "s3://b/a".to_owned());
        status.error("request timed out");
        status.update(|f| f.pending_since = Some(Timestamp(0)));
        signals.send(Some(Signal::TERM)).unwrap();
        let failure = daemon.run(async |_| std::future::pending().await).await.unwrap_err();
        assert_eq!(failure.status, Status::NotDurable);
        let line = failure.line();
        assert!(
            line.starts_with("stopped before s3://b/a had the last ") && line.ends_with("request timed out"),
            "{line}"
        );
    }
}
