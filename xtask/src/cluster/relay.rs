//! A way to a node that can be cut: everybody else reaches it through here.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Context, Outcome};

/// How often it is looked whether the way is cut.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes that are passed on at a time.
const CHUNK: usize = 64 << 10;

/// A listener whose connections lead to another address as long as it is not cut. It listens until the process ends.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    /// Leads to `to`.
    pub fn new(to: SocketAddr) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let address = listener.local_addr().context("listen")?;
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let cut = Arc::clone(&cut);
                thread::spawn(move || pass(&client, to, &cut));
            }
        });
        Ok(Self { address, is_cut })
    }

    /// Nothing comes through any more, and nobody is told: as when a cable is pulled.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
    }
}

fn pass(client: &TcpStream, to: SocketAddr, cut: &AtomicBool) {
    while cut.load(Ordering::SeqCst) {
        thread::sleep(LOOK);
    }
    let Ok(server) = TcpStream::connect(to) else { return };
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server, cut));
        copy(&server, client, cut);
    });
}

/// Passes on what comes, until either end is closed.
fn copy(mut from: &TcpStream, mut to: &TcpStream, cut: &AtomicBool) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = match from.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(len) => len,
        };
        while cut.load(Ordering::SeqCst) {
            thread::sleep(LOOK);
        }
        if to.write_all(&chunk[..len]).is_err() {
            break;
        }
    }
    // Both directions end together: whoever waits for the other end sees it.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
