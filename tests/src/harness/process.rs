//! A real process: its log in a file, signals by pid, ended when dropped.
//!
//! Children stay in the process group of the test, which the test runner owns: when it ends a test that hangs, it ends the
//! children too.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::wait::wait_for;

/// How much of a log is shown when a test fails.
const LOG_TAIL: usize = 4_000;

/// A running child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard input closed and all its output in `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All output so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends a signal: `STOP` and `CONT` make a peer hang and come back.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("not a process id")?;
        kill_process(pid, signal).with_context(|| format!("signal {signal:?} to {}", self.name))
    }

    /// The exit status, when it has ended.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it has not ended within `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait_for(&what, limit, || std::future::ready(self.exited().transpose())).await?
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it has not ended within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_exit(limit).await
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Waits until `ready` has an answer; fails early when the process ends.
    ///
    /// # Errors
    /// When it ends or is not ready within `limit`; the error shows the end of the log.
    pub async fn wait_ready<T, F, P>(&mut self, limit: Duration, mut ready: F) -> Result<T>
    where
        F: FnMut() -> P,
        P: Future<Output = Option<T>>,
    {
        let what = format!("{} is ready", self.name);
        let outcome = wait_for(&what, limit, || {
            let exited = self.child.try_wait().ok().flatten();
            let probe = ready();
            async move {
                match exited {
                    Some(status) => Some(Err(status)),
                    None => probe.await.map(Ok),
                }
            }
        })
        .await;
        match outcome {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(status)) => bail!("{} ended with {status} before it was ready:\n{}", self.name, self.log_tail()),
            Err(error) => Err(error.context(self.log_tail())),
        }
    }

    /// Bytes that are resident now.
    ///
    /// # Errors
    /// When the process is gone or the system does not say.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// CPU time used so far, by user and system together.
    ///
    /// # Errors
    /// When the process is gone or the system does not say.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // After the name in brackets, which may hold anything: fields 14 and 15, in ticks of 10 ms on every Linux.
        let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let ticks =
            fields.get(11).context("no utime")?.parse::<u64>()? + fields.get(12).context("no stime")?.parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let start = log.char_indices().rev().nth(LOG_TAIL).map_or(0, |(index, _)| index);
        format!("end of the log of {}:\n{}", self.name, &log[start..])
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed write to the test's own output is nobody's concern.
            let _ = writeln!(std::io::stderr(), "{}", self.log_tail());
        }
        // Already ended is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::wait::LIMIT;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_is_kept_and_the_exit_status_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut process =
            Process::start("sh", shell("echo out; echo err >&2; exit 3"), &folder.path().join("log")).unwrap();
        assert_eq!(process.wait_exit(LIMIT).await.unwrap().code(), Some(3));
        assert_eq!(process.log(), "out\nerr\n");
    }

    #[tokio::test]
    async fn a_process_that_ends_before_it_is_ready_fails_at_once_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::start("sh", shell("echo no luck"), &folder.path().join("log")).unwrap();
        let error = process.wait_ready(LIMIT, || std::future::ready(None::<()>)).await.unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start("sleep", shell("exec sleep 600"), &folder.path().join("log")).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        assert!(process.resident_bytes().is_ok() && process.cpu_time().is_ok());
        drop(process);
        assert!(!proc.exists());
    }

    #[tokio::test]
    async fn sigterm_ends_what_listens_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
        let mut process = Process::start("sh", shell(script), &folder.path().join("log")).unwrap();
        let log = folder.path().join("log");
        let up = || std::future::ready(std::fs::read_to_string(&log).ok().filter(|text| text.contains("up")));
        process.wait_ready(LIMIT, up).await.unwrap();
        assert!(process.terminate(LIMIT).await.unwrap().success());
        assert_eq!(process.log(), "up\nbye\n");
    }
}
