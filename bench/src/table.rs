//! Figures as rows, rows as files in `target/bench`, files as the table in `docs/benchmarks.md`.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::error::{Context, Outcome};

use crate::lab::Lab;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The figure, as text with its unit.
    pub(crate) figure: String,
    /// What it should be; empty where nothing is asked.
    pub(crate) goal: &'static str,
    /// Whether it is; `None` where nothing is asked.
    pub(crate) met: Option<bool>,
    /// What the figure was compared with, and how it came about.
    pub(crate) detail: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} | {} | {} |", self.what, self.figure, self.goal, self.verdict(), self.detail)
    }
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        }
    }

    fn to_json(&self) -> Value {
        json!([self.what, self.figure, self.goal, self.verdict(), self.detail])
    }
}

fn folder(lab: &Lab) -> PathBuf {
    lab.root.join("target/bench")
}

/// Keeps the rows of benchmark `name` for the table.
pub(crate) fn keep(lab: &Lab, name: &str, rows: &[Row]) -> Outcome {
    fs::create_dir_all(folder(lab)).context("make target/bench")?;
    let json = Value::Array(rows.iter().map(Row::to_json).collect());
    fs::write(folder(lab).join(format!("{name}.json")), json.to_string()).context("keep the rows")
}

/// Writes the generated part of `docs/benchmarks.md`: everything between the two marks.
pub(crate) fn write<'a>(lab: &Lab, names: impl Iterator<Item = &'a str>) -> Outcome {
    let mut text = format!("Machine: {}.\n\n", machine());
    for name in names {
        let Ok(json) = fs::read_to_string(folder(lab).join(format!("{name}.json"))) else { continue };
        let rows: Vec<[String; 5]> = serde_json::from_str(&json).context(format!("read {name}.json"))?;
        text += &format!(
            "`cargo xtask bench {name}`\n\n| what | figure | goal | | how |\n| --- | --- | --- | --- | --- |\n"
        );
        for row in rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
        text += "\n";
    }
    let path = lab.root.join("docs/benchmarks.md");
    let page = fs::read_to_string(&path).context("read docs/benchmarks.md")?;
    let page = between_marks(&page, &text).context("docs/benchmarks.md has lost its marks")?;
    fs::write(&path, page).context("write docs/benchmarks.md")?;
    println!("docs/benchmarks.md is written");
    Ok(())
}

const BEGIN: &str = "<!-- begin: written by cargo xtask bench -->\n";
const END: &str = "<!-- end -->";

fn between_marks(page: &str, text: &str) -> Option<String> {
    let (head, rest) = page.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{text}{END}{tail}"))
}

/// Facts about this machine that figures depend on.
fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split(':').nth(1).unwrap_or("unknown").trim().to_owned()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 =
        field("/proc/meminfo", "MemTotal").split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    format!(
        "{cores} cores ({}), {} GiB memory, Linux {}, SQLite {}",
        field("/proc/cpuinfo", "model name"),
        memory / (1 << 20),
        kernel.trim(),
        rusqlite::version()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_marks_is_replaced() {
        let page = format!("# Title\n{BEGIN}old\n{END}\nreasons\n");
        assert_eq!(between_marks(&page, "new\n").unwrap(), format!("# Title\n{BEGIN}\nnew\n{END}\nreasons\n"));
        assert_eq!(between_marks("# Title\n", "new\n"), None);
    }

    #[test]
    fn a_missed_goal_says_so() {
        let row = |met| Row { what: "w".into(), figure: "1".into(), goal: "2", met, detail: "d".into() };
        assert_eq!(row(Some(false)).to_string(), "| w | 1 | 2 | **missed** | d |");
        assert_eq!(row(None).to_string(), "| w | 1 | 2 |  | d |");
    }
}
