//! Log segments on this machine, which need not be fetched from the store.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use rhyolite_format::segment::{self, Segment, SegmentHeader};
use rhyolite_format::{Lineage, Seq, Txid};
use rhyolite_logic::log::LogSegment;

/// A segment up to this size is read whole: it is most likely needed whole soon.
const WHOLE_BYTES_MAX: u64 = 64 << 10;

/// Log segments on this machine.
pub trait SegmentSource: Send + Sync + std::fmt::Debug {
    /// The finished segment, exactly as the store has it. `None` when it is not here any more.
    fn open(&self, seq: Seq) -> Option<File>;

    /// The last transaction of which the store has acknowledged that it has what is here. `None` when that is not known.
    fn acknowledged(&self) -> Option<Txid> {
        None
    }
}

/// Header and entries of a segment, and all of its bytes if they are few, from here instead of from the store.
///
/// `size` is that of the object in the store. Only a segment whose create the store has acknowledged is taken for the same: another
/// writer's may lie there under the same number.
pub(crate) fn read(
    source: &dyn SegmentSource,
    lineage: Lineage,
    seq: Seq,
    size: u64,
) -> Option<(LogSegment, Option<Bytes>)> {
    let acknowledged = source.acknowledged()?;
    let mut file = source.open(seq)?;
    if file.metadata().ok()?.len() != size {
        return None;
    }
    // Whatever is wrong with it, the store has it too.
    let (Segment { header, entries }, whole) = if size <= WHOLE_BYTES_MAX {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        (Segment::decode(&bytes).ok()?, Some(Bytes::from(bytes)))
    } else {
        (read_index(&mut file, size)?, None)
    };
    let is_known = entries.last().is_some_and(|entry| entry.max_txid <= acknowledged);
    let is_it = header.seq == seq && header.lineage == lineage;
    (is_known && is_it).then(|| (LogSegment::new(header, entries, size), whole))
}

fn read_index(file: &mut File, size: u64) -> Option<Segment> {
    let mut header = [0; segment::HEADER_SIZE];
    file.read_exact(&mut header).ok()?;
    let header = SegmentHeader::decode(&header).ok()?;
    let mut footer = [0; segment::FOOTER_SIZE];
    file.seek(SeekFrom::Start(size - footer.len() as u64)).ok()?;
    file.read_exact(&mut footer).ok()?;
    let start = segment::decode_footer(&footer, size).ok()?.start;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start)).ok()?;
    file.read_to_end(&mut tail).ok()?;
    let entries = segment::decode_index(&header, &tail, size).ok()?;
    Some(Segment { header, entries })
}
