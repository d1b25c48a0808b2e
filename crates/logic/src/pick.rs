//! Which files of a folder are taken for databases: shell patterns on paths relative to it.
//!
//! | written | matches |
//! | --- | --- |
//! | `*` | any run of characters without `/` |
//! | `**` | any run of characters, `/` too; `**/` also nothing |
//! | `?` | one character but `/` |
//! | `[a-z]`, `[!a-z]` | one character of these, or none of these |
//! | `{a,b}` | either |
//! | anything else | itself |
//!
//! A pattern without `/` is matched with the name of a file at any depth, another with its path.

/// A checked pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// Braces taken apart.
    choices: Vec<Vec<char>>,
}

/// Choices that a pattern with braces may stand for.
const CHOICES_MAX: usize = 100;

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// One line: what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.starts_with('/') {
            return Err(format!("the pattern {text:?} must be relative and not empty"));
        }
        let choices = choices(text)?;
        if choices.iter().any(|choice| !has_closed_classes(choice)) {
            return Err(format!("the pattern {text:?} has a `[` without `]`"));
        }
        Ok(Self { text: text.to_owned(), choices })
    }

    /// Whether the file at `path`, relative and with `/` between its parts, is meant.
    pub fn matches(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let target: Vec<char> = if self.text.contains('/') { path } else { name }.chars().collect();
        self.choices.iter().any(|choice| matches(choice, &target))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` is a pattern and not simply a path.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// What the files of a folder are picked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// One of these must match.
    pub include: Vec<Pattern>,
    /// None of these may.
    pub exclude: Vec<Pattern>,
}

impl Pick {
    /// Whether the file at `path` is picked, as far as its name tells.
    pub fn takes(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let is_companion = ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix));
        !is_companion && self.include.iter().any(|p| p.matches(path)) && !self.exclude.iter().any(|p| p.matches(path))
    }
}

/// Whether a folder of this name is ours: a state folder beside a database.
pub fn is_state_folder(name: &str) -> bool {
    name.starts_with('.') && name.ends_with("-rhyolite")
}

fn choices(text: &str) -> Result<Vec<Vec<char>>, String> {
    let Some((before, rest)) = text.split_once('{') else {
        if text.contains('}') {
            return Err(format!("the pattern {text:?} has a `}}` without `{{`"));
        }
        return Ok(vec![text.chars().collect()]);
    };
    let (inside, after) =
        rest.split_once('}').ok_or_else(|| format!("the pattern {text:?} has a `{{` without `}}`"))?;
    if inside.contains('{') {
        return Err(format!("the pattern {text:?} has braces within braces"));
    }
    let mut all = Vec::new();
    for choice in inside.split(',') {
        all.extend(choices(&format!("{before}{choice}{after}"))?);
        if all.len() > CHOICES_MAX {
            return Err(format!("the pattern {text:?} stands for too many"));
        }
    }
    Ok(all)
}

fn has_closed_classes(pattern: &[char]) -> bool {
    let mut rest = pattern;
    while let Some(at) = rest.iter().position(|c| *c == '[') {
        match class(&rest[at..]) {
            Some((_, len)) => rest = &rest[at + len..],
            None => return false,
        }
    }
    true
}

/// The characters between the brackets that `pattern` begins with, and the length with the brackets.
fn class(pattern: &[char]) -> Option<(&[char], usize)> {
    // A bracket right after the opening one stands for itself.
    let first = if pattern.get(1) == Some(&'!') { 3 } else { 2 };
    let end = first + pattern.get(first..)?.iter().position(|c| *c == ']')?;
    Some((&pattern[1..end], end + 1))
}

fn in_class(set: &[char], c: char) -> bool {
    let (set, negated) = match set {
        ['!', rest @ ..] => (rest, true),
        set => (set, false),
    };
    let mut rest = set;
    let mut found = false;
    while let Some(first) = rest.first() {
        match rest {
            [low, '-', high, ..] => {
                found |= (*low..=*high).contains(&c);
                rest = &rest[3..];
            }
            _ => {
                found |= *first == c;
                rest = &rest[1..];
            }
        }
    }
    found != negated && c != '/'
}

/// Matches from left to right; where it fails, the last star takes one character more.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let mut states: Vec<bool> = vec![false; text.len() + 1];
    states[0] = true;
    let mut rest = pattern;
    while !rest.is_empty() {
        let mut next = vec![false; text.len() + 1];
        let used = match rest {
            ['*', '*', '/', ..] => {
                for start in (0..=text.len()).filter(|i| states[*i]) {
                    next[start] = true;
                    (start..text.len()).filter(|i| text[*i] == '/').for_each(|i| next[i + 1] = true);
                }
                3
            }
            ['*', '*', ..] => {
                let first = states.iter().position(|s| *s).unwrap_or(next.len());
                next[first..].fill(true);
                2
            }
            ['*', ..] => {
                let mut on = false;
                for i in 0..=text.len() {
                    on = states[i] || (on && text[i - 1] != '/');
                    next[i] = on;
                }
                1
            }
            _ => {
                let (len, fits): (usize, &dyn Fn(char) -> bool) = match class(rest).filter(|_| rest[0] == '[') {
                    Some((set, len)) => (len, &move |c| in_class(set, c)),
                    None if rest[0] == '?' => (1, &|c| c != '/'),
                    None => (1, &|c| c == rest[0]),
                };
                (0..text.len()).filter(|i| states[*i] && fits(text[*i])).for_each(|i| next[i + 1] = true);
                len
            }
        };
        states = next;
        rest = &rest[used..];
    }
    states[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let pattern = Pattern::new(pattern).unwrap();
        for path in yes {
            assert!(pattern.matches(path), "{pattern} must match {path}");
        }
        for path in no {
            assert!(!pattern.matches(path), "{pattern} must not match {path}");
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        check("*.db", &["a.db", "x/y/a.db", ".db"], &["a.db-wal", "a.dbx", "db"]);
        check("*/app.db", &["x/app.db"], &["app.db", "x/y/app.db"]);
        check("**/app.db", &["app.db", "x/app.db", "x/y/app.db"], &["x/myapp.db"]);
        check("a/**", &["a/b", "a/b/c"], &["b/a/c", "ab"]);
        check(
            "t?nant-[0-9][!x].{db,sqlite}",
            &["tenant-1y.db", "tanant-90.sqlite"],
            &["tenant-1x.db", "tenant-12.dbx"],
        );
        check("[]a].db", &["].db", "a.db"], &["b.db"]);
        check("a*b*c", &["abc", "axxbyyc", "abbcc"], &["acb", "ab"]);
        check("täg?.db", &["tägé.db"], &["täg.db"]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "/a", "[a", "{a", "a}", "{a,{b,c}}", "[!]"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
        assert!(is_pattern("/x/*.db") && !is_pattern("/x/a.db"));
    }

    #[test]
    fn companions_and_excluded_files_are_not_picked() {
        let patterns = |texts: &[&str]| texts.iter().map(|t| Pattern::new(t).unwrap()).collect();
        let pick = Pick { include: patterns(&["*", "x/*.db"]), exclude: patterns(&["*.tmp", "old/**"]) };
        for (path, taken) in [
            ("a.db", true),
            ("a.db-wal", false),
            ("a.db-shm", false),
            ("a.db-journal", false),
            ("a.tmp", false),
            ("old/a.db", false),
            ("x/a.db", true),
        ] {
            assert_eq!(pick.takes(path), taken, "{path}");
        }
        assert!(is_state_folder(".a.db-rhyolite") && !is_state_folder("a.db-rhyolite"));
    }
}
