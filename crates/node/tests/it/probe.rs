//! `probe` through the real binary: a good store, what is remembered, bad input.

use serde_json::Value;

use crate::program::Folder;

#[test]
fn a_good_store_passes_and_status_remembers_it() {
    let folder = Folder::new();
    drop(folder.database("a.db"));
    let outcome = folder.run(&["probe", "./backup", "--save", "a.db", "--rounds", "3", "--json"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&report["backup"], &report["fencing"]), (&true.into(), &true.into()), "{report:#}");
    assert_eq!(report["declared"]["swap"], "given");
    assert!(report["checks"].as_array().unwrap().iter().all(|c| c["passed"] == true), "{report:#}");
    assert!(report["latency"].as_array().unwrap().iter().all(|l| l["samples"] == 10), "{report:#}");
    assert!(report["clock_offset_ms"].as_i64().unwrap().abs() < 5_000);
    assert!(
        !folder.content().keys().any(|path| path.to_string_lossy().contains("rhyolite-probe")),
        "a probe cleans up"
    );

    let status = folder.run(&["status", "a.db"]);
    assert!(status.stdout.contains("probe        passed on 20") && status.stdout.contains("(./backup)"), "{status:?}");
    let outcome = folder.run(&["probe", "./backup", "--rounds", "2"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("can keep a second writer out: yes"), "{outcome:?}");
}

#[test]
fn a_store_that_cannot_be_probed_is_one_line() {
    let folder = Folder::new();
    folder.write("file", "not a folder");
    for (arguments, code, line) in [
        (&["probe", "./file/below"][..], 2, "is not a folder"),
        (&["probe", "memory:"], 2, "nothing to probe"),
        (&["probe", "ftp://x/y"], 2, "unknown scheme"),
        (&["probe", "./backup", "--clients", "1"], 2, "1 is not in 2..=64"),
        (&["probe", "./backup", "--meta-path", "x"], 2, "--save"),
        (&["probe", "./backup", "--rounds", "2", "--save", "no/such/a.db"], 1, "cannot save the probe in"),
    ] {
        let outcome = folder.run(arguments);
        assert_eq!((outcome.code, outcome.stderr.matches('\n').count()), (code, 1), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(line), "{arguments:?}: {outcome:?}");
    }
}
