//! `plan` through the real binary.

use crate::cli::{check_refused, replicate_two_commits};
use crate::program::Folder;

#[test]
fn what_is_kept_and_what_it_costs() {
    let folder = Folder::new();
    replicate_two_commits(&folder);
    let before = folder.content();
    let plan = folder.run(&["plan", "./backup", "--json"]).json();
    assert_eq!(before, folder.content(), "it only looks");
    assert_eq!(plan["kept"]["snapshots"]["objects"], 1, "{plan}");
    assert!(plan["kept"]["commits"]["objects"].as_u64().unwrap() >= 1, "{plan}");
    assert!(plan["observed"]["commits_per_hour"].as_f64().unwrap() >= 1.0, "{plan}");
    let total = |arguments: &[&str]| {
        let mut all = vec!["plan", "./backup", "--json"];
        all.extend(arguments);
        folder.run(&all).json()["month"]["total_dollars"].as_f64().unwrap()
    };
    let free = ["--price-storage", "0", "--price-put", "0", "--price-get", "0", "--price-egress", "0"];
    assert!(total(&[]) > 0.0);
    assert!(total(&free).abs() < 1e-12);
    let text = folder.run(&["plan", "./backup", "--keep-daily", "90d"]).stdout;
    for part in ["./backup: kept now", "snapshots", "observed over", "a month", "total", "$"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for (arguments, code, line) in [
        (&["plan", "./missing"][..], 5, "holds no replicated database"),
        (&["plan"], 2, "<STORE>"),
        (&["plan", "./backup", "--price-storage", "cheap"], 2, "is no price"),
        (&["plan", "./backup", "--price-get=-1"], 2, "is no price"),
        (&["plan", "--config", "missing.yml"], 2, "missing.yml"),
    ] {
        check_refused(&folder, arguments, code, line);
    }
    folder.write("r.yml", "dbs:\n  - path: a.db\n    replica: {url: ./backup}\n    keep: {daily: 60d}\n");
    assert_eq!(folder.run(&["plan", "--config", "r.yml", "--json"]).json()["store"], "./backup");
    check_refused(&folder, &["plan", "./other", "--config", "r.yml"], 2, "no database with the store ./other");
    check_refused(&folder, &["plan", "--config", "r.yml", "--keep-daily", "9d"], 2, "give either it or flags");
}
