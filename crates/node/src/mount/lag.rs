//! How far the databases of a mount are behind those of the primary, as the file `.lag` says it.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Of a replica that nobody has heard of, or that has heard nothing.
const UNKNOWN: i32 = i32::MAX;

/// A lag.
#[derive(Debug, Default)]
pub(super) struct Lag(AtomicI32);

impl Lag {
    /// Sets it; `None` when nobody knows.
    pub(super) fn set(&self, lag: Option<Duration>) {
        let milliseconds = lag.map_or(UNKNOWN, |lag| i32::try_from(lag.as_millis()).unwrap_or(UNKNOWN));
        self.0.store(milliseconds, Ordering::Relaxed);
    }

    /// What the file says, in LiteFS's form: milliseconds with a sign, in ten characters.
    pub(super) fn text(&self) -> String {
        format!("{:+010}\n", self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_form_of_litefs() {
        let lag = Lag::default();
        assert_eq!(lag.text(), "+000000000\n");
        lag.set(Some(Duration::from_millis(1234)));
        assert_eq!(lag.text(), "+000001234\n");
        lag.set(None);
        assert_eq!(lag.text(), "+2147483647\n");
    }
}
