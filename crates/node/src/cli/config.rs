//! `config`: a `litestream.yml` in our words.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::exit::Failure;
use super::output::Output;
use crate::config::file;

/// Translate a litestream.yml into a rhyolite.yml.
///
/// The translation goes to standard output, with a comment for each key that means something else here, is not needed, or is not
/// supported. A key that the backup depends on and that is not supported is an error. `replicate --config litestream.yml` does
/// exactly what the translation says.
#[derive(Debug, Args)]
#[command(
    after_help = "Environment variables stand in the translation as they stood. The store of a database is the folder \
`rhyolite` below its Litestream replica, which stays as it is.\n\nExit statuses: 0 translated; 2 it asks for what is not \
done here.\n\nExamples:\n  rhyolite config /etc/litestream.yml > rhyolite.yml\n  rhyolite config litestream.yml --json | \
jq '.notes[]'"
)]
pub(super) struct ConfigArgs {
    /// Configuration of Litestream
    #[arg(value_name = "LITESTREAM_YML")]
    file: PathBuf,
    /// Print one JSON object with the text and the notes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct NoteLine<'a> {
    key: &'a str,
    kind: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct TranslationLine<'a> {
    file: &'a PathBuf,
    text: &'a str,
    notes: Vec<NoteLine<'a>>,
}

pub(super) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let translation = file::translate(&args.file)?;
    let mut out = Output::new();
    if args.json {
        let notes = translation.notes.iter();
        let notes = notes.map(|note| NoteLine { key: &note.key, kind: note.kind.name(), text: note.text }).collect();
        out.json(&TranslationLine { file: &args.file, text: &translation.text, notes })?;
    } else {
        out.bytes(translation.text.as_bytes())?;
    }
    out.finish()
}
