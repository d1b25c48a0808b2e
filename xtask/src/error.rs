//! One error for all commands: a line of text, with what was being done in front of the cause.

use std::fmt;

/// What went wrong, as one line.
#[derive(Debug)]
pub struct Error(String);

/// Result of anything in this crate.
pub type Outcome<T = ()> = Result<T, Error>;

/// An error that says `message`.
pub fn fail<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Error(message.into()))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds what was being done to whatever went wrong.
pub trait Context<T> {
    /// The error becomes `doing: cause`.
    fn context(self, doing: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Outcome<T> {
        self.map_err(|cause| Error(format!("{doing}: {cause}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl fmt::Display) -> Outcome<T> {
        self.ok_or_else(|| Error(doing.to_string()))
    }
}
