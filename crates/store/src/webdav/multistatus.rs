//! What a PROPFIND answers (RFC 4918): which resources there are, and what is known of them.
//!
//! Only the `DAV:` namespace counts, whatever its prefix is. Properties that a server reports as missing (a `propstat` that is not 200) are
//! left out. Foreign bytes give an error, never a panic; the size of the answer is bounded by whoever reads it.

use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};
use rhyolite_format::Timestamp;

use crate::url::percent_decode;

/// What is asked for.
pub(super) const PROPFIND: &str = r#"<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>"#;

/// One resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resource {
    /// Its path on the server, decoded, without a slash at its end.
    pub(super) path: String,
    pub(super) is_folder: bool,
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) modified: Option<Timestamp>,
}

/// Elements whose text or presence is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Response,
    Propstat,
    Href,
    Status,
    Collection,
    Length,
    Modified,
    Etag,
    Other,
}

fn element(namespace: &ResolveResult<'_>, name: &[u8]) -> Element {
    if *namespace != ResolveResult::Bound(Namespace(b"DAV:")) {
        return Element::Other;
    }
    match name {
        b"response" => Element::Response,
        b"propstat" => Element::Propstat,
        b"href" => Element::Href,
        b"status" => Element::Status,
        b"collection" => Element::Collection,
        b"getcontentlength" => Element::Length,
        b"getlastmodified" => Element::Modified,
        b"getetag" => Element::Etag,
        _ => Element::Other,
    }
}

/// Reads the whole answer.
pub(super) fn parse(xml: &str) -> Result<Vec<Resource>, String> {
    let mut reader = NsReader::from_str(xml);
    let mut answer = Answer::default();
    let wrong = |e: &dyn std::fmt::Display| format!("the server's list is no XML that can be read: {e}");
    loop {
        let (namespace, event) = reader.read_resolved_event().map_err(|e| wrong(&e))?;
        match event {
            Event::Start(tag) => answer.begin(element(&namespace, tag.local_name().as_ref())),
            Event::Empty(tag) => {
                let element = element(&namespace, tag.local_name().as_ref());
                answer.begin(element);
                answer.end(element)?;
            }
            Event::End(tag) => answer.end(element(&namespace, tag.local_name().as_ref()))?,
            Event::Text(text) => answer.text.push_str(&text.decode().map_err(|e| wrong(&e))?),
            Event::CData(text) => answer.text.push_str(&text.decode().map_err(|e| wrong(&e))?),
            Event::GeneralRef(name) => answer.text.push_str(&reference(&name.decode().map_err(|e| wrong(&e))?)?),
            Event::Eof => break,
            _ => {}
        }
    }
    if answer.resource.is_some() {
        return Err("the server's list ends in its middle".to_owned());
    }
    Ok(answer.resources)
}

/// The character that `&name;` stands for.
fn reference(name: &str) -> Result<String, String> {
    let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    let character = match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => match name.strip_prefix('#') {
            Some(rest) if rest.starts_with('x') => number(&rest[1..], 16),
            Some(rest) => number(rest, 10),
            None => None,
        },
    };
    character.map(String::from).ok_or_else(|| format!("the server's list holds an unknown reference &{name};"))
}

#[derive(Debug, Default)]
struct Answer {
    resources: Vec<Resource>,
    /// The response that is being read.
    resource: Option<Resource>,
    /// Its `propstat` that is being read; taken over when its status turns out to be 200.
    properties: Option<Resource>,
    is_found: bool,
    text: String,
}

impl Answer {
    fn begin(&mut self, element: Element) {
        self.text.clear();
        match element {
            Element::Response => self.resource = Some(Resource::default()),
            Element::Propstat => {
                self.properties = Some(Resource::default());
                self.is_found = false;
            }
            _ => {}
        }
    }

    fn end(&mut self, element: Element) -> Result<(), String> {
        let text = std::mem::take(&mut self.text);
        let text = text.trim();
        let properties = self.properties.as_mut();
        match (element, properties) {
            (Element::Response, _) => {
                let resource = self.resource.take().filter(|r| !r.path.is_empty());
                self.resources.extend(resource);
            }
            (Element::Href, None) => {
                if let Some(resource) = &mut self.resource {
                    resource.path =
                        path_of(text).ok_or_else(|| format!("the server lists a badly encoded name: {text}"))?;
                }
            }
            (Element::Status, Some(_)) => self.is_found = text.split(' ').nth(1) == Some("200"),
            (Element::Propstat, Some(_)) => self.take_properties(),
            (Element::Collection, Some(p)) => p.is_folder = true,
            (Element::Length, Some(p)) => p.size = text.parse().ok(),
            (Element::Modified, Some(p)) => p.modified = http_date(text),
            (Element::Etag, Some(p)) => p.etag = Some(plain_etag(text)).filter(|e| !e.is_empty()),
            _ => {}
        }
        Ok(())
    }

    fn take_properties(&mut self) {
        let Some(properties) = self.properties.take().filter(|_| self.is_found) else { return };
        if let Some(resource) = &mut self.resource {
            resource.is_folder |= properties.is_folder;
            resource.size = resource.size.or(properties.size);
            resource.modified = resource.modified.or(properties.modified);
            resource.etag = resource.etag.take().or(properties.etag);
        }
    }
}

/// The decoded path of an `href`, which is a path or a whole URL.
fn path_of(href: &str) -> Option<String> {
    let path = match href.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => href,
    };
    let path = percent_decode(path.trim_matches('/'))?;
    Some(format!("/{path}"))
}

/// An ETag without quotes and without the mark of weakness, which Apache takes away a second after a write.
pub(super) fn plain_etag(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form in which servers send times.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let mut words = date.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as i64 + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|n| n.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next()? != "GMT" || !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    // Days since 1970 of the civil calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(Timestamp((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whatever_its_prefix() {
        let xml = r#"<?xml version="1.0"?><D:multistatus xmlns:D="DAV:" xmlns:x="urn:x"><D:response><D:href>http://h:1/a%20b/</D:href>
            <D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>
            <D:propstat><D:prop><D:getcontentlength>7</D:getcontentlength></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>
            </D:response><D:response><D:href>/a%20b/c&amp;d&#x41;</D:href><D:propstat><D:prop><D:resourcetype/><x:getetag>no</x:getetag>
            <D:getcontentlength>12</D:getcontentlength><D:getetag>W/"e-1"</D:getetag>
            <D:getlastmodified>Sun, 06 Nov 1994 08:49:37 GMT</D:getlastmodified></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>
            </D:response></D:multistatus>"#;
        let folder = Resource { path: "/a b".to_owned(), is_folder: true, ..Resource::default() };
        let file = Resource {
            path: "/a b/c&dA".to_owned(),
            is_folder: false,
            size: Some(12),
            etag: Some("e-1".to_owned()),
            modified: Some(Timestamp(784_111_777_000)),
        };
        assert_eq!(parse(xml), Ok(vec![folder, file]));
    }

    #[test]
    fn foreign_bytes_are_errors() {
        let whole = r#"<d:multistatus xmlns:d="DAV:"><d:response><d:href>/a</d:href></d:response></d:multistatus>"#;
        assert_eq!(parse(whole).unwrap().len(), 1);
        for end in 0..whole.len() {
            // Cut anywhere, it gives nothing wrong: an error, or what was whole.
            if let Ok(resources) = parse(&whole[..end]) {
                assert!(resources.len() <= 1 && resources.iter().all(|r| r.path == "/a"), "{end}");
            }
        }
        for bad in ["<d:href xmlns:d='DAV:'>%zz</d:x>", "<a>&nothing;</a>", "<a></b>", "<<<"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let encoded = r#"<m xmlns="DAV:"><response><href>/%ff</href></response></m>"#;
        assert!(parse(encoded).unwrap_err().contains("badly encoded"));
    }

    #[test]
    fn dates_are_right_and_nonsense_is_none() {
        for (text, ms) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Tue, 29 Feb 2000 12:00:00 GMT", 951_825_600_000),
            ("Wed, 25 Nov 2026 22:06:35 GMT", 1_795_644_395_000),
        ] {
            assert_eq!(http_date(text), Some(Timestamp(ms)), "{text}");
        }
        for bad in [
            "",
            "Thu",
            "Thu, 32 Jan 1970 00:00:00 GMT",
            "Thu, 01 Foo 1970 00:00:00 GMT",
            "Thu, 01 Jan 1970 25:00:00 GMT",
            "Thu, 01 Jan 1970 00:00 GMT",
            "Thu, 01 Jan 1970 00:00:00 CET",
            "Thu, 01 Jan -5 00:00:00 GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }
}
