//! From the client library's errors to kinds that say what to do.
//!
//! For a conditional write only a clear answer is believed: success, 412, or a refusal that a store gives before it looks at
//! the body (other 4xx). Everything else (no answer, 5xx, 408, 409, 429) may have happened.

use std::error::Error as _;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use crate::StoreErrorKind as Kind;

/// What the caller was doing, as far as it changes the meaning of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Reading, listing, deleting: no harm in doing it twice.
    Reading,
    /// Creating or replacing under a condition, or ending an upload.
    Writing,
}

/// Hosts that give credentials to machines of a cloud.
const METADATA_SERVICES: [&str; 2] = ["169.254.169.254", "metadata.google.internal"];

/// The kind and a readable reason. `status` is that of the last response, if there was one.
pub(super) fn classify(doing: Doing, status: Option<u16>, error: &Error) -> (Kind, String) {
    let text = error.to_string();
    // The store itself has not been asked: the library looks for credentials.
    if status.is_none() && METADATA_SERVICES.iter().any(|host| text.contains(host)) {
        let reason = "no credentials were found: not in the environment, not in a profile, and this machine has no metadata \
                      service that gives them";
        return (Kind::Denied, reason.to_owned());
    }
    let status = status.or_else(|| status_in(&text)).or_else(|| status_of(error));
    let kind = match status {
        Some(status) => of_status(doing, status, &text),
        None => match error {
            Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
            | Error::UnknownConfigurationKey { .. } => Kind::Invalid,
            _ if doing == Doing::Reading || never_sent(error) => Kind::Unavailable,
            _ => Kind::Ambiguous,
        },
    };
    (kind, readable(status, &text))
}

fn of_status(doing: Doing, status: u16, text: &str) -> Kind {
    let unclear = if doing == Doing::Writing { Kind::Ambiguous } else { Kind::Unavailable };
    let full = ["QuotaExceeded", "StorageFull", "InsufficientStorage", "InsufficientCapacity"];
    if status >= 400 && full.iter().any(|code| text.contains(code)) {
        return Kind::Full;
    }
    match status {
        400 if text.contains("RequestTimeout") => unclear,
        400 if text.contains("ExpiredToken") || text.contains("AuthenticationFailed") => Kind::Denied,
        401 | 403 => Kind::Denied,
        404 => Kind::NotFound,
        412 => Kind::Conflict,
        416 => Kind::Corrupt,
        // A redirect without a target: the bucket is in another region.
        300..=399 | 501 => Kind::Invalid,
        507 => Kind::Full,
        408 | 409 | 425 | 429 | 500.. => unclear,
        400.. => Kind::Invalid,
        _ => unclear,
    }
}

/// The status in the library's message, for calls that carry no cell for it.
fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn status_of(error: &Error) -> Option<u16> {
    match error {
        Error::NotFound { .. } => Some(404),
        Error::PermissionDenied { .. } => Some(403),
        Error::Unauthenticated { .. } => Some(401),
        Error::Generic { .. } if error.to_string().contains("redirect without LOCATION") => Some(301),
        _ => None,
    }
}

/// True only if no byte of the request can have reached the store.
fn never_sent(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(e) = cause {
        if let Some(http) = e.downcast_ref::<HttpError>() {
            return http.kind() == HttpErrorKind::Connect;
        }
        cause = e.source();
    }
    false
}

/// The store's own code and message where it sent XML, otherwise the library's words, on one line.
fn readable(status: Option<u16>, text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
    };
    let text = match (status, element("Code"), element("Message")) {
        (Some(status), Some(code), Some(message)) => format!("the store answered {status} {code}: {message}"),
        (Some(301..=308), _, _) => "the store answered with a redirect: is the region right?".to_owned(),
        (Some(404), _, _) => "there is no such object or bucket".to_owned(),
        _ => text.to_owned(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clear_answers_are_believed_about_writes() {
        let cases = [
            (200, Kind::Ambiguous),
            (301, Kind::Invalid),
            (400, Kind::Invalid),
            (403, Kind::Denied),
            (404, Kind::NotFound),
            (408, Kind::Ambiguous),
            (409, Kind::Ambiguous),
            (412, Kind::Conflict),
            (429, Kind::Ambiguous),
            (500, Kind::Ambiguous),
            (501, Kind::Invalid),
            (503, Kind::Ambiguous),
            (507, Kind::Full),
        ];
        for (status, kind) in cases {
            assert_eq!(of_status(Doing::Writing, status, ""), kind, "{status}");
        }
        assert_eq!(of_status(Doing::Reading, 503, ""), Kind::Unavailable);
        assert_eq!(of_status(Doing::Writing, 403, "<Code>QuotaExceeded</Code>"), Kind::Full);
    }

    #[test]
    fn reasons_are_short() {
        let text = "Generic S3 error: … status code: 403 Forbidden: <Error>\n<Code>AccessDenied</Code><Message>No\n way</Message>";
        assert_eq!(readable(Some(403), text), "the store answered 403 AccessDenied: No way");
        assert_eq!(status_in(text), Some(403));
    }
}
