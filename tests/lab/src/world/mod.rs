//! Where guests run: on this host, or in an emulated nested-virt cloud machine.

pub mod choice;
pub mod cloud;
pub mod here;
pub mod relay;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::Kernel;

pub use choice::{Choice, Kvm};

/// A word of a command or an environment variable's value.
#[derive(Clone, Debug)]
pub enum Word {
    /// Passed as it is.
    Text(String),
    /// The path, in the world, of the workload's file with this name.
    File(String),
}

impl Word {
    /// The file called `name`.
    #[must_use]
    pub fn file(name: &str) -> Self {
        Self::File(name.to_owned())
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Files to carry into a world and commands to run there.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Name in the world and path on this host.
    pub files: Vec<(String, PathBuf)>,
    /// Variables set for every command.
    pub env: Vec<(&'static str, Word)>,
    /// Commands, run one after the other; a failing one does not stop the next.
    pub commands: Vec<Vec<Word>>,
}

/// How the commands' input and output are handled.
pub enum Terminal<'a> {
    /// The user's terminal: keys go in, bytes come out unchanged.
    Interactive,
    /// No input; output goes to the sink.
    Output(&'a mut dyn Sink),
}

/// Takes what commands print, as it comes.
pub trait Sink {
    /// The next bytes.
    fn take(&mut self, chunk: &[u8]);

    /// Called often while commands run, whether they print or not.
    fn tick(&mut self) {}
}

/// A place where commands can run guests.
#[derive(Debug)]
pub enum World {
    /// This host.
    Here,
    /// An emulated machine.
    Cloud(cloud::Machine),
}

impl World {
    /// Makes the chosen world ready.
    ///
    /// # Errors
    /// QEMU cannot be had.
    pub fn prepare(choice: Choice, kernel: &Kernel, cache: &Cache) -> Result<Self> {
        Ok(match choice {
            Choice::Here => Self::Here,
            Choice::Cloud => Self::Cloud(cloud::Machine::prepare(kernel, cache)?),
        })
    }

    /// Runs the workload and returns the exit code of each command.
    ///
    /// # Errors
    /// A command cannot be started, the limit passes, or the cloud machine dies.
    pub fn run(&self, workload: &Workload, terminal: Terminal<'_>, limit: Duration) -> Result<Vec<i32>> {
        match self {
            Self::Here => here::run(workload, terminal, limit),
            Self::Cloud(machine) => machine.run(workload, terminal, limit),
        }
    }
}

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => write!(f, "here, on this host's KVM"),
            Self::Cloud(machine) => write!(f, "cloud, a nested-virt machine in {machine}"),
        }
    }
}
