//! Command lines: `--name value`, `--switch`, and words. What nobody asked for is an error.

use std::fmt::Display;
use std::str::FromStr;

use crate::error::{Context, Outcome, fail};

/// The words of a command line that no one has taken yet.
#[derive(Debug)]
pub struct Args(Vec<String>);

impl Args {
    /// The words after the command's name.
    pub fn new(words: impl Iterator<Item = String>) -> Self {
        Self(words.collect())
    }

    /// Takes `--name value`; `None` when it is not there.
    pub fn option<T: FromStr<Err: Display>>(&mut self, name: &str) -> Outcome<Option<T>> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        if at + 1 >= self.0.len() {
            return fail(format!("{name} needs a value"));
        }
        let value = self.0.remove(at + 1);
        self.0.remove(at);
        value.parse().map(Some).context(format!("{name} {value}"))
    }

    /// Takes `--name value` or gives `default`.
    pub fn option_or<T: FromStr<Err: Display>>(&mut self, name: &str, default: T) -> Outcome<T> {
        Ok(self.option(name)?.unwrap_or(default))
    }

    /// Takes `--name`; whether it was there.
    pub fn switch(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|word| word == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes the next word if it is no option: words stand before options, whose values look like words.
    pub fn word(&mut self) -> Option<String> {
        let is_word = self.0.first().is_some_and(|word| !word.starts_with("--"));
        is_word.then(|| self.0.remove(0))
    }

    /// Whatever is left, for somebody else.
    pub fn into_rest(self) -> Vec<String> {
        self.0
    }

    /// Refuses whatever is left.
    pub fn finish(self) -> Outcome {
        match self.0.first() {
            None => Ok(()),
            Some(word) => fail(format!("unknown argument {word:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_switches_and_words_are_taken_once() {
        let mut a = args("word --n 7 --quiet");
        assert_eq!(a.option::<u64>("--n").unwrap(), Some(7));
        assert!(a.switch("--quiet") && !a.switch("--quiet"));
        assert_eq!(a.word().as_deref(), Some("word"));
        a.finish().unwrap();
        assert_eq!(args("--n 7").word(), None, "the value of an option is no word");
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert!(args("--n x").option::<u64>("--n").is_err());
        assert!(args("--n").option::<u64>("--n").is_err());
        assert!(args("--typo").finish().is_err());
    }
}
