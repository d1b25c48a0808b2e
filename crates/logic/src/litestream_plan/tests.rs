//! Plans against the listings of the vectors, and at the edges.

use rhyolite_format::ltx::LtxName;
use serde_json::Value;

use super::*;

#[path = "../../../format/tests/it/vectors.rs"]
mod vectors;

fn file(level: u64, name: &str, created: i64) -> ReplicaFile {
    let name: LtxName = name.parse().unwrap();
    let level = level as u8;
    ReplicaFile { level, min_txid: name.min_txid, max_txid: name.max_txid, created: Timestamp(created) }
}

fn target(query: &Value) -> ReplicaTarget {
    match (query.get("txid"), query.get("before_ms")) {
        (None, None) => ReplicaTarget::Latest,
        (Some(txid), None) => ReplicaTarget::Txid(txid.as_str().unwrap().parse().unwrap()),
        (None, Some(time)) => ReplicaTarget::Before(Timestamp(time.as_i64().unwrap())),
        (Some(_), Some(_)) => panic!("{query}"),
    }
}

fn outcome(files: &[ReplicaFile], target: ReplicaTarget) -> Value {
    let name = |f: &ReplicaFile| format!("{}/{}", f.level, LtxName { min_txid: f.min_txid, max_txid: f.max_txid });
    match plan(files, target) {
        Ok(plan) => plan.iter().map(name).collect(),
        Err(ReplicaPlanError::Gap { .. }) => "GAP".into(),
        Err(ReplicaPlanError::Unavailable { .. }) => "UNAVAILABLE".into(),
    }
}

#[test]
fn plans_are_those_of_the_vectors() {
    let mut queries = 0;
    for case in vectors::list("plans") {
        let listed = case["files"].as_array().unwrap().iter();
        let listed = listed.map(|f| {
            file(vectors::number(&f["level"]), f["name"].as_str().unwrap(), f["created_ms"].as_i64().unwrap())
        });
        let mut files: Vec<ReplicaFile> = listed.collect();
        for _ in 0..2 {
            for query in case["queries"].as_array().unwrap() {
                assert_eq!(outcome(&files, target(query)), query["plan"], "{}: {query}", case["name"]);
                queries += 1;
            }
            files.reverse();
        }
    }
    assert!(queries > 500, "{queries}");
}

#[test]
fn errors_say_how_far_the_replica_reaches() {
    let files = [
        file(9, "0000000000000001-0000000000000003.ltx", 3),
        file(0, "0000000000000004-0000000000000004.ltx", 4),
        file(0, "0000000000000007-fffffffffffffffe.ltx", 7),
    ];
    let txid = |n| Txid::new(n).unwrap();
    let gap = ReplicaPlanError::Gap { reached: txid(4), next: txid(7) };
    assert_eq!(plan(&files, ReplicaTarget::Latest), Err(gap));
    let short = ReplicaPlanError::Unavailable { reached: Some(txid(4)) };
    assert_eq!(plan(&files, ReplicaTarget::Txid(txid(6))), Err(short));
    assert_eq!(plan(&[], ReplicaTarget::Latest), Err(ReplicaPlanError::Unavailable { reached: None }));
    assert_eq!(plan(&files, ReplicaTarget::Before(Timestamp(3))), Err(ReplicaPlanError::Unavailable { reached: None }));
    assert_eq!(plan(&files, ReplicaTarget::Before(Timestamp(i64::MAX))).unwrap().len(), 2);
}

/// Every TXID up to some beyond the end: it is a point exactly when there is a plan for it.
#[track_caller]
fn check_points(files: &[ReplicaFile], what: &Value) {
    let listed: Vec<Txid> = points(files).iter().map(|point| point.max_txid).collect();
    let end = files.iter().map(|file| file.max_txid.get()).max().unwrap_or(0);
    if end > 10_000 {
        return;
    }
    let planned = (1..=end + 2).filter_map(Txid::new);
    let planned: Vec<Txid> = planned.filter(|txid| plan(files, ReplicaTarget::Txid(*txid)).is_ok()).collect();
    assert_eq!(listed, planned, "{what}");
}

#[test]
fn points_are_what_there_is_a_plan_for() {
    let mut cases = 0;
    for case in vectors::list("plans") {
        let listed = case["files"].as_array().unwrap().iter();
        let files: Vec<ReplicaFile> = listed
            .map(|f| file(vectors::number(&f["level"]), f["name"].as_str().unwrap(), f["created_ms"].as_i64().unwrap()))
            .collect();
        check_points(&files, &case["name"]);
        cases += 1;
    }
    assert!(cases > 20, "{cases}");
}

#[test]
fn times_choose_the_last_point_that_is_not_later() {
    let files = [
        file(9, "0000000000000001-0000000000000003.ltx", 30),
        file(0, "0000000000000003-0000000000000003.ltx", 20),
        file(0, "0000000000000004-0000000000000004.ltx", 40),
    ];
    let at = |target| resolve(&files, target).map(|plan| plan.last().unwrap().max_txid.get());
    assert_eq!(at(Target::Time(Timestamp(20))), Ok(3), "the snapshot was made later than what it shows");
    assert_eq!(at(Target::Time(Timestamp(39))), Ok(3));
    assert_eq!(at(Target::Time(Timestamp(40))), Ok(4));
    let (first, last) = (Timestamp(20), Timestamp(40));
    for time in [Timestamp(19), Timestamp(41)] {
        assert_eq!(at(Target::Time(time)), Err(PlanError::OutOfRange { time, first, last }));
    }
    assert_eq!(at(Target::TimeNearest(Timestamp(0))), Ok(3));
    assert_eq!(at(Target::TimeNearest(Timestamp(99))), Ok(4));
    let txid = |n| Txid::new(n).unwrap();
    let no_point = PlanError::NotAPoint { txid: txid(2), below: None, above: Some(txid(3)) };
    assert_eq!(at(Target::Txid(txid(2))), Err(no_point));
    assert_eq!(resolve(&[], Target::Latest), Err(PlanError::Empty));
    let torn = [files[0], file(0, "0000000000000006-0000000000000006.ltx", 60)];
    let gap = PlanError::Gap { first: txid(4), last: txid(5), txid: txid(6) };
    assert_eq!(resolve(&torn, Target::Latest), Err(gap));
}
