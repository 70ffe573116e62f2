//! The command line of `cargo lab`.

use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0    all went well
  1    it ran, and something was found wrong (a test or a case failed)
  2    the command line is wrong
  3    it could not run (a package, a tool or a build is missing or failed)
  130  interrupted

Environment:
  SVMM_LAB_WORLD  here | cloud: where guests run, instead of asking the probe
  SVMM_LAB_CACHE  folder of build products (else the user's cache folder)
  SVMM_LAB_QEMU   a QEMU >= 10 to use for the cloud world
  SVMM_LAB_LINUX  a Linux source tree >= 7.2 to build instead of Debian's package";

/// Builds what guests need and runs them: on this host's KVM, or, where that is of no use, in an
/// emulated nested-virt cloud machine.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest, share its page tables with a device, and show what happened.
    Demo(Demo),
    /// Run everything CI runs: format, lints, docs, unit tests, guest tests.
    Test(Test),
    /// Boot kernels of several ages in every mode of the IOMMU.
    Matrix(Matrix),
    /// Run the kernel's own VFIO selftests in a guest, each case in each way to an IOMMU.
    VfioSelftests,
    /// Random work on the endpoint for half an hour, every byte checked.
    Soak(Soak),
    /// An interactive guest with the shared-virtual-memory endpoint.
    Shell(Guest),
    /// Build the lab's kernel, once, and tell where it is.
    Kernel(Kernel),
    /// Tell what this host can do, and what to do about what it cannot.
    Doctor,
}

/// The guest to boot.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo lab shell
  cargo lab shell --cpus 4 --memory-mib 6144
  cargo lab shell --svm queues=2,pri=off")]
pub struct Guest {
    /// Virtual processors.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub cpus: u32,
    /// Guest memory.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub memory_mib: u32,
    /// Options of the endpoint, as `svmm run --svm` takes them.
    #[arg(long, value_name = "OPTIONS")]
    pub svm: Option<String>,
    /// Words to add to the guest kernel's command line.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
}

/// How the demo runs.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo lab demo
  cargo lab demo --verbose             with the guest's console
  cargo lab demo --svm pri=off         what fails without page requests
  cargo lab demo --chain               the endpoint assigned to a guest's guest")]
pub struct Demo {
    /// The guest.
    #[command(flatten)]
    pub guest: Guest,
    /// Assign the endpoint of the guest to a guest inside it, and run the selftest there.
    #[arg(long)]
    pub chain: bool,
    /// Show the guest's console while it runs.
    #[arg(long, short)]
    pub verbose: bool,
}

/// What `test` runs.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo lab test                        everything
  cargo lab test --list                 the steps
  cargo lab test --only fmt --only clippy
  cargo lab test page_request           guest tests whose name holds page_request
  cargo lab test --skip guest           all but the guest tests")]
pub struct Test {
    /// Names of guest tests to run; implies `--only guest` when no step is named.
    pub filters: Vec<String>,
    /// Run only this step; may be repeated.
    #[arg(long, value_name = "STEP")]
    pub only: Vec<String>,
    /// Leave this step out; may be repeated.
    #[arg(long, value_name = "STEP", conflicts_with = "only")]
    pub skip: Vec<String>,
    /// Name the steps and end.
    #[arg(long)]
    pub list: bool,
}

/// What of the matrix runs.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A cell is named KERNEL/MODE/INTERRUPTS/CPUS, for example lab/first-stage/x2apic/4, or dmatest/MODE.
Kernels: lab (built here), debian-6.1, debian-6.12, debian-newest (fetched from the Debian archive, unmodified).

Examples:
  cargo lab matrix                      every cell; hours where guests are emulated
  cargo lab matrix --kernel lab         the lab's kernel only
  cargo lab matrix --kernel debian-6.1 first-stage legacy
  cargo lab matrix --kernel lab --unit fsts=off first-stage second-stage
                                        the cells of the first stage fail, the others do not")]
pub struct Matrix {
    /// Only cells whose names hold one of these.
    pub filters: Vec<String>,
    /// Only this kernel; may be repeated.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Vec<String>,
    /// Options to add to every cell's unit, as svmm run --iommu takes them.
    #[arg(long, value_name = "OPTIONS")]
    pub unit: Option<String>,
}

/// How long the soak goes on: until both are reached.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo lab soak
  cargo lab soak --seconds 300 --operations 1")]
pub struct Soak {
    /// So long, at least. The run is given up after twice that.
    #[arg(long, default_value_t = 1800, value_name = "N")]
    pub seconds: u64,
    /// So many operations, at least.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub operations: u64,
}

/// How the kernel is had.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo lab kernel                      build when needed, print the folder
  cargo lab kernel --refresh            look whether Debian has a newer source")]
pub struct Kernel {
    /// Ask the archive for the newest source instead of keeping to the last one.
    #[arg(long)]
    pub refresh: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
