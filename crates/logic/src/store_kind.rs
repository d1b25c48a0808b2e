//! What lies in a store that is not ours: told by the names of its objects alone.
//!
//! Two kinds in one place are an error and not a guess: a copy of an S3 replica beside a file replica, or a replica of
//! Litestream 0.3 that 0.5 has continued, have two histories, and only the user knows which is meant.

use std::fmt;

use rhyolite_format::litestream::{Layout, ReplicaKey};

/// A kind of replica that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaKind {
    /// Litestream 0.3: snapshots and WALs.
    Litestream3,
    /// Litestream 0.5 on a file system or in a bucket of Google or Azure: LTX files below `ltx/`.
    Litestream5Decimal,
    /// Litestream 0.5 on S3: LTX files below `0000` to `0009`.
    Litestream5Hex,
}

impl ReplicaKind {
    /// Of a 0.5 replica, how it names its levels.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Self::Litestream3 => None,
            Self::Litestream5Decimal => Some(Layout::Decimal),
            Self::Litestream5Hex => Some(Layout::Hex),
        }
    }

    /// The version of Litestream that writes it, as it is named in output and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Litestream3 => "litestream-0.3",
            Self::Litestream5Decimal | Self::Litestream5Hex => "litestream-0.5",
        }
    }

    /// The kind to which an object belongs.
    pub fn of(key: &ReplicaKey) -> Self {
        match key {
            ReplicaKey::Ltx { layout: Layout::Decimal, .. } => Self::Litestream5Decimal,
            ReplicaKey::Ltx { layout: Layout::Hex, .. } => Self::Litestream5Hex,
            ReplicaKey::Snapshot { .. } | ReplicaKey::Wal { .. } => Self::Litestream3,
        }
    }
}

impl fmt::Display for ReplicaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Litestream3 => "a Litestream 0.3 replica (generations/)",
            Self::Litestream5Decimal => "a Litestream 0.5 replica (ltx/)",
            Self::Litestream5Hex => "a Litestream 0.5 replica in the layout of S3 (0000/ to 0009/)",
        })
    }
}

/// More than one kind of replica lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguous {
    /// What lies there, two at least.
    pub kinds: Vec<ReplicaKind>,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.kinds.iter().map(ReplicaKind::to_string).collect();
        f.write_str(&kinds.join(" and "))
    }
}

impl std::error::Error for Ambiguous {}

/// The kind of replica that objects with these keys make up; `None` if there is none. `wanted` decides among several.
pub fn recognise<'a>(
    keys: impl Iterator<Item = &'a ReplicaKey>,
    wanted: impl Fn(ReplicaKind) -> bool,
) -> Result<Option<ReplicaKind>, Ambiguous> {
    let mut kinds: Vec<ReplicaKind> = keys.map(ReplicaKind::of).filter(|kind| wanted(*kind)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() > 1 { Err(Ambiguous { kinds }) } else { Ok(kinds.pop()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECIMAL: &str = "ltx/0/0000000000000001-0000000000000001.ltx";
    const HEX: &str = "0009/0000000000000001-0000000000000001.ltx";
    const OLD: &str = "generations/b16ddf82d34e3c33/wal/0000000a_00001038.wal.lz4";

    fn check(keys: &[&str], wanted: impl Fn(ReplicaKind) -> bool, expected: &str) {
        let keys: Vec<ReplicaKey> = keys.iter().map(|key| ReplicaKey::parse(key).unwrap()).collect();
        let text = match recognise(keys.iter(), wanted) {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(kind)) => kind.to_string(),
            Err(error) => format!("ambiguous: {error}"),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn one_kind_is_recognised_and_two_are_not_guessed_at() {
        check(&[], |_| true, "nothing");
        check(&[DECIMAL, DECIMAL], |_| true, "a Litestream 0.5 replica (ltx/)");
        check(&[HEX], |_| true, "a Litestream 0.5 replica in the layout of S3 (0000/ to 0009/)");
        check(&[OLD], |_| true, "a Litestream 0.3 replica (generations/)");
        check(
            &[DECIMAL, OLD],
            |_| true,
            "ambiguous: a Litestream 0.3 replica (generations/) and a Litestream 0.5 replica (ltx/)",
        );
        check(
            &[DECIMAL, HEX],
            |kind| kind.name() == "litestream-0.5",
            "ambiguous: a Litestream 0.5 replica (ltx/) and a Litestream 0.5 replica in the layout of S3 (0000/ to 0009/)",
        );
    }

    #[test]
    fn the_user_decides_between_versions() {
        let old = |kind: ReplicaKind| kind.name() == "litestream-0.3";
        check(&[DECIMAL, OLD], old, "a Litestream 0.3 replica (generations/)");
        check(&[DECIMAL, OLD], |kind| !old(kind), "a Litestream 0.5 replica (ltx/)");
        check(&[DECIMAL], old, "nothing");
    }
}
