//! Which process this is, in a form by which another one on the same machine can tell whether it still lives.
//!
//! `BOOT-ID PID-NAMESPACE PID START-TIME`: a process id alone is used again, and means another process in another namespace. Where one
//! of the first two differs nothing is known, and nothing is said.

use std::fs;

/// This process; `None` where the system does not tell.
pub fn own() -> Option<String> {
    of(std::process::id())
}

/// A process of this machine; `None` where the system does not tell.
pub fn of(pid: u32) -> Option<String> {
    let (_, started) = state_and_start(pid)?;
    Some(format!("{} {pid} {started}", scope()?))
}

/// Whether the process that is named in this way is known not to exist any more.
pub fn is_dead(process: &str) -> bool {
    lives(process) == Some(false)
}

/// Whether it is known to exist.
pub fn is_alive(process: &str) -> bool {
    lives(process) == Some(true)
}

fn lives(process: &str) -> Option<bool> {
    let (named_scope, pid, started) = parse(process)?;
    if scope()? != named_scope {
        return None;
    }
    match state_and_start(pid) {
        // Killed, and not yet noticed by its parent.
        Some((state, found)) => Some(found == started && !matches!(state, 'Z' | 'X')),
        None => (!fs::exists(format!("/proc/{pid}")).ok()? && !may_exist(pid)).then_some(false),
    }
}

/// Whether there may be such a process: of other users /proc may show none (`hidepid`).
fn may_exist(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// The boot of the machine, and the namespace in which process ids count.
fn scope() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

fn parse(process: &str) -> Option<(&str, u32, u64)> {
    let (rest, started) = process.rsplit_once(' ')?;
    let (scope, pid) = rest.rsplit_once(' ')?;
    Some((scope, pid.parse().ok()?, started.parse().ok()?))
}

/// State and start time of a process (`proc_pid_stat(5)`, fields 3 and 22).
fn state_and_start(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, parentheses and spaces too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_living_are_not_dead_and_the_dead_are() {
        let own = own().unwrap();
        assert!(!is_dead(&own) && is_alive(&own));
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let (_, started) = state_and_start(child.id()).unwrap();
        let process = format!("{} {} {started}", scope().unwrap(), child.id());
        assert!(!is_dead(&process));
        child.kill().unwrap();
        let began = std::time::Instant::now();
        while !is_dead(&process) {
            assert!(began.elapsed().as_secs() < 10, "a zombie is dead");
        }
        child.wait().unwrap();
        assert!(is_dead(&process), "and so is one of which nothing is left");
        let reused = format!("{} {} {}", scope().unwrap(), std::process::id(), started + 1);
        assert!(is_dead(&reused), "another process has its id");
    }

    #[test]
    fn of_another_machine_nothing_is_known() {
        let own = own().unwrap();
        let (named_scope, ..) = parse(&own).unwrap();
        for process in [
            "".to_owned(),
            "x".to_owned(),
            "a b c d".to_owned(),
            own.replacen(|c: char| c.is_ascii_hexdigit(), "?", 1),
            format!("{named_scope} 999999999"),
            format!("other-boot pid:[1] {} 1", std::process::id()),
        ] {
            assert!(!is_dead(&process) && !is_alive(&process), "{process}");
        }
    }
}
