//! Notes which pages of the draft are written, so that an interrupted restore goes on where it stopped.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rhyolite_format::resume::{HEADER_SIZE, ResumeHeader, ResumeRecord};
use rhyolite_format::{Checksum, Lineage, PageNumber, PageSize};

use super::RestoreError;
use super::base::{Base, PageSet};
use super::draft::beside;

/// Appended to the output's name for the list of pages that the draft holds.
const DONE_SUFFIX: &str = "-rhyolite-restored";
/// Pages that are read back at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// The list of pages that are written, as it grows.
#[derive(Debug)]
pub(crate) struct DoneLog {
    file: Mutex<File>,
    path: PathBuf,
}

/// Where the list for an output lies.
pub(crate) fn done_path(output: &Path) -> PathBuf {
    beside(output, DONE_SUFFIX)
}

impl DoneLog {
    /// Starts a list, or goes on with one whose header is the same.
    pub(crate) fn open(output: &Path, header: &ResumeHeader, goes_on: bool) -> Result<Self, RestoreError> {
        let path = done_path(output);
        let file = if goes_on {
            OpenOptions::new().append(true).open(&path)
        } else {
            File::create(&path).and_then(|mut file| file.write_all(&header.encode()).map(|()| file))
        };
        let file = Mutex::new(file.map_err(|e| RestoreError::io("write", &path, e))?);
        Ok(Self { file, path })
    }

    /// Notes pages that are written, and the XOR of their checksums. `pages` ascend.
    pub(crate) fn note(&self, pages: impl Iterator<Item = PageNumber>, checksum_bits: u64) -> Result<(), RestoreError> {
        let mut runs: Vec<(PageNumber, u32)> = Vec::new();
        for pgno in pages {
            match runs.last_mut() {
                Some((first, count)) if first.get() + *count == pgno.get() => *count += 1,
                _ => runs.push((pgno, 1)),
            }
        }
        let mut bytes = Vec::new();
        ResumeRecord { runs, checksum_bits }.encode(&mut bytes);
        let mut file = self.file.lock().expect("nothing panics while it holds this lock");
        file.write_all(&bytes).map_err(|e| RestoreError::io("write", &self.path, e))
    }
}

/// What an earlier restore to this output has left, read back and compared. `None` when there is nothing to go on with.
pub(crate) fn load(output: &Path, draft: &File, lineage: Lineage) -> Result<Option<Base>, RestoreError> {
    // Whatever is wrong with the list, starting anew is right.
    let Ok(bytes) = std::fs::read(done_path(output)) else { return Ok(None) };
    let Ok(header) = ResumeHeader::decode(&bytes) else { return Ok(None) };
    if header.lineage != lineage {
        return Ok(None);
    }
    let mut here = PageSet::default();
    let mut rest = &bytes[HEADER_SIZE..];
    while let Some(record) = ResumeRecord::take(&mut rest) {
        let pages = record.runs.iter().flat_map(|(first, count)| (first.get()..=u32::MAX).take(*count as usize));
        let pages = pages.filter_map(PageNumber::new).filter(|pgno| header.commit.contains(*pgno));
        let found = checksum_bits(draft, header.page_size, pages.clone());
        if found.map_err(|e| RestoreError::io("read", output, e))? == Some(record.checksum_bits) {
            pages.for_each(|pgno| here.insert(pgno));
        }
    }
    Ok(Some(Base { pos: header.pos, page_size: header.page_size, commit: header.commit, here }))
}

/// XOR of the checksums of these pages of the draft. `None` when it ends before them.
pub(crate) fn checksum_bits(
    draft: &File,
    page_size: PageSize,
    pages: impl Iterator<Item = PageNumber>,
) -> std::io::Result<Option<u64>> {
    let mut buffer = vec![0; READ_BYTES.max(page_size.bytes())];
    // The part of the draft that is in the buffer.
    let (mut start, mut len) = (0, 0);
    let mut bits = 0;
    for pgno in pages {
        let offset = pgno.offset(page_size);
        if offset < start || offset + page_size.bytes() as u64 > start + len {
            start = offset;
            len = read_up_to(draft, &mut buffer, offset)?;
            if len < page_size.bytes() as u64 {
                return Ok(None);
            }
        }
        let within = (offset - start) as usize;
        bits ^= Checksum::of_page(pgno, &buffer[within..within + page_size.bytes()]).get();
    }
    Ok(Some(bits))
}

/// Fills the buffer from an offset on, as far as the file goes.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<u64> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled as u64)
}
