//! Standard output: text in columns for people, JSON for programs. A reader that goes away ends the command quietly.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use super::exit::Failure;

/// Locked and buffered standard output.
#[derive(Debug)]
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes standard output until the value is dropped.
    pub fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    /// One line of text.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        writeln!(self.0, "{}", text.as_ref()).map_err(|e| Failure::output(&e))
    }

    /// One JSON value on one line.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.0, value).map_err(|e| Failure::output(&e.into()))?;
        self.line("")
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|e| Failure::output(&e))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|e| Failure::output(&e))
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

/// Rows as columns of equal width, numbers to the right. The first row is the heading.
pub fn columns<const N: usize>(rows: &[[String; N]], right: [bool; N]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).zip(right);
        let cells = cells.map(|((cell, w), right)| if right { format!("{cell:>w$}") } else { format!("{cell:<w$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["TXID".to_owned(), "PAGES".to_owned()], ["1".to_owned(), "20".to_owned()]];
        assert_eq!(columns(&rows, [false, true]), ["TXID  PAGES", "1        20"]);
    }
}
