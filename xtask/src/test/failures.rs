//! What a program that runs tests has said of those that failed, in short: the end of a long output is what is read first.

/// Lines of one test at most.
const LINES_MAX: usize = 30;
/// Characters of one line at most.
const LINE_CHARS_MAX: usize = 400;

/// A test that failed, and what it said: its panic, and what was printed around it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure<'o> {
    pub(super) name: &'o str,
    lines: Vec<&'o str>,
}

/// Those in the output of a program: it has a block `---- NAME stdout ----` for each.
pub(super) fn failures(output: &str) -> Vec<Failure<'_>> {
    let mut found: Vec<Failure<'_>> = Vec::new();
    let mut is_within = false;
    let mut is_backtrace = false;
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            found.push(Failure { name, lines: Vec::new() });
            (is_within, is_backtrace) = (true, false);
        } else if line == "failures:" || line.starts_with("test result: ") {
            is_within = false;
        } else if is_within {
            is_backtrace = line == "stack backtrace:" || (is_backtrace && is_frame(line));
            let is_hint =
                line.starts_with("note: Some details are omitted") || line.starts_with("note: run with `RUST_");
            if !is_backtrace && !is_hint && !line.trim().is_empty() {
                found.last_mut().expect("a block has begun").lines.push(line);
            }
        }
    }
    found
}

/// `  10: name` or `             at file:line:column`.
fn is_frame(line: &str) -> bool {
    let text = line.trim_start();
    let is_numbered = text.split_once(": ").is_some_and(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()));
    text.len() < line.len() && (is_numbered || text.starts_with("at "))
}

impl Failure<'_> {
    /// For people. Of much that was said it is the panic, with what follows.
    pub(super) fn shown(&self) -> String {
        let said = self.lines.len();
        let panic = self.lines.iter().position(|line| line.contains(" panicked at "));
        let first = if said <= LINES_MAX { 0 } else { panic.unwrap_or(said - LINES_MAX) };
        let shown = &self.lines[first..said.min(first + LINES_MAX)];
        let mut text = format!("---- {}\n", self.name);
        for line in shown {
            text.extend(line.chars().take(LINE_CHARS_MAX));
            text.push_str(if line.chars().nth(LINE_CHARS_MAX).is_some() { " […]\n" } else { "\n" });
        }
        if shown.len() < said {
            text.push_str(&format!("[{} more lines]\n", said - shown.len()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 3 tests
test a::good ... ok
test a::bad ... FAILED
test b ... FAILED

failures:

---- a::bad stdout ----
it said this before

thread 'a::bad' (7) panicked at tests/it/a.rs:3:5:
waited in vain for 1: something
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/5980/library/std/src/panicking.rs:689:5
  10: {closure#0}<core::pin::Pin<&mut dyn Future<Output=()>>>
             at ./tests/it/a.rs:3:5
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
a command that was still running had said:
  at its end

---- b stdout ----
Error: \"no\"


failures:
    a::bad
    b

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn a_failure_is_its_name_and_what_was_said_without_the_backtrace() {
        let shown: Vec<String> = failures(OUTPUT).iter().map(Failure::shown).collect();
        let first = "---- a::bad
it said this before
thread 'a::bad' (7) panicked at tests/it/a.rs:3:5:
waited in vain for 1: something
a command that was still running had said:
  at its end
";
        assert_eq!(shown, [first, "---- b\nError: \"no\"\n"]);
        assert_eq!(failures("test a ... ok\n\ntest result: ok. 1 passed"), []);
    }

    #[test]
    fn of_much_that_was_said_the_panic_is_shown() {
        let line = "x".repeat(LINE_CHARS_MAX + 1);
        let chatter = "chatter\n".repeat(LINES_MAX);
        let output = format!("---- t stdout ----\n{chatter}thread 't' panicked at x.rs:1:1:\n{line}\n{chatter}");
        let shown = failures(&output)[0].shown();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[1], "thread 't' panicked at x.rs:1:1:");
        assert_eq!(lines[2], format!("{} […]", &line[1..]));
        assert_eq!((lines.len(), lines[lines.len() - 1]), (LINES_MAX + 2, "[32 more lines]"));
        let silent = format!("---- t stdout ----\n{chatter}the end\n");
        assert!(failures(&silent)[0].shown().ends_with("\nthe end\n[1 more lines]\n"));
    }
}
