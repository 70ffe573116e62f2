//! What the cloud machine is to run, and how it tells the outcome.
//!
//! The lab writes the job into the cloud's initramfs at [`PATH`]; `lab-cloud-init` reads it. The
//! text has one item per line: `env NAME=VALUE`, `run` (starts a command), `arg TEXT`. Outcomes
//! come back over the port [`STATUS_PORT`] as `exit INDEX CODE`, one line per command, and `done`.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

/// Where the job stands in the cloud's initramfs.
pub const PATH: &str = "/lab/job";
/// Name of the virtio-serial port that carries outcomes to the lab.
pub const STATUS_PORT: &str = "lab.status";

/// Commands to run one after the other, in one environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Variables set for every command.
    pub env: Vec<(String, String)>,
    /// Programs with their arguments; a failing one does not stop the next.
    pub commands: Vec<Vec<String>>,
}

impl Job {
    /// The job as text.
    ///
    /// # Errors
    /// A value holds a line break, which the format cannot carry.
    pub fn render(&self) -> Result<String> {
        let mut text = String::new();
        for (name, value) in &self.env {
            let _ = writeln!(text, "env {}={}", one_line(name)?, one_line(value)?);
        }
        for command in &self.commands {
            text.push_str("run\n");
            for word in command {
                let _ = writeln!(text, "arg {}", one_line(word)?);
            }
        }
        Ok(text)
    }

    /// Reads what [`Job::render`] wrote.
    ///
    /// # Errors
    /// A line is of no known kind.
    pub fn parse(text: &str) -> Result<Self> {
        let mut job = Self::default();
        for line in text.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("env", pair) => {
                    let (name, value) = pair.split_once('=').context("env without =")?;
                    job.env.push((name.to_owned(), value.to_owned()));
                }
                ("run", "") => job.commands.push(Vec::new()),
                ("arg", word) => {
                    let command = job.commands.last_mut().context("arg before run")?;
                    command.push(word.to_owned());
                }
                _ => bail!("unknown line in the job: {line}"),
            }
        }
        Ok(job)
    }
}

/// One outcome line for the command at `index`.
#[must_use]
pub fn outcome(index: usize, code: i32) -> String {
    format!("exit {index} {code}\n")
}

/// The exit codes of all commands, in order; `None` when the report is not whole.
#[must_use]
pub fn parse_outcomes(report: &str) -> Option<Vec<i32>> {
    let mut codes = Vec::new();
    for line in report.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["exit", index, code] if index.parse() == Ok(codes.len()) => {
                codes.push(code.parse().ok()?);
            }
            ["done"] => return Some(codes),
            _ => return None,
        }
    }
    None
}

fn one_line(value: &str) -> Result<&str> {
    if value.contains('\n') {
        bail!("a value for the cloud machine holds a line break: {value:?}");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_its_text() {
        let job = Job {
            env: vec![("A".into(), "x = y".into()), ("B".into(), String::new())],
            commands: vec![vec!["/bin/a".into(), String::new(), "two words".into()], vec!["/bin/b".into()]],
        };
        assert_eq!(Job::parse(&job.render().unwrap()).unwrap(), job);
    }

    #[test]
    fn line_breaks_and_strange_lines_are_refused() {
        let job = Job { env: vec![("A".into(), "x\ny".into())], commands: vec![] };
        assert!(job.render().is_err());
        for text in ["arg x", "env x", "walk"] {
            assert!(Job::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_report_without_its_end_is_no_report() {
        let whole = format!("{}{}done\n", outcome(0, 0), outcome(1, 3));
        assert_eq!(parse_outcomes(&whole), Some(vec![0, 3]));
        assert_eq!(parse_outcomes(&outcome(0, 0)), None);
        assert_eq!(parse_outcomes("exit 1 0\ndone\n"), None);
    }
}
