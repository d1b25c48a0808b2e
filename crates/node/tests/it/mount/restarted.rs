//! What there is on a mount whose daemon was started again.

use std::fs;

use rustix::process::Signal;

use super::{Mount, insert};
use crate::program::wait_until;

/// There is nothing to record of a database to which nothing was committed meanwhile. Whoever asks for its position is told all the same.
#[test]
fn the_position_of_a_database_that_stood_still_is_told() {
    let Some(mut mount) = Mount::new() else { return };
    let names = ["wal", "delete"].map(|mode| {
        let name = format!("{mode}.db");
        let db = mount.open(&name, mode);
        insert(&db, 0..3);
        mount.wait_captured(&name);
        name
    });
    let paths = names.map(|name| mount.path(&format!("{name}-pos")));
    let before = paths.each_ref().map(|path| fs::read_to_string(path).unwrap());
    for signal in [Signal::KILL, Signal::TERM] {
        mount.signal(signal);
        mount.start(&[]).unwrap();
        for (path, before) in paths.iter().zip(&before) {
            wait_until("the position", || match fs::read_to_string(path) {
                Ok(told) if told == *before => Ok(()),
                other => Err(format!("{}: {other:?}, not {before:?}", path.display())),
            });
        }
    }
    mount.stop();
}
