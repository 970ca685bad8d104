//! What the system says: CPU time and memory of processes, who else is busy, which core a process may use.

use std::{
    fs,
    process::Command,
    sync::LazyLock,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A tick of `/proc/stat`: 10 ms on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Where a process runs. The system under test shares one core, whatever number of processes it has; the load generator has
/// another, so that they do not steal from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Edge, core, or the reference.
    UnderTest,
    /// The load generator.
    Load,
    /// Wherever there is room: where a database does most of the work.
    Anywhere,
}

/// Whether there are cores to choose from. Asked once: a process that has a core of its own sees no other.
static HAS_PLACES: LazyLock<bool> = LazyLock::new(|| available_parallelism().is_ok_and(|cores| cores.get() >= 2));

impl Place {
    fn core(self) -> Option<&'static str> {
        let core = match self {
            Self::UnderTest => "0",
            Self::Load => "1",
            Self::Anywhere => return None,
        };
        HAS_PLACES.then_some(core)
    }

    /// A command that runs `program` there.
    pub(crate) fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self.core() {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", core]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Moves this process there, with all its threads.
    pub(crate) fn enter(self) -> Result<()> {
        let Some(core) = self.core() else { return Ok(()) };
        let done = Command::new("taskset").args(["-acp", core, &std::process::id().to_string()]).output()?;
        ensure!(done.status.success(), "taskset: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

/// As many open files as this user may have: a thousand is a usual limit, and nine thousand connections are measured.
pub(crate) fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

/// CPU time of all threads that a process has now, as the scheduler counts it.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let file = thread?.path().join("schedstat");
        // A thread may have ended since it was listed.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        nanos += text.split(' ').next().context("no time in schedstat")?.parse::<u64>()?;
    }
    ensure!(nanos > 0, "this system does not count CPU time in /proc/PID/task/*/schedstat");
    Ok(Duration::from_nanos(nanos))
}

/// CPU time of this thread. Counted when the scheduler looks, every few milliseconds: not for short times.
pub(crate) fn thread_cpu_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(text.split(' ').next().context("no time in schedstat")?.parse()?))
}

/// Bytes of a process that are resident now.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the process is gone")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Watches how busy others are: whoever is not one of these processes.
#[derive(Debug)]
pub(crate) struct Others {
    ours: Vec<u32>,
    since: Instant,
    all: Duration,
    own: Duration,
}

impl Others {
    /// From now on.
    pub(crate) fn watch(ours: &[u32]) -> Result<Self> {
        let ours: Vec<u32> = ours.iter().copied().chain([std::process::id()]).collect();
        Ok(Self { since: Instant::now(), all: busy()?, own: sum(&ours)?, ours })
    }

    /// Cores that others used on average since then.
    pub(crate) fn cores(&self) -> Result<f64> {
        let all = busy()?.saturating_sub(self.all);
        let own = sum(&self.ours)?.saturating_sub(self.own);
        Ok(all.saturating_sub(own).as_secs_f64() / self.since.elapsed().as_secs_f64())
    }
}

fn sum(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// CPU time that all cores have spent on anything.
fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no cpu in /proc/stat")?;
    let fields: Vec<u32> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    Ok([0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).map(|ticks| TICK * *ticks).sum())
}
