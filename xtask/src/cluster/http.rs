//! Just enough of HTTP/1.1 for an application and its clients: one request on each connection.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{Context, Outcome, fail};

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The cookie of the proxy, as it is sent back.
    pub cookie: Option<String>,
    /// What it says.
    pub body: String,
}

/// Asks, and waits for the whole answer.
pub fn ask(address: SocketAddr, method: &str, path: &str, cookie: Option<&str>, limit: Duration) -> Outcome<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, limit).context("connect")?;
    stream.set_read_timeout(Some(limit)).context("set a time limit")?;
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 0\r\n{cookie}\r\n");
    stream.write_all(request.as_bytes()).context("send a request")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read an answer")?;
    parse(&text)
}

fn parse(text: &str) -> Outcome<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer without a status")?;
    let named = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    if let Some(length) = named("content-length:")
        && length.parse() != Ok(body.len())
    {
        return fail(format!("{} bytes of an answer of {length}", body.len()));
    }
    let cookie = named("set-cookie:").filter(|cookie| cookie.starts_with("__txid="));
    let cookie = cookie.and_then(|cookie| Some(cookie.split(';').next()?.to_owned()));
    Ok(Answer { status, cookie, body: body.to_owned() })
}

/// Reads a request, and gives its method and path.
pub fn receive(stream: &TcpStream) -> Outcome<(String, String)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).context("read a request")?;
    let mut line = String::new();
    while reader.read_line(&mut line).context("read a request")? > 2 {
        line.clear();
    }
    let mut words = first.split(' ');
    match (words.next(), words.next()) {
        (Some(method), Some(path)) => Ok((method.to_owned(), path.to_owned())),
        _ => fail("no request"),
    }
}

/// Answers.
pub fn answer(mut stream: &TcpStream, status: u16, body: &str) -> Outcome {
    let text = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).context("send an answer")
}

/// Numbers as text, ascending, each as often as it is there: `1-3 3 7`.
pub fn write_numbers(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let words = runs.into_iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The numbers of such a text, and those that are there more than once.
pub fn read_numbers(text: &str) -> Outcome<(BTreeSet<u64>, Vec<u64>)> {
    let (mut numbers, mut twice) = (BTreeSet::new(), Vec::new());
    for word in text.split_whitespace() {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let parse = |word: &str| word.parse::<u64>().context(format!("{word:?} is no number"));
        for number in parse(first)?..=parse(last)? {
            if !numbers.insert(number) {
                twice.push(number);
            }
        }
    }
    Ok((numbers, twice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_doubles_are_seen() {
        assert_eq!(write_numbers(&[1, 2, 3, 3, 7]), "1-3 3 7");
        let (numbers, twice) = read_numbers("1-3 3 7").unwrap();
        assert_eq!((numbers, twice), (BTreeSet::from([1, 2, 3, 7]), vec![3]));
        assert_eq!(read_numbers("").unwrap().0.len(), 0);
        assert!(read_numbers("1-x").is_err());
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = "HTTP/1.1 200 OK\r\nSet-Cookie: __txid=07; Path=/\r\nContent-Length: 3\r\n\r\n1-2";
        let answer = parse(whole).unwrap();
        assert_eq!((answer.status, answer.cookie.as_deref(), answer.body.as_str()), (200, Some("__txid=07"), "1-2"));
        assert!(parse(&whole[..whole.len() - 1]).is_err());
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
    }
}
