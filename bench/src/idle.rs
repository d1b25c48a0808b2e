//! What a replicator costs while nothing happens: memory, processor time, requests to the store.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use xtask::args::Args;
use xtask::error::{Context, Outcome, fail};

use crate::lab::{LIMIT, Lab, make_database};
use crate::measure::{cpu_seconds, memory_kib};
use crate::table::Row;

/// Three in a minute, and one that falls into the time by chance.
const RENEWALS_MAX: f64 = 240.0;
const MEMORY_MIB_MAX: f64 = 12.0;

/// What one idle database costs.
struct Idle {
    rss_kib: u64,
    pss_kib: u64,
    requests_per_hour: f64,
    cpu_percent: f64,
}

/// Replicates one small database with and without a lease, lets it rest, and looks.
pub(crate) fn run(lab: &Lab, args: &mut Args) -> Outcome<Vec<Row>> {
    let rest: u64 = args.option_or("--rest", 90)?;
    let alone = measure(lab, "idle", &["--lease=false"], rest)?;
    let leased = measure(lab, "idle-leased", &[], rest)?;
    let mib = leased.rss_kib as f64 / 1024.0;
    Ok(vec![
        Row {
            what: "memory with one idle database".to_owned(),
            figure: format!("{mib:.1} MiB"),
            goal: "≤ 12 MiB",
            met: Some(mib <= MEMORY_MIB_MAX),
            detail: format!("resident; {:.1} MiB of it its own share (PSS)", leased.pss_kib as f64 / 1024.0),
        },
        Row {
            what: "requests to the store in an idle hour, without a lease".to_owned(),
            figure: format!("{:.0}", alone.requests_per_hour),
            goal: "0",
            met: Some(alone.requests_per_hour == 0.0),
            detail: format!("by its own metrics over {rest} s"),
        },
        Row {
            what: "requests to the store in an idle hour, with a lease of a minute".to_owned(),
            figure: format!("{:.0}", leased.requests_per_hour),
            goal: "renewals only: 180",
            met: Some(leased.requests_per_hour <= RENEWALS_MAX),
            detail: format!("by its own metrics over {rest} s"),
        },
        Row {
            what: "processor time with one idle database".to_owned(),
            figure: format!("{:.3} % of a core", leased.cpu_percent),
            goal: "",
            met: None,
            detail: format!("over {rest} s, with the metrics server on"),
        },
    ])
}

fn measure(lab: &Lab, name: &str, options: &[&str], rest: u64) -> Outcome<Idle> {
    let folder = lab.folder(name)?;
    make_database(&folder)?;
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("find a port")?.port();
    let address = format!("127.0.0.1:{port}");
    let mut replicator = lab.replicate(&folder, &[&["--addr", &address], options].concat())?;
    lab.app(&folder, &["--transactions", "1000", "--pause-us", "1000"])?;
    println!("resting for {rest} s ...");
    // What follows a burst of writes (upload, checkpoint, parking) is not rest.
    std::thread::sleep(Duration::from_secs(30));
    let (before, cpu) = (requests(&address)?, cpu_seconds(replicator.id())?);
    std::thread::sleep(Duration::from_secs(rest));
    let (rss_kib, pss_kib) = memory_kib(replicator.id())?;
    let cpu_percent = (cpu_seconds(replicator.id())? - cpu) / rest as f64 * 100.0;
    let requests_per_hour = (requests(&address)? - before) * 3600.0 / rest as f64;
    replicator.terminate(LIMIT)?;
    Ok(Idle { rss_kib, pss_kib, requests_per_hour, cpu_percent })
}

/// The sum of all request counters in the metrics at `address`.
fn requests(address: &str) -> Outcome<f64> {
    let mut stream = TcpStream::connect(address).context("connect to the metrics")?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("ask for the metrics")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read the metrics")?;
    sum_requests(&text)
}

fn sum_requests(text: &str) -> Outcome<f64> {
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("rhyolite_store_requests_total")).collect();
    if lines.is_empty() {
        return fail("the metrics count no requests");
    }
    lines.iter().map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).context(*line)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_all_kinds_are_added_and_none_at_all_is_an_error() {
        let text = "rhyolite_store_requests_total{kind=\"get\"} 3\nother 9\nrhyolite_store_requests_total{kind=\"create\"} 4\n";
        assert_eq!(sum_requests(text).unwrap(), 7.0);
        assert!(sum_requests("other 9\n").is_err());
    }
}
