//! The steps that need no guest.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{Guarded, find_program};
use crate::{programs, structure};

/// The step that boots guests; it stands last.
pub(super) const GUEST: &str = "guest";

/// One step of the test run.
#[derive(Debug)]
pub(super) struct Step {
    /// Name for `--only` and `--skip`.
    pub name: &'static str,
    /// What it checks.
    pub about: &'static str,
    work: Work,
}

/// What a step does.
#[derive(Debug)]
enum Work {
    /// Runs cargo with these words; the flag is the toolchain component it takes.
    Cargo(&'static [&'static str], Option<&'static str>),
    /// Checks the source tree's shape.
    Structure,
    /// Runs elsewhere.
    Guest,
}

/// All steps in the order they run: what is quick and often wrong comes first.
pub(super) const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "the code is formatted",
        work: Work::Cargo(&["fmt", "--all", "--check"], Some("rustfmt")),
    },
    Step {
        name: "structure",
        about: "files and modules keep the budgets of the house",
        work: Work::Structure,
    },
    Step {
        name: "clippy",
        about: "no lint complains",
        work: Work::Cargo(
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            Some("clippy"),
        ),
    },
    Step {
        name: "doc",
        about: "documentation builds without warnings",
        work: Work::Cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"], None),
    },
    Step {
        name: "unit",
        about: "unit and property tests of every crate",
        work: Work::Cargo(&["test", "--workspace", "--exclude", "svmm-tests"], None),
    },
    Step {
        name: "race",
        about: "threads against each other, in every order that a scheduler finds",
        work: Work::Cargo(&["race"], None),
    },
    Step {
        name: "expect",
        about: "unit tests of the guest tests' library",
        work: Work::Cargo(&["test", "--package", "svmm-tests", "--lib"], None),
    },
    Step { name: GUEST, about: "guests under svmm, in the world this host offers", work: Work::Guest },
];

/// Runs one step; `Ok(false)` when it found something wrong.
///
/// # Errors
/// The step cannot run.
pub(super) fn run(step: &Step) -> Result<bool> {
    match &step.work {
        Work::Cargo(words, component) => {
            component.map_or(Ok(()), ensure_component)?;
            cargo(words)
        }
        Work::Structure => structure::check(&programs::workspace()),
        Work::Guest => bail!("the guest step runs once"),
    }
}

fn cargo(words: &[&str]) -> Result<bool> {
    let mut command = Command::new(programs::cargo_program());
    command
        .args(words)
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(programs::workspace())
        .stdin(Stdio::null());
    let status = Guarded::spawn(&mut command)?.wait(Duration::MAX, || ())?;
    Ok(status.success())
}

/// A toolchain may have been installed without its rustfmt or clippy.
fn ensure_component(component: &str) -> Result<()> {
    let present = Command::new(programs::cargo_program())
        .args([component.trim_start_matches("rust"), "--version"])
        .current_dir(programs::workspace())
        .output();
    if present.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!("the Rust toolchain has no {component}; install it");
    }
    let mut command = Command::new("rustup");
    command.args(["component", "add", component]).current_dir(programs::workspace());
    if !Guarded::spawn(&mut command)?.wait(Duration::MAX, || ())?.success() {
        bail!("`rustup component add {component}` failed");
    }
    Ok(())
}
