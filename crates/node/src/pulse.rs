//! Whether the supervisor still answers: what hangs there stands still for every database, while the rest of the process looks well.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How long an answer may take: a start with many databases is not interrupted while it looks at all of their files.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A question to the supervisor, and its answers.
#[derive(Debug)]
pub struct Pulse {
    asked: Notify,
    answers: watch::Sender<u64>,
    is_over: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { asked: Notify::new(), answers: watch::Sender::new(0), is_over: AtomicBool::new(false) }
    }
}

impl Pulse {
    /// Whether the supervisor answers within this time. At the end of the process, which has time limits of its own, it need not.
    pub async fn is_there(&self, within: Duration) -> bool {
        let mut answers = self.answers.subscribe();
        answers.mark_unchanged();
        self.asked.notify_one();
        if self.is_over.load(Ordering::Acquire) {
            return true;
        }
        tokio::time::timeout(within, answers.changed()).await.is_ok()
    }

    /// Returns when somebody asks. May be dropped and called again.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    pub(crate) fn answer(&self) {
        self.answers.send_modify(|count| *count += 1);
    }

    /// From here on there is somebody to be asked, again.
    pub(crate) fn begin(&self) {
        self.is_over.store(false, Ordering::Release);
    }

    /// From here on nobody is asked.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.answer();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn it_is_there_as_long_as_it_answers_and_when_all_is_over() {
        let pulse = Arc::new(Pulse::default());
        let short = Duration::from_millis(20);
        assert!(!pulse.is_there(short).await, "nobody answers");
        let answering = Arc::clone(&pulse);
        let supervisor = tokio::spawn(async move {
            loop {
                answering.asked().await;
                answering.answer();
            }
        });
        for _ in 0..3 {
            assert!(pulse.is_there(Duration::from_secs(10)).await);
        }
        supervisor.abort();
        let _ = supervisor.await;
        assert!(!pulse.is_there(short).await, "it hangs");
        pulse.end();
        assert!(pulse.is_there(short).await);
    }
}
