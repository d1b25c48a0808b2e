//! What surrounds the daemon: the service manager, the manual.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::program::Folder;

#[test]
fn the_service_manager_hears_that_it_is_ready_alive_and_stopping() {
    let folder = Folder::new();
    drop(folder.database("a.db"));
    let manager = UnixDatagram::bind(folder.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let address = folder.path("notify").display().to_string();
    let variables = [("NOTIFY_SOCKET", address.as_str()), ("WATCHDOG_USEC", "300000")];
    let daemon = folder.start_with(&["replicate", "a.db", "./backup"], &variables);
    let hear = |wanted: &str| {
        let mut bytes = [0; 1000];
        loop {
            let read = manager.recv(&mut bytes).expect("the manager is told in time");
            let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    hear("READY=1");
    for _ in 0..3 {
        hear("WATCHDOG=1");
    }
    hear("STATUS=1 of 1 databases replicating");
    daemon.signal(Signal::TERM);
    let text = hear("STOPPING=1");
    assert!(text.contains("EXTEND_TIMEOUT_USEC="), "{text}");
    assert_eq!(daemon.wait().code, 0);
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = Folder::new();
    let printed = folder.run(&["man"]);
    assert_eq!(printed.code, 0);
    assert!(printed.stdout.contains(".TH rhyolite 1"), "{}", printed.stdout);
    std::fs::create_dir(folder.path("man1")).unwrap();
    assert_eq!(folder.run(&["man", "--dir", "man1"]).code, 0);
    let page = std::fs::read_to_string(folder.path("man1/rhyolite-ltx-apply.1")).unwrap();
    assert!(page.contains("rhyolite ltx apply") && page.contains("must not exist unless"), "{page}");
    let pages = std::fs::read_dir(folder.path("man1")).unwrap().count();
    let help = folder.run(&["--help"]).stdout;
    let commands = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty()).count();
    assert!(pages > commands, "{pages} pages for {commands} commands and their own");
    assert_eq!(folder.run(&["man", "--dir", "missing"]).code, 1);
}
