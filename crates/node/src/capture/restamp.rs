//! Segments that the store does not have get the header under which they are uploaded.
//!
//! They were sealed under the epoch of an earlier life, and a fence or a late upload may have taken their sequence numbers. Only
//! header and index change; the transactions stay where they are. A process that is killed in the middle leaves files that
//! [`recover`](super::local_log::recover) still reads: the name decides the place, the chain of checksums the order, and a segment
//! whose index does not fit its header is sealed again.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rhyolite_format::Seq;
use rhyolite_format::segment::{self, SegmentHeader};

use super::local_log::{MOVING_EXTENSION, SealedSegment, Writer, segment_path};

/// Gives the segments that `upload` names the consecutive numbers from `next_seq` on, and `writer`'s mark. Of the others, which the
/// store has, those whose number would be in the way are forgotten.
pub fn restamp(
    segments: Vec<SealedSegment>,
    upload: &[Seq],
    writer: Writer,
    next_seq: Seq,
) -> io::Result<Vec<SealedSegment>> {
    let (unsent, mut all): (Vec<_>, Vec<_>) = segments.into_iter().partition(|s| upload.contains(&s.seq));
    let in_the_way: Vec<SealedSegment> = all.extract_if(.., |s| s.seq >= next_seq).collect();
    in_the_way.iter().try_for_each(|s| fs::remove_file(&s.path))?;
    let mut seq = next_seq;
    let mut moved = Vec::new();
    for segment in unsent {
        let header = SegmentHeader::log(writer.lineage, writer.epoch, seq, writer.nonce, segment.header.created);
        moved.push(stamp(segment, header)?);
        seq = seq.next();
    }
    // Old and new numbers overlap: every file steps aside first.
    for segment in &mut moved {
        if let Some(dir) = segment.path.parent()
            && segment.path != segment_path(dir, segment.seq)
        {
            let aside = segment_path(dir, segment.seq).with_extension(MOVING_EXTENSION);
            fs::rename(&segment.path, &aside)?;
            segment.path = aside;
        }
    }
    for segment in &mut moved {
        if segment.path.extension().is_some_and(|e| e == MOVING_EXTENSION) {
            let path = segment.path.with_extension("seg");
            fs::rename(&segment.path, &path)?;
            segment.path = path;
        }
    }
    all.extend(moved);
    Ok(all)
}

fn stamp(segment: SealedSegment, header: SegmentHeader) -> io::Result<SealedSegment> {
    let index_offset = segment.entries.last().map_or(segment::HEADER_SIZE as u64, |e| e.range().end);
    let mut index = Vec::new();
    segment::encode_index(&segment.entries, &header, index_offset, &mut index);
    write(&segment.path, &header.encode(), &index, index_offset)?;
    Ok(SealedSegment::new(header, segment.path, index_offset + index.len() as u64, segment.entries))
}

fn write(path: &Path, header: &[u8], index: &[u8], index_offset: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(header, 0)?;
    file.write_all_at(index, index_offset)
}

#[cfg(test)]
mod tests {
    use rhyolite_format::{Epoch, Lineage, Nonce};

    use super::super::local_log::recover;
    use super::super::local_log::samples::log_with;
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    fn writer() -> Writer {
        Writer { lineage: Lineage([1; 16]), epoch: Epoch::new(9).unwrap(), nonce: Nonce([9; 16]) }
    }

    /// Segments 5, 6 and 7 with a transaction each; those from `upload` on get numbers from `next` on.
    fn check(upload: &[u64], next: u64, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        log_with(folder.path(), &[5, 6, 7]);
        let before = recover(folder.path(), Lineage([1; 16])).unwrap().segments;
        assert_eq!(before.len(), 3);
        let upload: Vec<Seq> = upload.iter().map(|n| seq(*n)).collect();
        let after = restamp(before, &upload, writer(), seq(next)).unwrap();
        let again = recover(folder.path(), Lineage([1; 16])).unwrap();
        assert!(again.damage.is_empty(), "{:?}", again.damage);
        let say = |segments: &[SealedSegment]| {
            let words = segments.iter().map(|s| {
                assert!(s.bytes().is_ok());
                format!("{}:{}/{}", s.seq.get(), s.entries[0].max_txid.get(), s.header.epoch.get())
            });
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(say(&after), expected);
        assert_eq!(say(&again.segments), expected, "what a start finds");
    }

    #[test]
    fn numbers_and_epochs_follow_the_store() {
        check(&[5, 6, 7], 5, "5:5/9 6:6/9 7:7/9");
        check(&[6, 7], 6, "5:5/1 6:6/9 7:7/9");
        check(&[6, 7], 7, "5:5/1 7:6/9 8:7/9");
        check(&[7], 9, "5:5/1 6:6/1 9:7/9");
        check(&[5, 6, 7], 4, "4:5/9 5:6/9 6:7/9");
        check(&[], 6, "5:5/1");
        check(&[], 8, "5:5/1 6:6/1 7:7/1");
    }

    #[test]
    fn a_kill_in_the_middle_loses_no_transaction() {
        let folder = tempfile::tempdir().unwrap();
        log_with(folder.path(), &[5, 6, 7]);
        let header =
            SegmentHeader::log(Lineage([1; 16]), writer().epoch, seq(6), writer().nonce, rhyolite_format::Timestamp(0));
        let path = segment_path(folder.path(), seq(5));
        // The header of the next place was written, the index was not, and no file was moved.
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&header.encode(), 0).unwrap();
        let found = recover(folder.path(), Lineage([1; 16])).unwrap();
        let txids: Vec<u64> = found.segments.iter().map(|s| s.entries[0].max_txid.get()).collect();
        assert_eq!(txids, [5, 6, 7]);
    }
}
