//! Asks another node where its file of a database is, and takes from it what that one has beyond ours (docs/spec/stream.md, `/v1/replica` and `/v1/pages`).

use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use http::StatusCode;
use rhyolite_format::{Lineage, PageCount, PageNumber, PageSize, Pos};
use rhyolite_logic::witness::Passed;
use serde::{Deserialize, Serialize};

use super::apply::{Batch, Content};
use super::replica::{self, For, NUMBER_SIZE, PAGES_MAX};
use super::{Following, trails};
use crate::restore::RestoreError;
use crate::restore::draft::Draft;
use crate::stream::SILENCE_MAX;
use crate::stream::client::{Link, LinkError};
use crate::stream::query::Query;

/// Bytes of an answer that is not pages.
const ANSWER_BYTES_MAX: u64 = 4096;
/// Pages are kept in memory up to this size, and otherwise in a file.
const MEMORY_BYTES_MAX: usize = 32 << 20;

/// Where the file of a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Whereabouts {
    /// The history that it belongs to.
    pub(crate) lineage: Lineage,
    /// Its position.
    pub(crate) pos: Pos,
    /// Size of a page in bytes.
    pub(crate) page_size: u32,
    /// Size in pages.
    pub(crate) commit: u32,
    /// Whether it has come through the position that was asked about: `end`, or `elsewhere` when it had another one with that TXID, or `unknown`.
    passed: String,
}

impl Whereabouts {
    /// How it has come there, seen from the position that was asked about.
    pub(crate) fn passed(&self) -> Passed {
        Passed::of_name(&self.passed)
    }
}

/// What is found where the file of a replica should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No file.
    Nothing,
    /// A file of which is not known where it is.
    Unknown,
    /// One that is there.
    Held(Whereabouts),
}

/// Where the file at `path` is, and whether it has come through `passed`.
///
/// # Errors
/// It cannot be read.
pub(crate) fn whereabouts(path: &Path, passed: Pos, whom: For) -> Result<Found, RestoreError> {
    Ok(match replica::look(path, whom)? {
        replica::Found::Nothing => Found::Nothing,
        replica::Found::Unknown => Found::Unknown,
        replica::Found::Held(replica::Held { lineage, end }) => {
            let way = if end.pos == passed { Passed::End } else { trails::way(path, end.pos, passed) };
            let (page_size, commit) = (end.page_size.get(), end.commit.get());
            Found::Held(Whereabouts { lineage, pos: end.pos, page_size, commit, passed: way.name().to_owned() })
        }
    })
}

/// Asks a node where its file of `database` is, and whether it has come through `passed`. `None`: it has none.
///
/// # Errors
/// There is no answer, or the node cannot say.
pub(crate) async fn ask(link: &Link, database: &str, passed: Pos) -> Result<Option<Whereabouts>, LinkError> {
    let path = Query::default().with("db", database).with("passed", passed).of("/v1/replica");
    match within(link, link.read(&path, ANSWER_BYTES_MAX)).await {
        Ok((_, bytes)) => {
            let read = serde_json::from_slice(&bytes);
            read.map(Some).map_err(|e| LinkError::Unexpected(format!("where its file is: {e}")))
        }
        Err(LinkError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An answer that comes in time. A connection on which none does is given up.
async fn within<T>(link: &Link, answer: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    tokio::time::timeout(SILENCE_MAX, answer).await.unwrap_or_else(|_| {
        link.close();
        Err(LinkError::Lost(format!("no answer within {SILENCE_MAX:?}")))
    })
}

/// Something that another node has.
#[derive(Clone, Debug)]
pub(crate) struct Better {
    /// A connection to it.
    pub(crate) link: Link,
    /// Its address.
    pub(crate) address: String,
    /// Where its file is.
    pub(crate) at: Whereabouts,
}

/// Why pages did not come.
pub(super) enum Failed {
    /// The connection is lost, or the node has gone on: ask again.
    Link(LinkError),
    /// What came cannot be used, or could not be kept.
    Here(RestoreError),
}

impl From<LinkError> for Failed {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// The pages by which the file of `better` differs from ours, as a batch that leads there.
pub(super) async fn fetch(better: &Better, database: &str, following: &Following) -> Result<Batch, Failed> {
    let at = &better.at;
    let odd = |what: &str| LinkError::Unexpected(format!("{}: {what}", better.address));
    let page_size = PageSize::new(at.page_size).ok_or_else(|| odd("its file has no size of a page"))?;
    let ours = following.follower();
    let table = if ours.end.page_size == page_size { ours.table() } else { &[] };
    let mut taken = Taken::begin(&following.options.output, page_size)?;
    let mut first = 0;
    while first < at.commit {
        let count = (at.commit - first).min(PAGES_MAX as u32);
        let sum = |index: u32| table.get(index as usize).copied().unwrap_or(0).to_be_bytes();
        let sums: Vec<u8> = (first..first + count).flat_map(sum).collect();
        let query = Query::default().with("db", database).with("pos", at.pos).with("first", first + 1);
        let most = u64::from(count) * (page_size.bytes() + NUMBER_SIZE) as u64;
        let path = query.of("/v1/pages");
        let bytes = within(&better.link, better.link.send(&path, Bytes::from(sums), most)).await?;
        for record in bytes.chunks(NUMBER_SIZE + page_size.bytes()) {
            let (number, page) = record.split_at_checked(NUMBER_SIZE).ok_or_else(|| odd("a page is cut off"))?;
            let number = u32::from_be_bytes(number.try_into().expect("4 bytes"));
            let pgno = PageNumber::new(number).filter(|n| (first + 1..=first + count).contains(&n.get()));
            let pgno =
                pgno.filter(|_| page.len() == page_size.bytes()).ok_or_else(|| odd("a page that was not asked for"))?;
            taken.take(pgno, page).map_err(Failed::Here)?;
        }
        first += count;
    }
    Ok(taken.finish(at.pos, PageCount(at.commit)))
}

/// Pages that have come.
struct Taken {
    content: Content,
    pages: Vec<PageNumber>,
    page_size: PageSize,
    folder: std::path::PathBuf,
}

impl Taken {
    fn begin(output: &Path, page_size: PageSize) -> Result<Self, Failed> {
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { content: Content::Memory(Vec::new()), pages: Vec::new(), page_size, folder: folder.to_owned() })
    }

    fn take(&mut self, pgno: PageNumber, page: &[u8]) -> Result<(), RestoreError> {
        if self.pages.last().is_some_and(|last| *last >= pgno) {
            return Err(RestoreError::contradiction(
                "what another node sent",
                format!("page {pgno} comes after a later one"),
            ));
        }
        let failed = |e| RestoreError::io("write", Path::new("spool file"), e);
        self.pages.push(pgno);
        if let Content::Memory(bytes) = &mut self.content {
            if bytes.len() + page.len() <= MEMORY_BYTES_MAX {
                bytes.extend_from_slice(page);
                return Ok(());
            }
            let spool = Draft::unnamed(&self.folder)?.into_file();
            for (index, pgno) in self.pages[..self.pages.len() - 1].iter().enumerate() {
                let page = &bytes[index * page.len()..][..page.len()];
                spool.write_all_at(page, pgno.offset(self.page_size)).map_err(failed)?;
            }
            self.content = Content::Spool(spool);
        }
        let Content::Spool(spool) = &self.content else { return Ok(()) };
        spool.write_all_at(page, pgno.offset(self.page_size)).map_err(failed)
    }

    fn finish(self, pos: Pos, commit: PageCount) -> Batch {
        Batch { content: self.content, pages: self.pages, pos, page_size: self.page_size, commit }
    }
}
