//! The kernel's `dmatest`, by its module parameters, and what it says in the kernel log.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const PARAMETERS: &str = "/sys/module/dmatest/parameters";
/// All copies together.
const PATIENCE: Duration = Duration::from_secs(150);
/// One copy, in milliseconds: the machine may be emulated, and its host busy.
const COPY_PATIENCE: u32 = 30_000;

/// What is to be tested.
pub(crate) struct Order {
    /// Names of channels.
    pub channels: Vec<String>,
    /// On each channel.
    pub threads: u32,
    /// Copies of each thread.
    pub iterations: u32,
    /// Longest copy.
    pub bytes: u32,
}

/// What a thread says in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// As it stands in the log.
    pub text: String,
    /// Copies made.
    pub tests: u32,
    /// Copies that went wrong.
    pub failures: u32,
    /// Why the thread ended, 0: it was done.
    pub error: i32,
}

/// Runs it; one summary for each thread.
///
/// # Errors
/// The kernel has no dmatest, or a thread does not end.
pub(crate) fn run(order: &Order) -> Result<Vec<Summary>> {
    let mut log = Log::from_now_on()?;
    set("timeout", &COPY_PATIENCE)?;
    set("threads_per_chan", &order.threads)?;
    set("iterations", &order.iterations)?;
    set("test_buf_size", &order.bytes)?;
    for channel in &order.channels {
        set("channel", channel)?;
    }
    set("run", &1)?;
    let wanted = order.channels.len() * usize::try_from(order.threads)?;
    let (started, mut summaries) = (Instant::now(), Vec::new());
    while summaries.len() < wanted {
        ensure!(started.elapsed() < PATIENCE, "{} of {wanted} threads ended", summaries.len());
        summaries.extend(log.lines()?.iter().filter_map(|line| parse(line)));
        thread::sleep(Duration::from_millis(20));
    }
    // Lets go of the channels.
    set("run", &0)?;
    Ok(summaries)
}

fn set(name: &str, value: &dyn ToString) -> Result<()> {
    let path = format!("{PARAMETERS}/{name}");
    fs::write(&path, value.to_string()).with_context(|| format!("cannot write {path}"))
}

/// `dmatest: NAME: summary N tests, N failures N.NN iops N KB/s (N)`. Pure.
fn parse(line: &str) -> Option<Summary> {
    let (_, text) = line.split_once("dmatest: ")?;
    let (_, figures) = text.split_once(": summary ")?;
    let mut words = figures.split(' ');
    let tests = words.next()?.parse().ok()?;
    let failures = words.nth(1)?.parse().ok()?;
    let error = figures.rsplit_once('(')?.1.strip_suffix(')')?.parse().ok()?;
    Some(Summary { text: text.to_owned(), tests, failures, error })
}

/// The kernel log as it grows.
struct Log(File);

impl Log {
    fn from_now_on() -> Result<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits())?;
        let mut file =
            OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").context("/dev/kmsg")?;
        file.seek(SeekFrom::End(0)).context("/dev/kmsg")?;
        Ok(Self(file))
    }

    /// Messages that came since the last call. One read is one message; `LEVEL,...;TEXT`.
    fn lines(&mut self) -> Result<Vec<String>> {
        let (mut lines, mut record) = (Vec::new(), [0; 8192]);
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let text = text.split_once(';').map_or(&*text, |(_, text)| text);
                    lines.push(text.lines().next().unwrap_or_default().to_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Messages were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read() {
        let text = "dma0chan0-copy2: summary 100 tests, 3 failures 512.01 iops 4096 KB/s (-12)";
        let expected = Summary { text: text.into(), tests: 100, failures: 3, error: -12 };
        assert_eq!(parse(&format!("dmatest: {text}")), Some(expected));
        for other in ["dmatest: Added 4 threads using dma0chan0", "dmatest: x: summary of", "", text] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
