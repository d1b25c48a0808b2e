//! "Did you mean": the known word nearest to an unknown one, and what became of keys that other programs have.

/// The candidate that a typing error most likely turned into `word`, if any is near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    let distances = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}

/// Levenshtein distance in characters, ignoring case and taking `_` for `-`.
fn distance(a: &str, b: &str) -> usize {
    let normal = |c: char| if c == '_' { '-' } else { c.to_ascii_lowercase() };
    let b: Vec<char> = b.chars().map(normal).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().map(normal).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// What to write instead of a key of Litestream's that means something else here, or nothing.
pub(super) fn litestream_key(key: &str) -> Option<&'static str> {
    Some(match key {
        "levels" => "levels are set by bundle.interval and merge.interval",
        "retention" | "l0-retention" | "l0-retention-check-interval" => {
            "what is kept is set by keep.every-commit, keep.hourly and keep.daily"
        }
        "replicas" => "write one `replica` per database",
        "max-sync-wal-bytes" | "max-sync-ltx-files" => "segments are bounded by max-segment-size",
        "auto-recover" => "recovery is always automatic",
        "verify-compaction" | "validation" | "validation-interval" => "every file is always checked by checksum",
        "mcp-addr" => "use `addr` for HTTP, or `socket`",
        "age" => "there is no encryption; encrypt on the side of the store",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = ["path", "replica", "sync-interval", "meta-path"];
        assert_eq!(nearest("pth", keys), Some("path"));
        assert_eq!(nearest("sync_interval", keys), Some("sync-interval"));
        assert_eq!(nearest("Replica", keys), Some("replica"));
        assert_eq!(nearest("replicas", keys), Some("replica"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
