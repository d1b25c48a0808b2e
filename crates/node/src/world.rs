//! The real time and chance of [`rhyolite_writer::World`].

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rhyolite_format::{Nonce, Timestamp};
use rhyolite_logic::lease::Monotonic;
use rhyolite_writer::World;

use crate::{process, random, time};

/// After a sleep of the machine nothing is missed for longer than this.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// This machine.
#[derive(Clone, Copy, Debug)]
pub struct RealWorld;

impl World for RealWorld {
    fn now(&self) -> Monotonic {
        // Unlike the clock of `Instant` it goes on while the machine sleeps: a lease runs out meanwhile.
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let time = Duration::try_from(rustix::time::clock_gettime(clock)).expect("the clock starts at 0");
        Monotonic(u64::try_from(time.as_millis()).expect("less than 500 million years"))
    }

    fn wall(&self) -> Timestamp {
        time::now()
    }

    fn nonce(&self) -> Nonce {
        Nonce(random::bytes())
    }

    fn is_dead(&self, process: &str) -> bool {
        process::is_dead(process)
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let until = self.now().after(time);
        Box::pin(async move {
            // The runtime's clock stands still while the machine sleeps.
            while let Some(left) = Some(Self.now().until(until)).filter(|left| !left.is_zero()) {
                tokio::time::sleep(left.min(SLEEP_MAX)).await;
            }
        })
    }
}
