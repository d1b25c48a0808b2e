//! Environment variables in the text of the configuration file, before it is parsed as YAML.
//!
//! | written | becomes |
//! |---|---|
//! | `${NAME}`, `$NAME` | the value of NAME; NAME is a letter or `_`, then letters, digits, `_` |
//! | `$PID` | the process id |
//! | `$$` | one `$` |
//! | `$` before anything else | itself |
//!
//! Invariants:
//! 1. A variable that is not set is an error, never an empty text: an empty secret or prefix would go unnoticed.
//! 2. A value never changes the line numbers or adds lines, so an error's line is the line in the file.
//! 3. Lines that are only a comment are left alone.

use crate::config::ConfigError;

/// Replaces variables; `lookup` gives the value of one.
///
/// # Errors
/// A variable that is not set, whose value holds a line break or a NUL, or `${` without `}`; with the line.
pub(super) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_start().starts_with('#') {
            out.push_str(line);
        } else {
            expand_line(line, &lookup, &mut out).map_err(|message| ConfigError::at(index as u64 + 1, message))?;
        }
    }
    Ok(out)
}

fn expand_line(line: &str, lookup: &impl Fn(&str) -> Option<String>, out: &mut String) -> Result<(), String> {
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(braced) = after.strip_prefix('{') {
            let (name, after) = braced.split_once('}').ok_or("`${` without `}` on the same line")?;
            if name_length(name) != name.len() || name.is_empty() {
                return Err(format!("`${{{name}}}` is no variable name (write `$$` for a dollar sign)"));
            }
            out.push_str(&value_of(name, lookup)?);
            rest = after;
        } else if name_length(after) > 0 {
            let (name, after) = after.split_at(name_length(after));
            out.push_str(&value_of(name, lookup)?);
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(())
}

fn name_length(text: &str) -> usize {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !text.starts_with(is_start) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn value_of(name: &str, lookup: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    if name == "PID" {
        return Ok(std::process::id().to_string());
    }
    let value = lookup(name).ok_or_else(|| {
        format!("environment variable {name} is not set (write `$$` for a dollar sign, or use --no-expand-env)")
    })?;
    if value.contains(['\n', '\r', '\0']) {
        return Err(format!("the value of environment variable {name} holds a line break, which YAML would misread"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let lookup = |name: &str| match name {
            "A" => Some("alpha".to_owned()),
            "A_1" => Some("beta".to_owned()),
            "EMPTY" => Some(String::new()),
            "LINES" => Some("a\nb: c".to_owned()),
            _ => None,
        };
        match (expand(text, lookup), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.to_string().contains(expected), "{found}"),
            (found, _) => panic!("{text:?} gave {found:?}"),
        }
    }

    #[test]
    fn variables_are_replaced() {
        check("url: s3://$A/${A_1}x/$A_1\n", Ok("url: s3://alpha/betax/beta\n"));
        check("a: \"$EMPTY\"", Ok("a: \"\""));
        check("cost: 5$ or $$A or $1", Ok("cost: 5$ or $A or $1"));
        check("pid: $PID", Ok(&format!("pid: {}", std::process::id())));
        check("  # $UNSET\na: $A", Ok("  # $UNSET\na: alpha"));
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error_with_its_line() {
        check("a: 1\nb: $UNSET\n", Err("line 2: environment variable UNSET is not set"));
        check("b: ${A", Err("`${` without `}`"));
        check("b: ${}", Err("is no variable name"));
        check("b: ${A:-x}", Err("is no variable name"));
        check("b: $LINES", Err("line break"));
    }
}
