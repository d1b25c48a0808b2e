//! Names of the objects of one database, relative to its prefix in the store (docs/spec/log-layout.md).
//!
//! ```text
//! id.json  lease.json  manifest.json
//! log/<seq>.seg                              a log segment
//! ltx/1/<min>-<max>.<epoch>.seg              a bundle
//! ltx/<level>/<min>-<max>.<epoch>.ltx        a merged file (level 2 to 8) or a snapshot (level 9)
//! ```
//!
//! Numbers are 16 lower-case hex digits, so that listings sort by number. A key that is not exactly of this form is not ours.

use crate::types::{Epoch, Seq, Txid};

/// The object that says whose history this prefix holds. Created once, never changed.
pub const ID: &str = "id.json";
/// The right to write. Changed by compare-and-swap.
pub const LEASE: &str = "lease.json";
/// The list of live objects. Changed by compare-and-swap.
pub const MANIFEST: &str = "manifest.json";
/// Where log segments lie.
pub const LOG_PREFIX: &str = "log/";
/// Where bundles, merged files and snapshots lie.
pub const LTX_PREFIX: &str = "ltx/";

/// Level of bundles.
pub const BUNDLE_LEVEL: u8 = 1;
/// Lowest level of merged files.
pub const MERGED_LEVEL_MIN: u8 = 2;
/// Highest level of merged files.
pub const MERGED_LEVEL_MAX: u8 = 8;
/// Level of snapshots.
pub const SNAPSHOT_LEVEL: u8 = 9;

/// Key of the log segment with this sequence number.
pub fn segment(seq: Seq) -> String {
    format!("{LOG_PREFIX}{seq}.seg")
}

/// The sequence number in the key of a log segment; `None` for any other key.
pub fn parse_segment(key: &str) -> Option<Seq> {
    let seq = lower_hex(key.strip_prefix(LOG_PREFIX)?.strip_suffix(".seg")?)?.parse().ok()?;
    Some(seq)
}

/// Key of a merged file or a snapshot. `level` is 2 to 9.
pub fn ltx(level: u8, min: Txid, max: Txid, epoch: Epoch) -> String {
    assert!((MERGED_LEVEL_MIN..=SNAPSHOT_LEVEL).contains(&level), "level {level} holds no LTX files");
    format!("{LTX_PREFIX}{level}/{min}-{max}.{epoch}.ltx")
}

/// Key of a bundle.
pub fn bundle(min: Txid, max: Txid, epoch: Epoch) -> String {
    format!("{LTX_PREFIX}{BUNDLE_LEVEL}/{min}-{max}.{epoch}.seg")
}

/// What the key of a bundle, merged file or snapshot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileName {
    /// 1 for bundles, 2 to 8 for merged files, 9 for snapshots.
    pub level: u8,
    /// First transaction.
    pub min_txid: Txid,
    /// Last transaction, not before the first.
    pub max_txid: Txid,
    /// Epoch of the writer.
    pub epoch: Epoch,
}

/// The parts of the key of a bundle, merged file or snapshot; `None` for any other key.
pub fn parse_file(key: &str) -> Option<FileName> {
    let (level, name) = key.strip_prefix(LTX_PREFIX)?.split_once('/')?;
    let [digit @ b'1'..=b'9'] = level.as_bytes() else { return None };
    let level = digit - b'0';
    let stem = name.strip_suffix(if level == BUNDLE_LEVEL { ".seg" } else { ".ltx" })?;
    let (range, epoch) = stem.split_once('.')?;
    let (min, max) = range.split_once('-')?;
    let min_txid = lower_hex(min)?.parse().ok()?;
    let max_txid = lower_hex(max)?.parse().ok()?;
    let epoch = lower_hex(epoch)?.parse().ok()?;
    (min_txid <= max_txid).then_some(FileName { level, min_txid, max_txid, epoch })
}

/// `text` unless it has upper-case digits, which would make a second name for the same object.
fn lower_hex(text: &str) -> Option<&str> {
    (!text.bytes().any(|b| b.is_ascii_uppercase())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    #[test]
    fn keys_parse_back() {
        let (seq, epoch) = (Seq::new(0x1f).unwrap(), Epoch::new(3).unwrap());
        assert_eq!(segment(seq), "log/000000000000001f.seg");
        assert_eq!(parse_segment("log/000000000000001f.seg"), Some(seq));
        let key = ltx(9, Txid::FIRST, txid(200), epoch);
        assert_eq!(key, "ltx/9/0000000000000001-00000000000000c8.0000000000000003.ltx");
        let name = FileName { level: 9, min_txid: Txid::FIRST, max_txid: txid(200), epoch };
        assert_eq!(parse_file(&key), Some(name));
        let key = bundle(txid(7), txid(9), epoch);
        assert_eq!(key, "ltx/1/0000000000000007-0000000000000009.0000000000000003.seg");
        assert_eq!(parse_file(&key), Some(FileName { level: 1, min_txid: txid(7), max_txid: txid(9), epoch }));
    }

    #[test]
    fn other_keys_are_not_ours() {
        for key in [
            "",
            "log/",
            "log/000000000000001F.seg",
            "log/000000000000001f.seg.tmp",
            "log/0000000000000000.seg",
            "log/1f.seg",
            "LOG/000000000000001f.seg",
        ] {
            assert_eq!(parse_segment(key), None, "{key}");
        }
        for key in [
            "ltx/0/0000000000000001-0000000000000002.0000000000000003.ltx",
            "ltx/10/0000000000000001-0000000000000002.0000000000000003.ltx",
            "ltx/1/0000000000000001-0000000000000002.0000000000000003.ltx",
            "ltx/2/0000000000000001-0000000000000002.0000000000000003.seg",
            "ltx/2/0000000000000003-0000000000000002.0000000000000003.ltx",
            "ltx/2/0000000000000001-0000000000000002.ltx",
            "ltx/2/0000000000000001-000000000000000A.0000000000000003.ltx",
            "ltx/2/é",
        ] {
            assert_eq!(parse_file(key), None, "{key}");
        }
    }
}
