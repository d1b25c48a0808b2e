//! The query of a request: names and values, percent-encoded.

use std::str::FromStr;

use crate::observe::http::percent_decode;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?` of a path.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (name.to_owned(), percent_decode(value)))
                .collect(),
        )
    }

    /// One more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// A value; `None` when it is not there.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// One line.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T, String> {
        let value = self.find(name).ok_or_else(|| format!("`{name}` is missing"))?;
        value.parse().map_err(|_| format!("`{name}` is {value:?}, which makes no sense"))
    }

    /// A path and this query.
    pub fn of(&self, path: &str) -> String {
        let mut text = path.to_owned();
        for (index, (name, value)) in self.0.iter().enumerate() {
            text.push(if index == 0 { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                        text.push(char::from(byte));
                    }
                    byte => text.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let query = Query::default().with("db", "a b/ä&=%?#+.db").with("limit", 7);
        let text = query.of("/v1/log");
        assert_eq!(text, "/v1/log?db=a%20b/%C3%A4%26%3D%25%3F%23%2B.db&limit=7");
        let read = Query::parse(text.split_once('?').unwrap().1);
        assert_eq!(read, query);
        assert_eq!(read.get("limit"), Ok(7));
        assert_eq!(read.get::<u8>("db").unwrap_err(), "`db` is \"a b/ä&=%?#+.db\", which makes no sense");
        assert_eq!(read.get::<u8>("txid").unwrap_err(), "`txid` is missing");
    }
}
