//! Exit statuses, and the failure that becomes one line on standard error.

use std::fmt;
use std::io;

/// How the process ends. The numbers are a promise to scripts; `docs/user/exit-status.md` is compared with [`Status::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done, and verified where there is something to verify.
    Ok = 0,
    /// It could not be done, for a reason without a number of its own.
    Failed = 1,
    /// The command line or the configuration is wrong. Nothing was done.
    Usage = 2,
    /// What is in the store or in a file is damaged or incomplete.
    Damaged = 3,
    /// The store, or the local state, belongs to the history of another database.
    WrongLineage = 4,
    /// There is no backup, or none for the time or TXID that was asked for.
    NoRestorePoint = 5,
    /// `replicate` had to stop before the store had acknowledged every commit. They are uploaded after the next start.
    NotDurable = 6,
    /// What was sent to the primary may have been committed, or not.
    OutcomeUnknown = 7,
    /// A fault in Rhyolite itself.
    Internal = 70,
    /// Whoever read the output went away (128 + SIGPIPE, as shells report it).
    BrokenPipe = 141,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Damaged,
        Self::WrongLineage,
        Self::NoRestorePoint,
        Self::NotDurable,
        Self::OutcomeUnknown,
        Self::Internal,
        Self::BrokenPipe,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// Why a command failed: one line for the user, and how the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub status: Status,
    /// What happened, to which database, file or store, and what to do. Empty prints nothing.
    pub message: String,
}

impl Failure {
    /// A failure with a status of its own.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// A failure without one.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Status::Failed, message)
    }

    /// A command line or configuration that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Standard output cannot be written.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Status::BrokenPipe, "");
        }
        Self::failed(format!("cannot write to standard output: {}", crate::config::io_text(error)))
    }

    /// An I/O error on a path.
    pub fn io(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(format!("cannot {what} {}: {}", path.display(), crate::config::io_text(error)))
    }

    /// The message on one line: line breaks and control characters in names or foreign messages must not make a second.
    pub fn line(&self) -> String {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        self.message.chars().map(printable).collect::<String>().trim().to_owned()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::error::Error for Failure {}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// An error and its causes as one text, from the outermost to the root: `restore: read manifest: connection refused`.
/// A cause that its parent has already said is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let failure = Failure::failed("no such file: a\nb\u{1b}[31m.db\n");
        assert_eq!(failure.line(), "no such file: a b [31m.db");
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = io::Error::other("refused");
        let outer = Failure::failed("x");
        assert_eq!(chain(&outer), "x");
        assert_eq!(chain(&io::Error::other(inner)), "refused");
    }
}
