//! A database file out of a foreign store: filled under another name, checked, moved into place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rhyolite_format::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use rhyolite_format::{PageCount, PageSize};

use super::Image;
use crate::restore::draft::{Draft, spool_folder};
use crate::restore::{Output, RestoreError, RestoreOptions, blocking, refuse_existing};

/// Has `fill` write a database to a draft, and gives the draft the output's name when it is done. What an interrupted restore
/// has left there is thrown away: without checksums of the database nothing tells whether it is of use.
pub(super) async fn produce(
    options: &RestoreOptions,
    fill: impl FnOnce(&Draft) -> Result<Image, RestoreError> + Send + 'static,
) -> Result<Image, RestoreError> {
    if let Output::File(path) = &options.output {
        refuse_existing(path, options.existing)?;
    }
    let draft = match &options.output {
        Output::File(path) => Draft::open(path)?,
        Output::Stdout => Draft::unnamed(&spool_folder(options.spool.clone()))?,
    };
    let to_stdout = options.output == Output::Stdout;
    blocking(move || {
        let filled = fill(&draft).and_then(|image| check_first_page(&draft, &image).map(|()| image));
        match filled {
            Ok(image) if to_stdout => draft.copy_to_stdout().map(|()| image),
            Ok(image) => draft.publish().map(|()| image),
            Err(e) => {
                // What made it fail is said; that something is still there is the lesser evil.
                let _ = draft.discard();
                Err(e)
            }
        }
    })
    .await
}

/// Whether the first page is that of a database of this page size and size.
pub(super) fn check_first_page(draft: &Draft, image: &Image) -> Result<(), RestoreError> {
    check_header(draft.file(), draft.path(), image.page_size, image.commit)
}

fn check_header(file: &File, path: &Path, page_size: PageSize, commit: PageCount) -> Result<(), RestoreError> {
    if commit.get() == 0 {
        return Ok(());
    }
    let what = "page 1 of the restored database";
    let mut start = [0; DATABASE_HEADER_SIZE];
    file.read_exact_at(&mut start, 0).map_err(|e| RestoreError::io("read", path, e))?;
    let header = DatabaseHeader::decode(&start).map_err(|e| RestoreError::damaged(what, e))?;
    if header.page_size != page_size {
        let detail =
            format!("it says that pages have {} bytes, the replica has pages of {page_size}", header.page_size);
        return Err(RestoreError::contradiction(what, detail));
    }
    if header.page_count_is_valid() && header.page_count > commit.get() {
        let detail = format!("it says that there are {} pages, the replica has {}", header.page_count, commit.get());
        return Err(RestoreError::contradiction(what, detail));
    }
    Ok(())
}
