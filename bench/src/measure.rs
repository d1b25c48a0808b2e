//! Clocks, memory and the statistics that the table shows.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xtask::error::{Context, Outcome, fail};

/// Nanoseconds on the clock that all processes of this machine share.
pub(crate) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds that this process, all threads, has spent on processors.
pub(crate) fn own_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, to `time`.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(status, 0, "these clocks exist on every system that we build for");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Seconds that process `id` has spent on processors, in user and kernel mode, to a hundredth.
pub(crate) fn cpu_seconds(id: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).context("read /proc/ID/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("parse /proc/ID/stat");
    // SAFETY: no memory is involved.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok((ticks(11)? + ticks(12)?) as f64 / per_second as f64)
}

/// Kibibytes that process `id` holds: (resident, resident with shared pages divided among those who share).
pub(crate) fn memory_kib(id: u32) -> Outcome<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).context("read /proc/ID/smaps_rollup")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).context(format!("no {name} in smaps_rollup"))?;
        line.split_whitespace().nth(1).and_then(|f| f.parse().ok()).context("parse smaps_rollup")
    };
    Ok((field("Rss:")?, field("Pss:")?))
}

/// What a finished process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// From start to end.
    pub(crate) wall: Duration,
    /// On processors, user and kernel mode.
    pub(crate) cpu: Duration,
    /// The most memory it held, in KiB.
    pub(crate) memory_kib_max: u64,
}

/// Runs `command` to its end, which must be a good one. Only program and arguments of it count.
///
/// A process of ours that does nothing else starts it: the system counts the memory of whoever starts a process as the process's own, and
/// a benchmark may have used much.
pub(crate) fn run_to_end(command: &Command) -> Outcome<Cost> {
    let mut starter = Command::new(std::env::current_exe().context("find our own binary")?);
    starter.arg("cost").arg(command.get_program()).args(command.get_args());
    let output = starter.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("start a process")?;
    if !output.status.success() {
        return fail(format!("{command:?} did not end well"));
    }
    let numbers = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [wall, cpu, memory_kib_max] = numbers[..] else { return fail(format!("{command:?}: no cost")) };
    Ok(Cost { wall: Duration::from_micros(wall), cpu: Duration::from_micros(cpu), memory_kib_max })
}

/// Runs a command and prints its cost: microseconds from start to end, of processors, and KiB.
pub(crate) fn print_cost(mut words: impl Iterator<Item = std::ffi::OsString>) -> Outcome {
    let mut command = Command::new(words.next().context("a command is needed")?);
    command.args(words);
    let Cost { wall, cpu, memory_kib_max } = run_child(command)?;
    println!("{} {} {memory_kib_max}", wall.as_micros(), cpu.as_micros());
    Ok(())
}

fn run_child(mut command: Command) -> Outcome<Cost> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let began = Instant::now();
    let child = command.spawn().context("start a process")?;
    let mut status: libc::c_int = 0;
    // SAFETY: all fields of rusage are numbers, for which zero bytes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the id is that of a child that nobody else waits for; both pointers lead to live variables of the right types.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, &raw mut usage) };
    let wall = began.elapsed();
    if waited < 0 || !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        return fail(format!("{command:?} ended with status {status}"));
    }
    let time = |t: libc::timeval| Duration::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64);
    let cpu = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Cost { wall, cpu, memory_kib_max: usage.ru_maxrss as u64 })
}

/// The value below which `per_mille` of 1000 values lie. Sorts `values`; 0 for none.
pub(crate) fn percentile(values: &mut [u64], per_mille: usize) -> u64 {
    values.sort_unstable();
    values.get((values.len() * per_mille / 1000).min(values.len().max(1) - 1)).copied().unwrap_or(0)
}

/// Median, smallest and largest of `values`, which must not be empty.
pub(crate) fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    (median, sorted[0], sorted[sorted.len() - 1])
}

/// `median (smallest to largest)` with `digits` decimals.
pub(crate) fn spread_text(values: &[f64], digits: usize) -> String {
    let (median, min, max) = spread(values);
    format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_few_values() {
        assert_eq!(percentile(&mut [], 500), 0);
        assert_eq!(percentile(&mut [5, 1, 9], 500), 5);
        assert_eq!(percentile(&mut [5, 1, 9], 999), 9);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread_text(&[1.0, 2.0], 1), "1.5 (1.0 to 2.0)");
    }

    #[test]
    fn a_process_has_a_cost_and_a_bad_end_is_an_error() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 0"]);
        assert!(run_child(command).unwrap().memory_kib_max > 0);
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        assert!(run_child(command).is_err());
        assert!(memory_kib(std::process::id()).unwrap().0 > 0);
        assert!(cpu_seconds(std::process::id()).is_ok() && own_cpu_ns() > 0);
    }
}
