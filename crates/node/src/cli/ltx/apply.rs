//! Applying LTX files to a new database, or to a copy of one.
//!
//! Invariants:
//! 1. The output appears under its name only when every file was whole, joined the one before it, and led to the checksum
//!    that it promised; and after it was synced.
//! 2. Nothing that exists is changed, unless `--force` allows the output itself to be replaced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rhyolite_format::{Checksum, PageCount, PageNumber, PageSize, Txid};
use serde::Serialize;

use super::checksum::{for_each_page, refuse_side_files};
use super::read::{self, LtxSummary};
use crate::cli::exit::{Failure, Status};
use crate::cli::output::Output;

#[derive(Debug, Args)]
pub(in crate::cli) struct ApplyArgs {
    /// LTX files, oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Database to write; must not exist unless --force is given
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Start from a copy of this database instead of from nothing
    #[arg(long, value_name = "DB")]
    base: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ApplyLine<'a> {
    output: &'a Path,
    txid: Txid,
    checksum: Checksum,
    page_size: PageSize,
    page_count: PageCount,
}

pub(super) fn run(args: &ApplyArgs) -> Result<(), Failure> {
    if args.output.exists() && !args.force {
        return Err(Failure::failed(format!("{} exists: --force replaces it", args.output.display())));
    }
    refuse_side_files(&args.output)?;
    if let Some(base) = &args.base {
        refuse_side_files(base)?;
    }
    let mut draft = Draft::create(&args.output)?;
    if let Some(base) = &args.base {
        draft.copy(base)?;
    }
    let mut last: Option<LtxSummary> = None;
    for file in &args.files {
        last = Some(draft.apply(file, last.as_ref())?);
    }
    draft.publish(&args.output)?;
    let last = last.expect("clap requires a file");
    let line = ApplyLine {
        output: &args.output,
        txid: last.max_txid,
        checksum: draft.checksum,
        page_size: last.page_size,
        page_count: last.commit,
    };
    let mut out = Output::new();
    if args.json {
        out.json(&line)?;
    } else {
        let (output, ApplyLine { txid, checksum, page_count, .. }) = (args.output.display(), &line);
        out.line(format!("{output}: TXID {txid}, {page_count} pages, checksum {checksum}"))?;
    }
    out.finish()
}

/// The output under construction, beside its final place. Removed when dropped before it is published.
struct Draft {
    path: PathBuf,
    file: File,
    /// Checksum of each page that is there, from page 1; 0 for the lock page.
    pages: Vec<u64>,
    checksum: Checksum,
    page_size: Option<PageSize>,
    published: bool,
}

impl Draft {
    fn create(output: &Path) -> Result<Self, Failure> {
        let name = output.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", output.display())))?;
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(name);
        draft_name.push(format!(".rhyolite-{}", std::process::id()));
        let path = output.with_file_name(draft_name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| Failure::io("create", &path, &e))?;
        Ok(Self { path, file, pages: Vec::new(), checksum: Checksum::EMPTY, page_size: None, published: false })
    }

    fn copy(&mut self, base: &Path) -> Result<(), Failure> {
        let geometry = for_each_page(base, &mut |pgno, page| {
            // The page size is that of the page: the header comes first.
            self.page_size = PageSize::new(u32::try_from(page.len()).expect("a page"));
            self.put(pgno, page)
        })?;
        if let Some((page_size, page_count)) = geometry {
            self.resize(page_size, page_count)?;
        }
        Ok(())
    }

    fn put(&mut self, pgno: PageNumber, page: &[u8]) -> Result<(), Failure> {
        let page_size = self.page_size.expect("set before the first page");
        let checksum = Checksum::of_page(pgno, page);
        if self.pages.len() <= pgno.index() {
            self.pages.resize(pgno.index() + 1, 0);
        }
        let old = std::mem::replace(&mut self.pages[pgno.index()], checksum.get());
        if let Some(old) = Checksum::from_raw(old) {
            self.checksum = self.checksum.toggle(old);
        }
        self.checksum = self.checksum.toggle(checksum);
        let written = self.file.write_all_at(page, pgno.offset(page_size));
        written.map_err(|e| Failure::io("write", &self.path, &e))
    }

    fn resize(&mut self, page_size: PageSize, count: PageCount) -> Result<(), Failure> {
        let kept = usize::try_from(count.get()).expect("32 bits");
        for old in self.pages.drain(kept.min(self.pages.len())..).filter_map(Checksum::from_raw) {
            self.checksum = self.checksum.toggle(old);
        }
        self.pages.resize(kept, 0);
        self.file.set_len(count.bytes(page_size)).map_err(|e| Failure::io("write", &self.path, &e))
    }

    fn apply(&mut self, path: &Path, previous: Option<&LtxSummary>) -> Result<LtxSummary, Failure> {
        let damaged = |m: String| Failure::new(Status::Damaged, format!("{}: {m}", path.display()));
        // The first pass proves the file before anything is taken from it.
        let summary = read::visit(path, &mut |_, _| Ok(()))?;
        summary.check_follows(previous).map_err(damaged)?;
        if summary.snapshot {
            (self.checksum, self.page_size) = (Checksum::EMPTY, None);
            self.pages.clear();
        } else if self.page_size.is_none() {
            return Err(Failure::failed(format!(
                "{} is no snapshot: give the database before it as --base",
                path.display()
            )));
        } else if self.page_size != Some(summary.page_size) {
            return Err(damaged(format!("its page size is {}, the database has another", summary.page_size)));
        }
        if let Some(expected) = summary.pre_apply.filter(|expected| *expected != self.checksum) {
            let found = self.checksum;
            return Err(damaged(format!(
                "it applies to a database with checksum {expected}, but this one has {found}"
            )));
        }
        self.page_size = Some(summary.page_size);
        read::visit(path, &mut |pgno, page| self.put(pgno, page))?;
        self.resize(summary.page_size, summary.commit)?;
        match summary.post_apply {
            Some(expected) if expected != self.checksum => {
                Err(damaged(format!("it promises the checksum {expected}, but leads to {}", self.checksum)))
            }
            _ => Ok(summary),
        }
    }

    fn publish(&mut self, output: &Path) -> Result<(), Failure> {
        self.file.sync_all().map_err(|e| Failure::io("sync", &self.path, &e))?;
        std::fs::rename(&self.path, output).map_err(|e| Failure::io("rename to", output, &e))?;
        self.published = true;
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| Failure::io("sync", folder, &e))?;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done about a draft that cannot be removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
