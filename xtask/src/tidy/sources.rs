//! Rules about source text, read line by line.
//!
//! What counts as test code: files under a `tests/` folder or named `tests.rs`, modules that their parent declares under
//! `#[cfg(test)]`, and everything after `#[cfg(test)]` with a module body at the left margin. The end of a function is the first line with its closing brace at its own indentation, which holds for text
//! that rustfmt has written.

use super::Finding;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Crates that may not touch the world: everything they need is an argument.
const PURE: &[&str] = &["crates/format/src/", "crates/logic/src/"];

/// Doors to the world.
const WORLDLY: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "tokio",
    "getrandom",
    "rand::",
    "rusqlite",
];

/// Marks of unfinished or careless work, and what is said about them. Written in two parts so that this file passes.
const MARKS: &[(&str, &str, &str)] = &[
    (".unwr", "ap()", "unwrap outside tests: `expect` says why it cannot fail"),
    ("tod", "o!(", "unfinished"),
    ("unimplement", "ed!(", "unfinished"),
    ("db", "g!(", "left over from debugging"),
];

/// Marks that may stand nowhere, tests and comments included.
const MARKS_EVERYWHERE: &[(&str, &str, &str)] = &[
    ("TO", "DO", "unfinished"),
    ("FIX", "ME", "unfinished"),
    ("#[ign", "ore]", "an ignored test needs its reason: `#[ignore = \"...\"]`"),
];

/// Rules that `text` breaks; `test` says whether all of it is test code.
pub(crate) fn check(file: &str, text: &str, test: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, what: &str| {
        findings.push(Finding { file: file.to_owned(), line, what: what.to_owned() });
    };
    if !text.starts_with("//!") {
        find(1, "a file opens with `//!`: what it is and its invariants");
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX {
        find(lines.len(), &format!("{} lines: over {FILE_LINES_MAX}, probably two things", lines.len()));
    }
    let product_lines = if test || is_test_file(file) { 0 } else { lines_before_tests(&lines) };
    let pure = PURE.iter().any(|folder| file.starts_with(folder));
    for (index, line) in lines.iter().enumerate() {
        for (a, b, what) in MARKS_EVERYWHERE {
            if line.contains(&format!("{a}{b}")) {
                find(index + 1, what);
            }
        }
        if index >= product_lines || line.trim_start().starts_with("//") {
            continue;
        }
        for (a, b, what) in MARKS {
            if line.contains(&format!("{a}{b}")) {
                find(index + 1, what);
            }
        }
        for door in WORLDLY.iter().filter(|door| pure && line.contains(**door)) {
            find(index + 1, &format!("{door} in a crate without I/O, clock or chance"));
        }
    }
    for (line, length) in long_functions(&lines[..product_lines]) {
        find(line, &format!("function of {length} lines: {FUNCTION_LINES_MAX} is the edge"));
    }
    findings
}

/// Files that `text` declares as test modules.
pub(crate) fn test_modules(file: &str, text: &str) -> Vec<String> {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    let inside = match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        _ => file.trim_end_matches(".rs").to_owned(),
    };
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let names = declared.filter_map(|pair| pair[1].strip_prefix("mod ")?.strip_suffix(';'));
    names.flat_map(|name| [format!("{inside}/{name}.rs"), format!("{inside}/{name}/mod.rs")]).collect()
}

fn is_test_file(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("tests.rs") || file.ends_with("suite.rs")
}

fn lines_before_tests(lines: &[&str]) -> usize {
    let is_body = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{');
    lines.windows(2).position(is_body).unwrap_or(lines.len())
}

/// First line (from 1) and length of each function that is too long.
fn long_functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words = code.split("fn ").next().unwrap_or_default();
        let opens = code.contains("fn ") && words.chars().all(|c| c.is_alphanumeric() || " ()_\"".contains(c));
        if !opens || code.ends_with(';') || code.ends_with('}') {
            continue;
        }
        let indent = line.len() - code.len();
        let closing = format!("{:indent$}}}", "");
        let length = lines[start..].iter().position(|l| *l == closing || l.trim_start() == code && l.ends_with(';'));
        if let Some(length) = length.map(|l| l + 1).filter(|l| *l > FUNCTION_LINES_MAX) {
            found.push((start + 1, length));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "//! Head.\n";

    fn findings(file: &str, text: &str) -> Vec<String> {
        check(file, text, false).into_iter().map(|f| format!("{}: {}", f.line, f.what)).collect()
    }

    #[test]
    fn a_missing_head_is_found() {
        assert_eq!(findings("crates/node/src/a.rs", "use std::fs;\n").len(), 1);
        assert!(findings("crates/node/src/a.rs", HEAD).is_empty());
    }

    #[test]
    fn a_long_file_is_found() {
        let text = format!("{HEAD}{}", "\n".repeat(FILE_LINES_MAX));
        assert_eq!(findings("a.rs", &text).len(), 1);
    }

    #[test]
    fn clocks_and_files_are_found_only_in_pure_crates_and_not_in_their_tests() {
        let text = format!("{HEAD}let t = std::time::SystemTime::now();\n");
        assert_eq!(findings("crates/logic/src/a.rs", &text).len(), 1);
        assert!(findings("crates/node/src/a.rs", &text).is_empty());
        let text = format!("{HEAD}#[cfg(test)]\nmod tests {{\n    use std::fs;\n}}\n");
        assert!(findings("crates/format/src/a.rs", &text).is_empty());
        assert!(findings("crates/format/src/ltx/tests.rs", &format!("{HEAD}use std::fs;\n")).is_empty());
    }

    #[test]
    fn a_module_declared_for_tests_is_test_code_and_what_follows_the_declaration_is_not() {
        let text = format!("{HEAD}#[cfg(test)]\nmod samples;\nmod a;\nlet x = y{};\n", [".unwr", "ap()"].concat());
        assert_eq!(test_modules("crates/format/src/lib.rs", &text)[0], "crates/format/src/samples.rs");
        assert_eq!(test_modules("crates/format/src/wal.rs", &text)[0], "crates/format/src/wal/samples.rs");
        assert_eq!(findings("crates/format/src/lib.rs", &text).len(), 1);
        assert!(check("crates/format/src/samples.rs", &text, true).is_empty());
    }

    #[test]
    fn careless_marks_are_found() {
        for (a, b, _) in MARKS {
            let text = format!("{HEAD}let x = {a}{b};\n");
            assert_eq!(findings("crates/node/src/a.rs", &text).len(), 1, "{a}{b}");
            assert!(findings("crates/node/src/tests.rs", &text).is_empty(), "{a}{b} in tests");
        }
        for (a, b, _) in MARKS_EVERYWHERE {
            assert_eq!(findings("crates/node/src/tests.rs", &format!("{HEAD}// {a}{b}\n")).len(), 1, "{a}{b}");
        }
        assert!(findings("crates/node/src/a.rs", &format!("{HEAD}#[ignore = \"needs root\"]\n")).is_empty());
    }

    #[test]
    fn a_function_longer_than_a_screen_is_found() {
        let body = "        let x = 1;\n".repeat(FUNCTION_LINES_MAX);
        let text = format!("{HEAD}impl A {{\n    pub(crate) async fn long(&self) {{\n{body}    }}\n}}\n");
        assert_eq!(findings("crates/node/src/a.rs", &text), ["3: function of 72 lines: 70 is the edge"]);
        let short = text.replacen("        let x = 1;\n", "", 2);
        assert!(findings("crates/node/src/a.rs", &short).is_empty());
    }
}
