//! Commits that have come over the stream, and the batch that they make.
//!
//! Everything that is at hand becomes one batch, in which each page is once: the newest copy. Whether it leads to where its last frame says is for
//! whoever applies it to prove.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhyolite_format::ltx::{LtxHeader, PageIndex, decode_page_frame};
use rhyolite_format::stream::{Frame, Merged, Span, Transactions};
use rhyolite_format::{DecodeError, PageNumber, PageSize, Pos};

use super::apply::{Batch, Content};
use super::live::Ended;
use crate::restore::RestoreError;
use crate::restore::draft::Draft;
use crate::stream::client::{Frames, LinkError};

/// Bytes of frames that are taken into one batch.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// With so many bytes at hand the file is behind: what follows is waited for.
const BACKLOG_BYTES: usize = 512 << 10;
/// For so long at most between two frames.
const BACKLOG_WAIT: Duration = Duration::from_millis(3);
/// Pages of a batch are kept in memory up to this size, and otherwise in a file.
const MEMORY_BYTES_MAX: usize = 32 << 20;
/// What damaged commits are said to be damaged in.
const STREAM: &str = "the stream";

/// What a frame has brought.
#[derive(Debug)]
pub(super) struct Arrived {
    commits: Commits,
    bytes: Bytes,
}

#[derive(Debug)]
enum Commits {
    Each(Transactions),
    Merged(Merged),
}

impl Arrived {
    /// Commits of which each came by itself; the bytes are those of their frame.
    pub(super) fn each(commits: Transactions, bytes: Bytes) -> Self {
        Self { commits: Commits::Each(commits), bytes }
    }

    /// Commits that were merged.
    pub(super) fn merged(commits: Merged, bytes: Bytes) -> Self {
        Self { commits: Commits::Merged(commits), bytes }
    }

    /// From where to where they lead.
    pub(super) fn span(&self) -> &Span {
        match &self.commits {
            Commits::Each(commits) => &commits.span,
            Commits::Merged(commits) => &commits.span,
        }
    }

    /// How many they are.
    pub(super) fn count(&self) -> u64 {
        match &self.commits {
            Commits::Each(commits) => commits.files.len() as u64,
            Commits::Merged(commits) => commits.between.len() as u64 + 1,
        }
    }

    /// The positions before each of them. What cannot be read is said when the pages are.
    pub(super) fn positions(&self) -> Vec<Pos> {
        match &self.commits {
            Commits::Each(commits) => {
                let headers =
                    commits.files.iter().filter_map(|range| LtxHeader::decode(&self.bytes[range.clone()]).ok());
                headers.filter_map(|h| Some(Pos { txid: h.min_txid.previous()?, checksum: h.pre_apply? })).collect()
            }
            Commits::Merged(commits) => {
                [commits.span.before].into_iter().chain(commits.between.iter().copied()).collect()
            }
        }
    }
}

/// How long frames are gathered for one step at most.
const GATHER_MAX: Duration = Duration::from_millis(20);

/// What is at hand beside the first frame, and how the stream has ended if it has.
pub(super) async fn gather(first: Arrived, frames: &mut Frames) -> (Vec<Arrived>, Option<Ended>) {
    let mut bytes = first.bytes.len();
    let page_size = first.span().page_size;
    let mut group = vec![first];
    // Whoever waits to hear of these commits waits no longer than this.
    let until = Instant::now() + GATHER_MAX;
    while bytes < BATCH_BYTES_MAX && Instant::now() < until {
        let next = if bytes < BACKLOG_BYTES {
            frames.next_at_hand().await
        } else {
            // A larger step costs less for each commit.
            tokio::time::timeout(BACKLOG_WAIT, frames.next()).await.unwrap_or(Ok(None))
        };
        let next = match next {
            Ok(Some((Frame::Transactions(commits), bytes))) => Arrived::each(commits, bytes),
            Ok(Some((Frame::Merged(commits), bytes))) => Arrived::merged(commits, bytes),
            Ok(Some((Frame::End(end), _))) => return (group, Some(Ended::End(end))),
            Ok(Some(_)) => continue,
            Ok(None) => break,
            Err(error) => return (group, Some(Ended::Lost(error))),
        };
        if next.span().page_size != page_size {
            return (group, Some(Ended::Lost(LinkError::Unexpected("another page size".to_owned()))));
        }
        bytes += next.bytes.len();
        group.push(next);
    }
    (group, None)
}

/// The newest copy of each page.
pub(super) fn to_batch(group: &[Arrived], folder: &Path) -> Result<Batch, RestoreError> {
    let span = group.last().expect("at least one").span();
    let mut newest = newest_pages(group)?;
    newest.sort_unstable_by_key(|(pgno, _)| *pgno);
    let size = span.page_size.bytes();
    let is_large = newest.len() * size > MEMORY_BYTES_MAX;
    let spool = if is_large { Some(Draft::unnamed(folder_or_here(folder))?.into_file()) } else { None };
    let mut memory = vec![0; if is_large { size } else { newest.len() * size }];
    for (index, (pgno, frame)) in newest.iter().enumerate() {
        let at = if is_large { 0 } else { index * size };
        let page = &mut memory[at..][..size];
        decode_page_frame(frame, *pgno, page).map_err(damaged)?;
        if let Some(spool) = &spool {
            let written = spool.write_all_at(page, pgno.offset(span.page_size));
            written.map_err(|e| RestoreError::io("write", Path::new("spool file"), e))?;
        }
    }
    Ok(Batch {
        content: spool.map_or(Content::Memory(memory), Content::Spool),
        pages: newest.iter().map(|(pgno, _)| *pgno).collect(),
        pos: span.after,
        page_size: span.page_size,
        commit: span.commit,
    })
}

fn folder_or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// Of each page that is still there in the end, the packed form of its newest copy.
fn newest_pages(group: &[Arrived]) -> Result<Vec<(PageNumber, &[u8])>, RestoreError> {
    let mut newest = Newest { pages: Vec::new(), seen: HashSet::new(), size_min: u32::MAX };
    for arrived in group.iter().rev() {
        match &arrived.commits {
            Commits::Each(commits) => newest.take_each(commits, &arrived.bytes)?,
            Commits::Merged(commits) => newest.take_merged(commits, &arrived.bytes)?,
        }
    }
    Ok(newest.pages)
}

/// Pages, of commits from the last to the first.
struct Newest<'a> {
    pages: Vec<(PageNumber, &'a [u8])>,
    seen: HashSet<PageNumber>,
    /// What was cut off since is not what comes in its place later.
    size_min: u32,
}

impl<'a> Newest<'a> {
    fn take_each(&mut self, commits: &Transactions, bytes: &'a [u8]) -> Result<(), RestoreError> {
        let span = &commits.span;
        for (index, file) in commits.files.iter().map(|range| &bytes[range.clone()]).enumerate().rev() {
            let header = LtxHeader::decode(file).map_err(damaged)?;
            let is_last = index + 1 == commits.files.len();
            let is_other = is_last && (header.max_txid, header.commit) != (span.after.txid, span.commit);
            if header.page_size != span.page_size || header.is_snapshot() || is_other {
                let detail = format!("transaction {} has another form", header.min_txid);
                return Err(RestoreError::contradiction(STREAM, detail));
            }
            self.size_min = self.size_min.min(header.commit.get());
            let range = PageIndex::locate(file, file.len() as u64).map_err(damaged)?;
            let index = PageIndex::decode(&file[range.start as usize..range.end as usize], range.start);
            for entry in index.map_err(damaged)?.0 {
                let end = entry.offset.checked_add(entry.size).filter(|end| *end <= range.start);
                let frame = end.map(|end| &file[entry.offset as usize..end as usize]);
                let detail = || format!("page {} lies outside of its transaction", entry.pgno);
                let frame = frame.ok_or_else(|| RestoreError::contradiction(STREAM, detail()))?;
                self.take(entry.pgno, frame, span.page_size)?;
            }
        }
        Ok(())
    }

    /// Of what a commit among them has cut off, and a later one brought back, the later copy is here.
    fn take_merged(&mut self, commits: &Merged, bytes: &'a [u8]) -> Result<(), RestoreError> {
        self.size_min = self.size_min.min(commits.span.commit.get());
        for (pgno, range) in &commits.pages {
            self.take(*pgno, &bytes[range.clone()], commits.span.page_size)?;
        }
        Ok(())
    }

    fn take(&mut self, pgno: PageNumber, frame: &'a [u8], page_size: PageSize) -> Result<(), RestoreError> {
        if pgno.get() > self.size_min || !self.seen.insert(pgno) {
            return Ok(());
        }
        if pgno == page_size.lock_page() {
            return Err(RestoreError::contradiction(STREAM, "it has the page of SQLite's locks".to_owned()));
        }
        self.pages.push((pgno, frame));
        Ok(())
    }
}

fn damaged(error: DecodeError) -> RestoreError {
    RestoreError::damaged(STREAM, error)
}

#[cfg(test)]
mod tests {
    use rhyolite_format::ltx::{Encoder, Packing};
    use rhyolite_format::stream::{encode_merged, encode_transactions};
    use rhyolite_format::{Checksum, Epoch, Lineage, PageCount, Timestamp, Txid};

    use super::*;

    fn at(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::from_crc(txid) }
    }

    /// A transaction that leaves `commit` pages and changes these; each is filled with the number of the transaction.
    fn ltx(txid: u64, commit: u32, pages: &[u32]) -> Vec<u8> {
        let header = LtxHeader {
            no_checksum: false,
            page_size: PageSize::MIN,
            commit: PageCount(commit),
            min_txid: at(txid).txid,
            max_txid: at(txid).txid,
            timestamp: Timestamp(0),
            pre_apply: Some(at(txid - 1).checksum),
            wal_offset: 0,
            wal_size: 0,
            wal_salt: (0, 0),
            node_id: 0,
        };
        let mut out = Vec::new();
        let mut encoder = Encoder::new(header, Packing::Lz4, &mut out).unwrap();
        for pgno in pages {
            encoder.page(PageNumber::new(*pgno).unwrap(), &[txid as u8; 512], &mut out).unwrap();
        }
        encoder.finish(Some(at(txid).checksum), &mut out).unwrap();
        out
    }

    /// What a node says of these transactions, which come after `before`, and that they leave `commit` pages.
    fn sent(before: u64, commit: u32, files: &[Vec<u8>]) -> Arrived {
        let span = Span {
            lineage: Lineage([1; 16]),
            epoch: Epoch::FIRST,
            before: at(before),
            after: at(before + files.len() as u64),
            timestamp: Timestamp(0),
            page_size: PageSize::MIN,
            commit: PageCount(commit),
        };
        let bytes = Bytes::from(encode_transactions(&span, files.iter().map(Vec::as_slice)));
        let Frame::Transactions(commits) = Frame::decode(&bytes).unwrap() else { panic!("another kind") };
        Arrived::each(commits, bytes)
    }

    /// The same of commits that were merged: the packed pages are those of the transactions that are named beside them.
    fn merged(before: u64, after: u64, commit: u32, pages: &[(u32, u64)]) -> Arrived {
        let span = Span { after: at(after), ..*sent(before, commit, &[ltx(before + 1, commit, &[])]).span() };
        let packed: Vec<_> = pages.iter().map(|(pgno, txid)| (*pgno, ltx(*txid, u32::MAX, &[*pgno]))).collect();
        let pages: Vec<_> = packed
            .iter()
            .map(|(pgno, file)| {
                let range = PageIndex::locate(file, file.len() as u64).unwrap();
                let index = PageIndex::decode(&file[range.start as usize..range.end as usize], range.start).unwrap();
                let entry = index.0[0];
                (PageNumber::new(*pgno).unwrap(), &file[entry.offset as usize..][..entry.size as usize])
            })
            .collect();
        let between: Vec<_> = (before + 1..after).map(|txid| at(txid).checksum).collect();
        let bytes = Bytes::from(encode_merged(&span, &between, &pages));
        let Frame::Merged(commits) = Frame::decode(&bytes).unwrap() else { panic!("another kind") };
        Arrived::merged(commits, bytes)
    }

    #[test]
    fn of_each_page_the_newest_copy_is_taken_and_none_that_was_cut_off() {
        let first = sent(2, 2, &[ltx(3, 4, &[1, 2, 3, 4]), ltx(4, 2, &[1])]);
        let second = sent(4, 3, &[ltx(5, 3, &[3])]);
        let batch = to_batch(&[first, second], Path::new("")).unwrap();
        let pages: Vec<_> = batch.pages.iter().map(|pgno| pgno.get()).collect();
        assert_eq!((pages, batch.pos, batch.commit), (vec![1, 2, 3], at(5), PageCount(3)));
        let Content::Memory(bytes) = batch.content else { panic!("spooled") };
        assert_eq!([0, 512, 1024].map(|at| bytes[at]), [4, 3, 5]);
    }

    #[test]
    fn transactions_that_are_not_what_their_frame_says_are_refused() {
        let refused = |sent| {
            let result = to_batch(&[sent], Path::new(""));
            assert!(
                matches!(result, Err(RestoreError::Contradiction { .. } | RestoreError::Damaged { .. })),
                "{result:?}"
            );
        };
        assert!(to_batch(&[sent(2, 1, &[ltx(3, 1, &[1])])], Path::new("")).is_ok());
        refused(sent(2, 7, &[ltx(3, 1, &[1])]));
        refused(sent(2, 1, &[ltx(3, 7, &[1, 7])]));
        refused(sent(2, 1, &[ltx(4, 1, &[1])]));
        refused(sent(2, 1, &[vec![0; 200]]));
        refused(sent(2, 1, &[vec![0xff; 200]]));
    }

    #[test]
    fn merged_commits_and_others_make_one_batch() {
        let group = [
            sent(2, 5, &[ltx(3, 5, &[1, 2, 3, 5])]),
            merged(3, 6, 4, &[(2, 5), (4, 6)]),
            sent(6, 4, &[ltx(7, 4, &[4])]),
        ];
        let batch = to_batch(&group, Path::new("")).unwrap();
        let pages: Vec<_> = batch.pages.iter().map(|pgno| pgno.get()).collect();
        assert_eq!((pages, batch.pos, batch.commit), (vec![1, 2, 3, 4], at(7), PageCount(4)));
        let Content::Memory(bytes) = batch.content else { panic!("spooled") };
        assert_eq!([0, 512, 1024, 1536].map(|at| bytes[at]), [3, 5, 3, 7]);
        let passed: Vec<Pos> = group.iter().flat_map(Arrived::positions).collect();
        assert_eq!(passed, [2, 3, 4, 5, 6].map(at));
        assert_eq!(group.iter().map(Arrived::count).sum::<u64>(), 5);
        let batch = to_batch(&group[..2], Path::new("")).unwrap();
        let pages: Vec<_> = batch.pages.iter().map(|pgno| pgno.get()).collect();
        assert_eq!((pages, batch.pos), (vec![1, 2, 3, 4], at(6)), "page 5 was cut off");
    }
}
