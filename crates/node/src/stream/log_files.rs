//! The files of a local log, read while capture goes on writing them.
//!
//! A finished segment has an index; of the one that still grows only what was read of it says what it holds. Nothing is believed beyond the
//! position that capture has told: what lies after it may yet be taken back. That the bytes lead to where they say is proved by
//! whoever applies them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rhyolite_format::ltx::{Decoder, LtxHeader, layout};
use rhyolite_format::segment::{self, SegmentEntry, SegmentHeader};
use rhyolite_format::stream::has_room;
use rhyolite_format::{Checksum, Pos, Seq, Txid};

use super::feed::Origin;
use super::frames::{self, Form, Logged, span_of};
use super::{READ_BYTES_MAX, READ_MERGED_BYTES_MAX};
use crate::capture::local_log::segment_path;

/// What the log has after a position.
#[derive(Debug)]
pub(super) enum Found {
    /// Frames of commits, and where they lead to.
    Frames(Vec<Vec<u8>>, Pos),
    /// Nothing that leads on from there.
    Nothing,
    /// A commit that leads on from another state than this.
    Other(Checksum),
}

/// The local log of one database.
#[derive(Debug)]
pub(super) struct LogFiles {
    folder: PathBuf,
    form: Form,
    at: Option<SegmentFile>,
}

/// One of its files.
#[derive(Debug)]
struct SegmentFile {
    file: File,
    entries: Vec<SegmentEntry>,
    is_sealed: bool,
    /// Where the last known entry ends.
    end: u64,
}

impl LogFiles {
    pub(super) fn new(folder: PathBuf, form: Form) -> Self {
        Self { folder, form, at: None }
    }

    /// In which form it gives commits.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Leaves nothing of itself behind but its form.
    pub(super) fn take(&mut self) -> Self {
        let form = self.form;
        std::mem::replace(self, Self::new(PathBuf::new(), form))
    }

    /// Holds no file and no index of one any more, until the next read.
    pub(super) fn close(&mut self) {
        self.at = None;
    }

    /// The commits after `pos`, as many as are read at once, none after `until`.
    pub(super) fn after(&mut self, origin: Origin, pos: Pos, until: Pos) -> io::Result<Found> {
        let wanted = pos.txid.next();
        let mut here = None;
        if let Some(segment) = &mut self.at {
            segment.read_on(until.txid)?;
            here = segment.place_of(wanted);
        }
        if here.is_none() {
            self.at = self.find(origin, wanted, until.txid)?;
            here = self.at.as_ref().and_then(|segment| segment.place_of(wanted));
        }
        let (Some(segment), Some(index)) = (&self.at, here) else { return Ok(Found::Nothing) };
        let entries = &segment.entries[index..];
        match entries[0].pre_apply {
            Some(checksum) if checksum == pos.checksum => segment.frames(self.form, origin, entries, until),
            Some(checksum) => Ok(Found::Other(checksum)),
            None => Ok(Found::Nothing),
        }
    }

    /// The file that holds a commit: the newest one that does not begin after it.
    fn find(&self, origin: Origin, wanted: Txid, until: Txid) -> io::Result<Option<SegmentFile>> {
        for seq in segments(&self.folder)?.into_iter().rev() {
            let file = match File::open(segment_path(&self.folder, seq)) {
                Ok(file) => file,
                // Trimmed meanwhile, and the older ones with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if first_txid(&file, origin).is_none_or(|first| first > wanted) {
                continue;
            }
            let end = segment::HEADER_SIZE as u64;
            let mut found = SegmentFile { file, entries: Vec::new(), is_sealed: false, end };
            found.read_on(until)?;
            return Ok(Some(found));
        }
        Ok(None)
    }
}

fn segments(folder: &Path) -> io::Result<Vec<Seq>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse::<Seq>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// The first commit of a segment of this history; `None` when it holds none, or is not to be read.
fn first_txid(file: &File, origin: Origin) -> Option<Txid> {
    let mut bytes = [0; segment::HEADER_SIZE + layout::HEADER_SIZE];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (segment, ltx) = bytes.split_at(segment::HEADER_SIZE);
    SegmentHeader::decode(segment).ok().filter(|header| header.lineage == origin.lineage)?;
    LtxHeader::decode(ltx).ok().map(|header| if header.is_snapshot() { header.max_txid } else { header.min_txid })
}

impl SegmentFile {
    fn place_of(&self, wanted: Txid) -> Option<usize> {
        let index = self.entries.partition_point(|entry| entry.max_txid < wanted);
        (self.entries.get(index)?.min_txid == wanted).then_some(index)
    }

    /// Learns what was added, up to a commit.
    fn read_on(&mut self, until: Txid) -> io::Result<()> {
        if self.is_sealed || self.entries.last().is_some_and(|last| last.max_txid >= until) {
            return Ok(());
        }
        let size = self.file.metadata()?.len();
        if let Some(entries) = self.index(size) {
            (self.entries, self.is_sealed) = (entries, true);
            return Ok(());
        }
        let mut reader = Counted { reader: BufReader::with_capacity(1 << 18, ReadAt(&self.file, self.end)), bytes: 0 };
        while self.entries.last().is_none_or(|last| last.max_txid < until) {
            let Some(mut entry) = scan(&mut reader) else { break };
            entry.offset = self.end;
            entry.len = std::mem::take(&mut reader.bytes);
            self.end += entry.len;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// The entries of a finished segment.
    fn index(&self, size: u64) -> Option<Vec<SegmentEntry>> {
        let read = |start: u64, len: usize| {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, start).ok().map(|()| bytes)
        };
        let header = SegmentHeader::decode(&read(0, segment::HEADER_SIZE)?).ok()?;
        let footer = read(size.checked_sub(segment::FOOTER_SIZE as u64)?, segment::FOOTER_SIZE)?;
        let start = segment::decode_footer(&footer, size).ok()?.start;
        segment::decode_index(&header, &read(start, usize::try_from(size - start).ok()?)?, size).ok()
    }

    /// The first of these entries, and what is read beside it.
    fn frames(&self, form: Form, origin: Origin, entries: &[SegmentEntry], until: Pos) -> io::Result<Found> {
        let bytes_max = match form {
            Form::Each => READ_BYTES_MAX,
            Form::Merged => READ_MERGED_BYTES_MAX,
        };
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += entry.len;
            entry.max_txid <= until.txid && !entry.is_snapshot() && bytes <= bytes_max as u64
        });
        let entries = &entries[..fits.count().max(1)];
        let (first, last) = entries.first().zip(entries.last()).expect("at least one");
        let size = usize::try_from(last.range().end - first.offset).unwrap_or(usize::MAX);
        if span_of(origin, first, last).is_none() || !has_room(entries.len(), size) {
            return Ok(Found::Nothing);
        }
        // What was captured before a power cut may lie beyond what is captured anew.
        if last.max_txid > until.txid || (last.max_txid == until.txid && last.post_apply != until.checksum) {
            return Ok(Found::Nothing);
        }
        let mut ltx = vec![0; size];
        self.file.read_exact_at(&mut ltx, first.offset)?;
        let commits: Vec<Logged<'_>> = entries
            .iter()
            .map(|entry| {
                let start = usize::try_from(entry.offset - first.offset).expect("lies within the slice");
                (entry, &ltx[start..][..usize::try_from(entry.len).expect("lies within the slice")])
            })
            .collect();
        let frames = frames::frames(form, origin, &commits);
        Ok(Found::Frames(frames.into_iter().map(|(_, frame)| frame).collect(), last.end()))
    }
}

/// What the next LTX file says of itself; `None` when it is not whole. Place and size are for the caller to fill in.
fn scan(reader: &mut Counted<impl Read>) -> Option<SegmentEntry> {
    let mut decoder = Decoder::new(reader).ok()?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.bytes()];
    let mut pages = 0;
    while decoder.next_page(&mut page).ok()?.is_some() {
        pages += 1;
    }
    let (trailer, _) = decoder.finish().ok()?;
    Some(SegmentEntry {
        min_txid: header.min_txid,
        max_txid: header.max_txid,
        offset: 0,
        len: 0,
        timestamp: header.timestamp,
        page_size: header.page_size,
        commit: header.commit,
        pages,
        pre_apply: header.pre_apply,
        post_apply: trailer.post_apply?,
    })
}

/// A file from an offset on.
struct ReadAt<'a>(&'a File, u64);

impl Read for ReadAt<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(out, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// Counts what was read.
struct Counted<R> {
    reader: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(out)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use rhyolite_format::stream::Frame;
    use rhyolite_format::{Epoch, Lineage};

    use super::*;
    use crate::capture::local_log::samples::log_with;

    fn origin(lineage: u8) -> Origin {
        Origin { lineage: Lineage([lineage; 16]), epoch: Epoch::FIRST }
    }

    fn at(n: u8) -> Pos {
        let checksum = Checksum::of_page(rhyolite_format::PageNumber::FIRST, &[n; 512]);
        Pos { txid: Txid::new(u64::from(n)).unwrap(), checksum }
    }

    fn next(log: &mut LogFiles, pos: Pos, until: Pos) -> Option<Pos> {
        match log.after(origin(1), pos, until).unwrap() {
            Found::Frames(frames, pos) => {
                let last = Frame::decode(frames.last().unwrap()).unwrap();
                assert!(matches!(last, Frame::Transactions(commits) if commits.span.after == pos));
                Some(pos)
            }
            Found::Nothing => None,
            Found::Other(checksum) => panic!("other: {checksum}"),
        }
    }

    #[test]
    fn it_leads_on_from_every_position_that_is_there_and_from_no_other() {
        let folder = tempfile::tempdir().unwrap();
        log_with(folder.path(), &[3, 4, 5, 6]);
        let mut log = LogFiles::new(folder.path().to_owned(), Form::Each);
        for n in 2..6 {
            assert_eq!(next(&mut log, at(n), at(6)), Some(at(n + 1)));
            assert_eq!(next(&mut LogFiles::new(folder.path().to_owned(), Form::Each), at(n), at(6)), Some(at(n + 1)));
        }
        assert_eq!(next(&mut log, at(6), at(6)), None);
        assert_eq!(next(&mut log, at(4), at(4)), None, "nothing after what was told");
        assert_eq!(next(&mut log, at(1), at(6)), None, "what was trimmed");
        let other = Pos { checksum: at(9).checksum, ..at(4) };
        let Found::Other(checksum) = log.after(origin(1), other, at(6)).unwrap() else { panic!("taken") };
        assert_eq!(checksum, at(4).checksum);
        assert!(matches!(log.after(origin(2), at(3), at(6)), Ok(Found::Nothing | Found::Frames(..))));
        let mut foreign = LogFiles::new(folder.path().to_owned(), Form::Each);
        assert!(matches!(foreign.after(origin(2), at(3), at(6)), Ok(Found::Nothing)), "another history");
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(matches!(
            LogFiles::new(folder.path().to_owned(), Form::Each).after(origin(1), at(3), at(6)),
            Ok(Found::Nothing)
        ));
    }

    /// The segment that still grows has no index, and its end may be torn.
    #[test]
    fn an_unfinished_segment_is_read_as_far_as_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        log_with(folder.path(), &[3]);
        let path = segment_path(folder.path(), Seq::new(3).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let body = segment::decode_footer(&bytes, bytes.len() as u64).unwrap().start as usize;
        bytes.truncate(body);
        std::fs::write(&path, &bytes[..body - 1]).unwrap();
        let mut log = LogFiles::new(folder.path().to_owned(), Form::Each);
        assert_eq!(next(&mut log, at(2), at(3)), None);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(next(&mut log, at(2), at(3)), Some(at(3)));
    }
}
