//! What a key may be: the same rules for every backend, so that a directory can be copied to a bucket and back.

use crate::{Operation, StoreError, StoreErrorKind};

/// Longest key in bytes: S3's limit.
pub const KEY_BYTES_MAX: usize = 1024;

/// Longest part between slashes in bytes: what file systems allow.
const PART_BYTES_MAX: usize = 255;

/// No part of a key begins like this: the directory backend's own files do.
pub const RESERVED_PREFIX: &str = ".rhyolite-";

/// Refuses what some backend could not store faithfully: empty keys and parts, `.`, `..`, control characters, backslashes
/// (Azure turns them into slashes), too long ones, and the directory backend's own names.
pub fn check_key(operation: Operation, key: &str, store: &dyn Fn() -> String) -> Result<(), StoreError> {
    match fault(key) {
        None => Ok(()),
        Some(why) => {
            Err(StoreError::new(StoreErrorKind::Invalid, operation, key, store(), format!("not a valid key: {why}")))
        }
    }
}

/// Like [`check_key`] for the folder of a list: also empty, or with one slash at the end. Gives it without that slash.
pub(crate) fn check_prefix<'a>(prefix: &'a str, store: &dyn Fn() -> String) -> Result<&'a str, StoreError> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() {
        check_key(Operation::List, folder, store)?;
    }
    Ok(folder)
}

fn fault(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        return Some("it is empty");
    }
    if key.len() > KEY_BYTES_MAX {
        return Some("it is longer than 1024 bytes");
    }
    if key.chars().any(char::is_control) {
        return Some("it holds a control character");
    }
    if key.contains('\\') {
        return Some("it holds a backslash");
    }
    key.split('/').find_map(|part| match part {
        "" => Some("it has an empty part (a slash too many)"),
        "." | ".." => Some("it has a part that is a dot or two"),
        p if p.starts_with(RESERVED_PREFIX) => Some("names that begin with \".rhyolite-\" are reserved"),
        p if p.len() > PART_BYTES_MAX => Some("it has a part longer than 255 bytes"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_portable_keys_pass() {
        for good in ["a", "log/0000000000000001.seg", "ä/ö", "a b", "a+b%20", "~", ".hidden", "a..b", "#?*&"] {
            assert_eq!(fault(good), None, "{good}");
        }
        let long = "x".repeat(256);
        let longer = "x/".repeat(513);
        for bad in
            ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a\nb", "a\0", "a\\b", ".rhyolite-lock", &long, &longer]
        {
            assert!(fault(bad).is_some(), "{bad:?}");
        }
    }
}
