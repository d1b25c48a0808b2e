//! Store URLs: `scheme://[user@]host[/path][?option=value&…]`.
//!
//! The path is taken as it stands (keys may hold `%`), option values are percent-decoded. No option may be left over:
//! [`StoreUrl::finish`] refuses those that nobody has taken.

use std::collections::BTreeMap;

use crate::{Operation, StoreError, StoreErrorKind};

#[derive(Debug)]
pub(crate) struct StoreUrl {
    /// As given, but without the options, which may hold secrets.
    pub(crate) shown: String,
    pub(crate) scheme: String,
    /// What stands before the `@`, if anything does.
    pub(crate) user: Option<String>,
    /// Whether a password stood there too. It is not kept.
    pub(crate) had_password: bool,
    /// Bucket or container.
    pub(crate) host: String,
    /// Without slashes at its ends.
    pub(crate) path: String,
    options: BTreeMap<String, String>,
}

impl StoreUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let (before, query) = text.split_once('?').unwrap_or((text, ""));
        let given = before;
        let before = &without_password(given);
        let invalid = |reason: String| StoreError::new(StoreErrorKind::Invalid, Operation::Open, "", before, reason);
        let (scheme, rest) = before.split_once("://").ok_or_else(|| invalid("not a URL".to_owned()))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, authority),
        };
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| invalid(format!("option {pair:?} has no value")))?;
            let value = percent_decode(value).ok_or_else(|| invalid(format!("option {name} is badly encoded")))?;
            if options.insert(name.to_owned(), value).is_some() {
                return Err(invalid(format!("option {name} is given twice")));
            }
        }
        Ok(Self {
            shown: before.clone(),
            scheme: scheme.to_owned(),
            user,
            had_password: given != before,
            host: host.to_owned(),
            path: path.trim_matches('/').to_owned(),
            options,
        })
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> StoreError {
        StoreError::new(StoreErrorKind::Invalid, Operation::Open, "", &self.shown, reason)
    }

    /// Takes the option under one of its names.
    pub(crate) fn take(&mut self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.options.remove(*name)).filter(|v| !v.is_empty())
    }

    /// Takes an option that is `true` or `false`.
    pub(crate) fn take_flag(&mut self, names: &[&str]) -> Result<Option<bool>, StoreError> {
        match self.take(names).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes") => Ok(Some(true)),
            Some("false" | "0" | "no") => Ok(Some(false)),
            Some(other) => Err(self.invalid(format!("option {} is true or false, not {other:?}", names[0]))),
        }
    }

    /// Takes an option that is a size: bytes, or with KiB, MiB, GiB behind.
    pub(crate) fn take_size(&mut self, name: &str) -> Result<Option<u64>, StoreError> {
        let Some(text) = self.take(&[name]) else { return Ok(None) };
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].trim() {
            "" | "B" => Some(1),
            "KiB" | "K" => Some(1u64 << 10),
            "MiB" | "M" => Some(1 << 20),
            "GiB" | "G" => Some(1 << 30),
            _ => None,
        };
        let size = digits.parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
        size.map(Some).ok_or_else(|| self.invalid(format!("option {name} is a size like 8MiB, not {text:?}")))
    }

    /// Refuses options that nobody has taken.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        match self.options.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.invalid(format!("unknown option {name:?} for a {}: URL", self.scheme))),
        }
    }
}

/// `scheme://user:password@host` without the password: what is shown, and all that is looked at.
fn without_password(url: &str) -> String {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let authority = rest.split('/').next()?;
        let (user, _) = authority.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}{}", &rest[user.len()..]))
    });
    hidden.unwrap_or_else(|| url.to_owned())
}

/// `None` if a `%` is not followed by two hex digits, or if the result is not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart() {
        let mut url = StoreUrl::parse("s3://bucket/a/b%20/?endpoint=http%3A%2F%2Fx:1&part-size=16MiB&z=1").unwrap();
        assert_eq!((url.scheme.as_str(), url.host.as_str(), url.path.as_str()), ("s3", "bucket", "a/b%20"));
        assert_eq!(url.take(&["endpoint"]).unwrap(), "http://x:1");
        assert_eq!(url.take_size("part-size").unwrap(), Some(16 << 20));
        assert!(url.finish().unwrap_err().reason.contains("unknown option \"z\""));
        assert_eq!(url.shown, "s3://bucket/a/b%20/");
        let url = StoreUrl::parse("abs://account@container").unwrap();
        assert_eq!((url.user.as_deref(), url.host.as_str(), url.path.as_str()), (Some("account"), "container", ""));
        for bad in ["s3://b?x", "s3://b?x=1&x=2", "s3://b?x=%2", "s3://b?x=%zz", "nothing"] {
            assert_eq!(StoreUrl::parse(bad).unwrap_err().kind, StoreErrorKind::Invalid, "{bad}");
        }
        let mut url = StoreUrl::parse("s3://b?part-size=8Mops&skip-verify=perhaps").unwrap();
        assert!(url.take_size("part-size").is_err() && url.take_flag(&["skip-verify"]).is_err());
    }
}
