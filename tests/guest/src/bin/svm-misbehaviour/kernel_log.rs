//! What the kernel says while a case runs.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The log from some moment on.
pub(crate) struct KernelLog {
    file: File,
    lines: Vec<String>,
}

impl KernelLog {
    /// From now on.
    pub(crate) fn from_now() -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut file = file.context("cannot read the kernel's log")?;
        file.seek(SeekFrom::End(0)).context("cannot find the end of the kernel's log")?;
        Ok(Self { file, lines: Vec::new() })
    }

    /// Takes what is there.
    fn take(&mut self) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let message = text.split_once(';').map_or(&*text, |(_, message)| message);
                    self.lines.push(message.lines().next().unwrap_or_default().to_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Records were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("cannot read the kernel's log"),
            }
        }
    }

    /// How many lines so far hold all of `texts`.
    pub(crate) fn count(&mut self, texts: &[&str]) -> Result<usize> {
        self.take()?;
        Ok(self.lines.iter().filter(|line| texts.iter().all(|text| line.contains(text))).count())
    }

    /// The functions that the kernel warns of so far.
    pub(crate) fn warnings(&mut self) -> Result<BTreeSet<String>> {
        self.take()?;
        let place = |line: &String| {
            let (_, place) = line.split_once("WARNING: ")?.1.split_once(" at ")?;
            place.split([',', ' ']).next().map(str::to_owned)
        };
        Ok(self.lines.iter().filter_map(place).collect())
    }

    /// Waits for a line that holds all of `texts`.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub(crate) fn wait(&mut self, texts: &[&str], limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            // Before the look: a thread that stood still for longer than the limit must not go without one.
            let late = start.elapsed() > limit;
            if self.count(texts)? > 0 {
                return Ok(());
            }
            if late {
                bail!("the kernel does not say {texts:?}; it says {:?}", self.lines);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
