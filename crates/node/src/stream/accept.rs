//! A replica's place for the one primary that dials it (docs/spec/stream.md, "Pushing").
//!
//! Invariants:
//! 1. One primary has the place at a time; whoever takes it has been judged while nobody else could ([`rhyolite_logic::push::judge`]).
//! 2. A connection whose end is known has the place no more.
//!
//! What strangers can make this hold: [`CONNECTIONS_MAX`] connections, each for [`SILENCE_MAX`] at most until the token was proved.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhyolite_format::push::Answer;
use rhyolite_format::{Epoch, Timestamp};
use rhyolite_logic::push::{Comer, judge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::SILENCE_MAX;
use super::client::Link;
use super::greeting::{CLOSED, meet};
use super::push::AcceptReport;
use super::tls::Acceptor;
use crate::config::cluster::{AcceptConfig, Token};
use crate::time;

/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 64;
/// Pause after an error of accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of what a node says of itself.
const ABOUT_BYTES_MAX: u64 = 64 << 10;
/// So many refusals are remembered as told.
const TOLD_MAX: usize = 64;

/// The place.
#[derive(Debug)]
pub struct Accepting {
    listen: SocketAddr,
    token: Option<Token>,
    tls: Option<Acceptor>,
    place: watch::Sender<Option<Connected>>,
    /// The right of the primary, as the lease has it.
    known: Mutex<Option<Epoch>>,
    /// Only a right that the lease is known to give has a place.
    needs_lease: bool,
    /// What was logged of whom since a primary was last taken.
    told: Mutex<HashSet<(IpAddr, String)>>,
}

/// Who has the place.
#[derive(Clone, Debug)]
struct Connected {
    comer: Comer,
    from: SocketAddr,
    since: Timestamp,
    link: Link,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Accepting {
    /// A place that nobody has. Nobody can take it before [`Accepting::serve`]; `needs_lease`: nor whose right is a newer one than what [`Accepting::expect`] was told.
    ///
    /// # Errors
    /// One line: a file of TLS is missing, or holds something else.
    pub fn new(config: AcceptConfig, needs_lease: bool) -> Result<Arc<Self>, String> {
        let tls = config.tls.map(Acceptor::for_pushes).transpose()?;
        let (place, _) = watch::channel(None);
        let (known, told) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { listen: config.listen, token: config.token, tls, place, known, needs_lease, told }))
    }

    /// Where primaries are to dial.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The connection of the primary, once one has dialed.
    pub async fn link(&self) -> Link {
        let mut place = self.place.subscribe();
        let is_open = |place: &Option<Connected>| place.as_ref().is_some_and(|connected| !connected.link.is_closed());
        let place = place.wait_for(is_open).await.expect("the sender is borrowed");
        place.as_ref().expect("waited for").link.clone()
    }

    /// The connection of the primary, if there is one.
    pub fn current(&self) -> Option<Link> {
        self.place.borrow().as_ref().map(|connected| connected.link.clone())
    }

    /// What the lease says of the right of the primary: an older one has no place here.
    pub fn expect(&self, epoch: Option<Epoch>) {
        let mut known = lock(&self.known);
        *known = epoch.max(*known);
        drop(known);
        let place = self.place.borrow();
        if let Some(connected) = place.as_ref().filter(|c| epoch.is_some_and(|known| c.comer.epoch < known)) {
            connected.link.close();
        }
    }

    /// What is said of the place.
    pub fn report(&self) -> AcceptReport {
        let place = self.place.borrow();
        let connected = place.as_ref().filter(|connected| !connected.link.is_closed());
        AcceptReport {
            listen: self.listen,
            from: connected.map(|connected| connected.from),
            epoch: connected.map(|connected| connected.comer.epoch),
            since: connected.map(|connected| connected.since),
        }
    }

    /// Lets primaries in until the task is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accept a primary: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let place = Arc::clone(&self);
            connections.spawn(async move {
                match place.connection(stream, from).await {
                    Ok(()) => {}
                    // Somebody has looked whether anybody listens.
                    Err(text) if text == CLOSED => tracing::debug!(%from, "{text}"),
                    Err(text) => place.complain(from.ip(), text),
                }
                drop(permit);
            });
        }
    }

    /// Says what is wrong with whoever dials, once for each reason and machine until a primary is taken.
    fn complain(&self, from: IpAddr, text: String) {
        let mut told = lock(&self.told);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        if told.insert((from, text.clone())) {
            tracing::warn!(%from, "a primary that dials was not taken: {text}");
        }
    }

    /// One connection until it ends. The error is why it was not taken.
    async fn connection(&self, stream: TcpStream, from: SocketAddr) -> Result<(), String> {
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let silent = |_| "it said nothing that was expected in time".to_owned();
        let deadline = tokio::time::Instant::now() + SILENCE_MAX;
        match &self.tls {
            None => self.greet(stream, from, deadline).await,
            Some(tls) => {
                let accepted = tokio::time::timeout_at(deadline, tls.accept(stream)).await;
                self.greet(accepted.map_err(silent)??, from, deadline).await
            }
        }
    }

    async fn greet(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        from: SocketAddr,
        deadline: tokio::time::Instant,
    ) -> Result<(), String> {
        let judge = |comer| {
            let place = self.place.borrow();
            self.judge(comer, place.as_ref())
        };
        let met = tokio::time::timeout_at(deadline, meet(&mut stream, self.token.as_ref(), judge)).await;
        let comer = met.map_err(|_| "it said nothing that was expected in time".to_owned())??;
        // Both ends have proved that they know the token: it is not sent, wherever this connection leads to.
        let accepted = tokio::time::timeout_at(deadline, Link::accepted(from, None, stream)).await;
        let accepted = accepted.map_err(|_| "it did not speak in time".to_owned())?;
        let link = accepted.map_err(|e| e.to_string())?;
        // It serves, and knows from here on that it was asked: it may be that there is nothing else to ask for a while.
        let served = tokio::time::timeout_at(deadline, link.read("/v1/node", ABOUT_BYTES_MAX)).await;
        let served = served.map_err(|_| "it did not answer in time".to_owned());
        served
            .and_then(|served| served.map_err(|e| format!("it does not serve: {e}")))
            .inspect_err(|_| link.close())?;
        self.install(Connected { comer, from, since: time::now(), link: link.clone() })?;
        lock(&self.told).clear();
        tracing::info!(%from, epoch = %comer.epoch, "a primary is connected");
        link.closed().await;
        self.place.send_if_modified(|place| {
            let is_it = place.as_ref().is_some_and(|connected| connected.link.is(&link));
            if is_it {
                *place = None;
            }
            is_it
        });
        tracing::info!(%from, "the connection of the primary has ended");
        Ok(())
    }

    /// Gives a primary the place. Another one may have got it since this one was judged.
    fn install(&self, connected: Connected) -> Result<(), String> {
        let mut refused = None;
        self.place.send_if_modified(|place| {
            let (answer, text) = self.judge(connected.comer, place.as_ref());
            if answer != Answer::Taken {
                connected.link.close();
                refused = Some(text);
                return false;
            }
            if let Some(before) = place.replace(connected.clone()) {
                tracing::info!(from = %before.from, "another connection takes the place of this primary's");
                before.link.close();
            }
            true
        });
        refused.map_or(Ok(()), Err)
    }

    fn judge(&self, comer: Comer, place: Option<&Connected>) -> (Answer, String) {
        let connected = place.filter(|connected| !connected.link.is_closed()).map(|connected| connected.comer);
        let known = *lock(&self.known);
        if self.needs_lease && known.is_none_or(|known| comer.epoch > known) {
            // Another cluster may have higher numbers.
            let known = known.map_or("nothing yet".to_owned(), |known| format!("{known} so far"));
            return (Answer::Busy, format!("the lease of this node says {known}, and not {}", comer.epoch));
        }
        let answer = judge(comer, connected, known);
        let number = |epoch: Option<Epoch>| epoch.map_or_else(String::new, |epoch| epoch.to_string());
        let text = match answer {
            Answer::Stale => format!("the right {} is older than {} of the lease", comer.epoch, number(known)),
            Answer::Busy => {
                let other = number(connected.map(|connected| connected.epoch));
                format!("another primary is connected, and the right {} is not newer than its {other}", comer.epoch)
            }
            Answer::Taken | Answer::Unknown => String::new(),
        };
        (answer, text)
    }
}
