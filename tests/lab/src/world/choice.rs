//! Which world this host can offer, found out by running code rather than by looking at files.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::Guarded;

/// Names the world instead of probing: `here` or `cloud`.
pub const VARIABLE: &str = "SVMM_LAB_WORLD";
/// The probe limits itself; this is for one that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A world to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This host's KVM.
    Here,
    /// The emulated cloud machine.
    Cloud,
}

/// What `svmm doctor --probe kvm` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Guests run on the processor.
    Native,
    /// Guests run on the processor, below another hypervisor.
    Nested,
    /// The device is there but interprets a guest's instructions one by one.
    Emulating,
    /// No device.
    Absent,
    /// The device may not be opened.
    Refused,
}

/// The host's KVM, with the probe's details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kvm {
    /// The verdict.
    pub kind: Kind,
    /// Figures or reason, as printed.
    pub details: String,
}

impl Kvm {
    /// Asks the svmm binary.
    ///
    /// # Errors
    /// The probe does not end, or prints what the lab does not know.
    pub fn probe(svmm: &Path) -> Result<Self> {
        let mut command = Command::new(svmm);
        command
            .args(["doctor", "--probe", "kvm"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = Guarded::spawn(&mut command)?;
        let stdout = child.take_stdout().context("the probe has no output")?;
        child.wait(PATIENCE, || ())?;
        let printed = std::io::read_to_string(stdout)?;
        Self::parse(&printed)
            .with_context(|| format!("`svmm doctor --probe kvm` printed {:?}", printed.trim()))
    }

    /// `kvm native 12 ns per exit` as (native, rest).
    fn parse(printed: &str) -> Option<Self> {
        let line = printed.lines().find_map(|line| line.strip_prefix("kvm "))?;
        let (word, details) = line.split_once(' ').unwrap_or((line, ""));
        let kind = match word {
            "native" => Kind::Native,
            "nested" => Kind::Nested,
            "emulating" => Kind::Emulating,
            "absent" => Kind::Absent,
            "refused" => Kind::Refused,
            _ => return None,
        };
        Some(Self { kind, details: details.trim().to_owned() })
    }

    /// The world that fits.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match self.kind {
            Kind::Native | Kind::Nested => Choice::Here,
            Kind::Emulating | Kind::Absent | Kind::Refused => Choice::Cloud,
        }
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.kind {
            Kind::Native => "native",
            Kind::Nested => "nested",
            Kind::Emulating => "emulating",
            Kind::Absent => "absent",
            Kind::Refused => "refused",
        };
        write!(f, "{word} {}", self.details)
    }
}

/// The world for this run: the user's, else the one that the probe allows.
///
/// # Errors
/// The user names an unknown world, or the probe fails.
pub fn choose(svmm: &Path) -> Result<Choice> {
    if let Some(choice) = from_user()? {
        return Ok(choice);
    }
    let kvm = Kvm::probe(svmm)?;
    eprintln!("[lab] KVM on this host: {kvm}");
    Ok(kvm.choice())
}

/// The world that the user names.
///
/// # Errors
/// It is an unknown one.
pub fn from_user() -> Result<Option<Choice>> {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => Ok(None),
        Ok("here") => Ok(Some(Choice::Here)),
        Ok("cloud") => Ok(Some(Choice::Cloud)),
        Ok(other) => bail!("{VARIABLE}={other} is no world; it is `here` or `cloud`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_decides_the_world() {
        let of = |line: &str| Kvm::parse(line).map(|kvm| kvm.choice());
        assert_eq!(of("kvm native\n"), Some(Choice::Here));
        assert_eq!(of("kvm nested 3 us per exit\n"), Some(Choice::Here));
        assert_eq!(of("kvm emulating 9 ms for 1000 turns"), Some(Choice::Cloud));
        assert_eq!(of("kvm absent"), Some(Choice::Cloud));
        assert_eq!(of("kvm strange"), None);
        assert_eq!(of(""), None);
    }
}
