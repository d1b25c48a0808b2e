//! Requests that the application has and has not answered: whoever ends it lets them finish first.

use std::time::Duration;

use tokio::sync::watch;

/// How many there are. Clones count together.
#[derive(Clone, Debug)]
pub struct Flight(watch::Sender<usize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Flying(watch::Sender<usize>);

impl Default for Flight {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Flight {
    /// One more.
    pub(super) fn enter(&self) -> Flying {
        self.0.send_modify(|count| *count += 1);
        Flying(self.0.clone())
    }

    /// Waits until there is none, or for this time, and tells how many there are then. New ones are not kept out.
    pub async fn finished(&self, within: Duration) -> usize {
        let mut count = self.0.subscribe();
        // Whoever takes longer is cut off with the application.
        let _ = tokio::time::timeout(within, count.wait_for(|count| *count == 0)).await;
        *self.0.borrow()
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_last_and_not_later_than_it_may() {
        let flight = Flight::default();
        assert_eq!(flight.finished(Duration::from_secs(60)).await, 0);
        let (one, other) = (flight.enter(), flight.clone().enter());
        let began = tokio::time::Instant::now();
        assert_eq!(flight.finished(Duration::from_secs(3)).await, 2);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        drop(one);
        let waiting = tokio::spawn(async move { flight.finished(Duration::from_secs(60)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(other);
        assert_eq!(waiting.await.unwrap(), 0);
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }
}
