//! Progress of one long piece of work, on a terminal or in a log.
//!
//! A terminal sees one line that is rewritten; a log sees a line at the start, one every
//! half minute and one at the end. Work on another thread than the main one is told as in a log,
//! because the terminal's line is the main thread's. Both go to stderr, so stdout stays for results.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(30);
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);

/// One piece of work being done; prints how it goes and how long it took.
#[derive(Debug)]
pub struct Progress {
    what: String,
    started: Instant,
    last_print: Instant,
    /// Whether the terminal's line is ours to rewrite.
    rewrites: bool,
    finished: bool,
}

impl Progress {
    /// Announces `what` and starts the clock.
    pub fn start(what: impl Into<String>) -> Self {
        Self::new(what.into(), std::io::stderr().is_terminal() && on_main_thread())
    }

    /// As [`Progress::start`], for a command that writes to the terminal itself.
    pub fn start_beside_output(what: impl Into<String>) -> Self {
        Self::new(what.into(), false)
    }

    fn new(what: String, rewrites: bool) -> Self {
        let now = Instant::now();
        let progress = Self { what, started: now, last_print: now, rewrites, finished: false };
        if progress.rewrites {
            progress.rewrite("");
        } else {
            say(&format!("{} ...", progress.what));
        }
        progress
    }

    /// Tells how far the work is; `detail` is only asked for when a line is due.
    pub fn tick(&mut self, detail: impl FnOnce() -> String) {
        let interval = if self.rewrites { TERMINAL_INTERVAL } else { LOG_INTERVAL };
        if self.last_print.elapsed() < interval {
            return;
        }
        self.last_print = Instant::now();
        let detail = detail();
        let elapsed = human(self.started.elapsed());
        if self.rewrites {
            self.rewrite(&format!("{elapsed} {detail}"));
        } else {
            say(&format!("{} ... {elapsed} {detail}", self.what));
        }
    }

    /// Tells of something that happened on the way.
    pub fn note(&self, what: &str) {
        say(&format!("  {:>8}  {what}", human(self.started.elapsed())));
    }

    /// Ends the work with success and a remark (may be empty).
    pub fn done(mut self, remark: &str) {
        self.finish("ok", remark);
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn finish(&mut self, verdict: &str, remark: &str) {
        self.finished = true;
        let elapsed = human(self.started.elapsed());
        let comma = if remark.is_empty() { "" } else { ", " };
        say(&format!("{}: {verdict} ({elapsed}{comma}{remark})", self.what));
    }

    fn rewrite(&self, detail: &str) {
        let mut err = std::io::stderr();
        let line = format!("\r\x1b[K[lab] {} ... {detail}", self.what);
        let _ = err.write_all(line.as_bytes());
        let _ = err.flush();
    }
}

impl Drop for Progress {
    /// Work that was not declared done has failed.
    fn drop(&mut self) {
        if !self.finished {
            self.finish("FAILED", "");
        }
    }
}

/// Prints one line, on a terminal in place of one that is being rewritten.
fn say(line: &str) {
    let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    eprintln!("{clear}[lab] {line}");
}

fn on_main_thread() -> bool {
    std::thread::current().name() == Some("main")
}

/// A duration as people read it: `4.2 s`, `6 min 03 s`.
#[must_use]
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(4249)), "4.2 s");
        assert_eq!(human(Duration::from_secs(363)), "6 min 03 s");
    }
}
