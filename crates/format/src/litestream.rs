//! Names of the objects in replicas that Litestream has written (LTX specification, sections 14 and 18).
//!
//! ```text
//! ltx/<level>/<min>-<max>.ltx                              0.5 on file systems, Google Cloud Storage, Azure: level decimal
//! <level>/<min>-<max>.ltx                                  0.5 on S3: level as four hex digits, no folder above it
//! generations/<id>/snapshots/<index>.snapshot.lz4          0.3: the database at the start of WAL `index`
//! generations/<id>/wal/<index>_<offset>.wal.lz4            0.3: a part of WAL `index` from `offset` on
//! ```
//!
//! Hexadecimal numbers are in lower case: 16 digits for TXIDs and generations, 8 for indexes, 8 to 16 for offsets. What is not
//! exactly of one of these forms was not written by Litestream as part of a replica.

use std::fmt;

use crate::ltx::LtxName;

/// The level of full snapshots in a replica of Litestream 0.5, the highest there is.
pub const SNAPSHOT_LEVEL: u8 = 9;
/// The folder of the decimal layout.
pub const LTX_FOLDER: &str = "ltx";
/// The folder of a 0.3 replica.
pub const GENERATIONS_FOLDER: &str = "generations";
/// So many levels there are, from 0.
pub const LEVELS: u8 = SNAPSHOT_LEVEL + 1;

/// How a replica of Litestream 0.5 names its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `ltx/9/`: everywhere but on S3.
    Decimal,
    /// `0009/`: on S3 and stores that speak its protocol.
    Hex,
}

impl Layout {
    /// The folder of a level, without a slash at its end.
    pub fn folder(self, level: u8) -> String {
        assert!(level < LEVELS, "there is no level {level}");
        match self {
            Self::Decimal => format!("{LTX_FOLDER}/{level}"),
            Self::Hex => format!("{level:04x}"),
        }
    }

    /// The key of a file.
    pub fn key(self, level: u8, name: LtxName) -> String {
        format!("{}/{name}", self.folder(level))
    }
}

/// A number that Litestream 0.3 writes as 16 hex digits: one uninterrupted run of WALs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What the key of an object of a replica says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaKey {
    /// An LTX file of Litestream 0.5.
    Ltx {
        /// How its level is written.
        layout: Layout,
        /// 0 to 9.
        level: u8,
        /// Its transactions.
        name: LtxName,
    },
    /// A snapshot of Litestream 0.3.
    Snapshot {
        /// Its generation.
        generation: Generation,
        /// The WAL that follows it.
        index: u32,
    },
    /// A part of a WAL of Litestream 0.3.
    Wal {
        /// Its generation.
        generation: Generation,
        /// Which WAL of the generation.
        index: u32,
        /// Where in that WAL it begins, in bytes.
        offset: u64,
    },
}

impl ReplicaKey {
    /// Takes a key, relative to the replica's root, apart; `None` for every other.
    pub fn parse(key: &str) -> Option<Self> {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            [LTX_FOLDER, level, name] => {
                let [digit @ b'0'..=b'9'] = level.as_bytes() else { return None };
                Self::ltx(Layout::Decimal, digit - b'0', name)
            }
            [level, name] if level.len() == 4 => {
                let level = u8::try_from(hex(level, 4..=4)?).ok().filter(|level| *level < LEVELS)?;
                Self::ltx(Layout::Hex, level, name)
            }
            [GENERATIONS_FOLDER, generation, "snapshots", name] => {
                let generation = Generation(hex(generation, 16..=16)?);
                let index = hex(name.strip_suffix(".snapshot.lz4")?, 8..=8)?;
                Some(Self::Snapshot { generation, index: u32::try_from(index).ok()? })
            }
            [GENERATIONS_FOLDER, generation, "wal", name] => {
                let generation = Generation(hex(generation, 16..=16)?);
                let (index, offset) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
                let index = u32::try_from(hex(index, 8..=8)?).ok()?;
                Some(Self::Wal { generation, index, offset: hex(offset, 8..=16)? })
            }
            _ => None,
        }
    }

    fn ltx(layout: Layout, level: u8, name: &str) -> Option<Self> {
        name.parse().ok().map(|name| Self::Ltx { layout, level, name })
    }
}

/// Digits in lower case, as many as `len` allows.
fn hex(text: &str, len: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if digits && len.contains(&text.len()) { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_layouts_parse_back() {
        let txid = |n| crate::Txid::new(n).unwrap();
        let name = LtxName { min_txid: txid(1), max_txid: txid(0x1f) };
        for (layout, level, key) in [
            (Layout::Decimal, 9, "ltx/9/0000000000000001-000000000000001f.ltx"),
            (Layout::Decimal, 0, "ltx/0/0000000000000001-000000000000001f.ltx"),
            (Layout::Hex, 9, "0009/0000000000000001-000000000000001f.ltx"),
            (Layout::Hex, 0, "0000/0000000000000001-000000000000001f.ltx"),
        ] {
            assert_eq!(layout.key(level, name), key);
            assert_eq!(ReplicaKey::parse(key), Some(ReplicaKey::Ltx { layout, level, name }), "{key}");
        }
    }

    #[test]
    fn keys_of_the_old_layout_are_taken_apart() {
        let generation = Generation(0xb16d_df82_d34e_3c33);
        assert_eq!(
            ReplicaKey::parse("generations/b16ddf82d34e3c33/snapshots/0000000a.snapshot.lz4"),
            Some(ReplicaKey::Snapshot { generation, index: 10 })
        );
        for (key, offset) in [
            ("generations/b16ddf82d34e3c33/wal/0000000a_00001038.wal.lz4", 0x1038),
            ("generations/b16ddf82d34e3c33/wal/0000000a_0000000100001038.wal.lz4", 0x1_0000_1038),
        ] {
            assert_eq!(ReplicaKey::parse(key), Some(ReplicaKey::Wal { generation, index: 10, offset }), "{key}");
        }
        assert_eq!(generation.to_string(), "b16ddf82d34e3c33");
    }

    #[test]
    fn other_keys_are_not_litestreams() {
        for key in [
            "",
            "ltx",
            "id.json",
            "ltx/9/0000000000000001-000000000000001f.0000000000000001.ltx",
            "ltx/1/0000000000000001-000000000000001f.0000000000000001.seg",
            "ltx/10/0000000000000001-000000000000001f.ltx",
            "ltx/a/0000000000000001-000000000000001f.ltx",
            "ltx/0/0000000000000001-000000000000001F.ltx",
            "ltx/0/0000000000000001-000000000000001f.ltx.tmp",
            "0010/0000000000000001-000000000000001f.ltx",
            "000A/0000000000000001-000000000000001f.ltx",
            "00/0000000000000001-000000000000001f.ltx",
            "x/ltx/0/0000000000000001-000000000000001f.ltx",
            "generations/b16ddf82d34e3c3/snapshots/0000000a.snapshot.lz4",
            "generations/B16ddf82d34e3c33/snapshots/0000000a.snapshot.lz4",
            "generations/b16ddf82d34e3c33/snapshots/0a.snapshot.lz4",
            "generations/b16ddf82d34e3c33/wal/0000000a.wal.lz4",
            "generations/b16ddf82d34e3c33/wal/0000000a_1038.wal.lz4",
        ] {
            assert_eq!(ReplicaKey::parse(key), None, "{key}");
        }
    }
}
