//! A guest that is a host in turn, and what it tells of the guest inside it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::expect::{KernelLog, Tap};
use crate::guest::{Guest, Outcome};

/// Stands before every line of the inner guest and of its svmm.
const MARK: &str = "inner| ";
/// Ends an inner guest's lines.
const END: &str = "guest-init: inner svmm ended with ";
/// Before the numbers that svmm tells when a run ends.
const STATS: &str = "svmm: stats ";
/// Three boots one inside the other, and their work.
const PATIENCE: Duration = Duration::from_secs(600);
/// For the clocks of a host in the emulated cloud machine, as that machine itself has them; see the lab. Elsewhere
/// they do no harm.
const CLOCKS: [&str; 4] = ["tsc=reliable", "nohz=off", "highres=off", "kvm.tsc_tolerance_ppm=50000"];

/// A guest that can run svmm: with a hypervisor's CPU, and its SVM endpoint in the hands of `vfio-pci`.
///
/// # Errors
/// The environment does not name what it boots.
pub fn host() -> Result<Guest> {
    let path = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.with_context(|| format!("{name} is not set: run `cargo lab test`, which sets it"))
    };
    let guest = Guest::new()
        .kernel(path("SVMM_HOST_KERNEL")?, path("SVMM_HOST_INITRD")?)
        .memory_mib(1536)
        .patience(PATIENCE)
        .option("--nested")
        .option("--stats=stderr")
        .word("svmm.vfio");
    Ok(CLOCKS.into_iter().fold(guest, Guest::word))
}

/// What an inner guest left.
#[derive(Clone, Debug)]
pub struct Inner {
    /// Its console, and what its svmm said.
    pub text: String,
    /// Its svmm's exit code; `None` if a signal ended it.
    pub code: Option<i32>,
}

impl Inner {
    /// The selftest's results.
    ///
    /// # Errors
    /// There are none.
    pub fn tap(&self) -> Result<Tap> {
        Tap::parse(&self.text).with_context(|| self.text.clone())
    }

    /// The part of its kernel log that its init printed.
    ///
    /// # Errors
    /// There is none.
    pub fn kernel_log(&self) -> Result<KernelLog> {
        KernelLog::parse(&self.text).with_context(|| self.text.clone())
    }

    /// What its svmm counted.
    ///
    /// # Errors
    /// It told nothing.
    pub fn stats(&self) -> Result<Stats> {
        Stats::parse(&self.text).with_context(|| self.text.clone())
    }
}

/// All that a host and the guests inside it left.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The host. Its console is without the inner guests' lines.
    pub host: Outcome,
    /// The inner guests, in the order in which they ran.
    pub inner: Vec<Inner>,
}

impl Chain {
    /// Boots the host, and what it boots.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn run(host: &Guest) -> Result<Self> {
        Ok(Self::of(host.boot()?))
    }

    /// Takes the inner guests' lines out of the host's console. Pure.
    fn of(mut host: Outcome) -> Self {
        let mut inner = Vec::new();
        let (mut text, mut rest) = (String::new(), String::new());
        for line in host.console.lines() {
            if let Some(line) = line.strip_prefix(MARK) {
                text.push_str(line);
                text.push('\n');
                continue;
            }
            rest.push_str(line);
            rest.push('\n');
            if let Some(code) = line.strip_prefix(END) {
                let code = code.strip_prefix("Some(").and_then(|code| code.split(')').next()?.parse().ok());
                inner.push(Inner { text: std::mem::take(&mut text), code });
            }
        }
        host.console = rest;
        Self { host, inner }
    }

    /// What the host's svmm counted.
    ///
    /// # Errors
    /// It told nothing.
    pub fn stats(&self) -> Result<Stats> {
        Stats::parse(&self.host.stderr).with_context(|| self.host.tail())
    }
}

/// The numbers of `svmm run --stats`.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats(Value);

impl Stats {
    /// Finds them among other lines. Pure.
    ///
    /// # Errors
    /// They are not there.
    pub fn parse(text: &str) -> Result<Self> {
        // Of the inner svmm, half a line of its guest's may stand before it.
        let (_, json) = text.lines().find_map(|line| line.split_once(STATS)).context("there are no stats")?;
        Ok(Self(serde_json::from_str(json).context("the stats are strange")?))
    }

    /// A number of the part `name` of the kind `kind`; `key` may lead into it: `times.p50_ns`.
    ///
    /// # Errors
    /// There is no such number.
    pub fn get(&self, kind: &str, name: &str, key: &str) -> Result<u64> {
        let start = self.0.get(kind).and_then(|kind| kind.get(name));
        let value = key.split('.').fold(start, |value, key| value?.get(key));
        value.and_then(Value::as_u64).with_context(|| format!("no {kind}.{name}.{key} in {}", self.0))
    }

    /// A number of the first unit.
    ///
    /// # Errors
    /// There is no such number.
    pub fn unit(&self, key: &str) -> Result<u64> {
        self.get("units", "iommu0", key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footprint::Footprint;

    #[test]
    fn inner_guests_are_taken_out() {
        let console = "a\ninner| b\ninner| svmm: stats {\"units\":{\"iommu0\":{\"n\":{\"m\":3}}}}\n\
            guest-init: inner svmm ended with Some(65) after 7 ms\ninner| c\n\
            guest-init: inner svmm ended with None after 8 ms\nd\n";
        let host = Outcome {
            code: 0,
            console: console.into(),
            stderr: String::new(),
            elapsed: Duration::ZERO,
            footprint: Footprint::default(),
        };
        let chain = Chain::of(host);
        assert!(chain.host.console.starts_with("a\nguest-init") && chain.host.console.ends_with("\nd\n"));
        let codes: Vec<_> = chain.inner.iter().map(|inner| inner.code).collect();
        assert_eq!((codes, chain.inner[1].text.as_str()), (vec![Some(65), None], "c\n"));
        let stats = chain.inner[0].stats().unwrap();
        assert_eq!(stats.unit("n.m").unwrap(), 3);
        assert!(stats.unit("n").is_err() && stats.get("x", "y", "z").is_err() && chain.stats().is_err());
    }
}
