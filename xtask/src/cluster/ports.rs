//! Addresses that belong to one run alone. An application listens only while its node is the primary, and a node that was killed does not: an address at which nobody
//! listens at the moment may be another run's all the same, and its clients would be answered from another world.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use crate::error::{Context, Outcome, fail};

/// Ports of the first run; below those that are given to whoever asks for any.
const FIRST: u16 = 12_000;
/// Ports of each run. Those of a world come again when it has long been over.
const EACH: u16 = 1_000;
/// Runs at a time.
const RUNS_MAX: u16 = 20;

/// The ports of this run.
struct Block {
    /// Locked for as long as this process lives.
    _lock: File,
    first: u16,
    next: u16,
}

/// An address that nobody else listens at, or will.
pub(super) fn free_address() -> Outcome<SocketAddr> {
    static BLOCK: Mutex<Option<Block>> = Mutex::new(None);
    let mut block = BLOCK.lock().expect("nobody panics with it");
    if block.is_none() {
        *block = Some(take_block()?);
    }
    let block = block.as_mut().context("no ports")?;
    for _ in 0..EACH {
        let address = SocketAddr::from(([127, 0, 0, 1], block.first + block.next));
        block.next = (block.next + 1) % EACH;
        // Somebody who knows nothing of this may have it.
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    fail("no port is free")
}

fn take_block() -> Outcome<Block> {
    for number in 0..RUNS_MAX {
        let path = std::env::temp_dir().join(format!("rhyolite-ports-{number}.lock"));
        let lock = File::options().create(true).append(true).open(&path).context("open a lock of ports")?;
        // SAFETY: the descriptor is open during the call.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Block { _lock: lock, first: FIRST + number * EACH, next: 0 });
        }
    }
    fail(format!("{RUNS_MAX} runs at a time have all the ports"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_no_address_twice_and_another_has_others() {
        let (one, other) = (free_address().unwrap(), free_address().unwrap());
        assert_ne!(one, other);
        let block = take_block().unwrap();
        let ports = block.first..block.first + EACH;
        assert!(!ports.contains(&one.port()) && !ports.contains(&other.port()));
    }
}
