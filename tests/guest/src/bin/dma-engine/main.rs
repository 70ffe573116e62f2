//! Shows from inside a guest that the DMA engines outside PCI are behind a remapping unit: what no driver has mapped
//! for them, they cannot read.
//!
//! `dma-engine COUNT`: fails unless each of so many engines is there and faults. The kernel log then has a fault with
//! the requester id of each.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use guest::diagnosis::wait_for_faults;
use guest::registers::Registers;
use guest::sys::Bar;

/// Where the first engine's registers are, as the DSDT says.
const FIRST: i64 = 0xfeda_0000;
const PAGE: usize = 0x1000;
const IDENTITY: u64 = u64::from_le_bytes(*b"SVMMDMA1");
/// The last copy ended with a fault while reading.
const READ_FAULT: u32 = 2;
/// Memory that the kernel never gives to a device it has no driver for.
const SOURCE: u64 = 0x10_0000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("dma-engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let count: u8 = std::env::args().nth(1).context("COUNT is missing")?.parse().context("COUNT")?;
    let memory =
        OpenOptions::new().read(true).write(true).open("/dev/mem").context("cannot open /dev/mem")?;
    for number in 0..count {
        let registers = Bar::map(&memory, FIRST + 0x1000 * i64::from(number), PAGE)
            .with_context(|| format!("cannot map engine {number}"))?;
        ensure!(registers.read64(0x00) == IDENTITY, "there is no engine {number}");
        registers.write64(0x08, SOURCE);
        registers.write64(0x10, SOURCE);
        registers.write64(0x18, 8);
        registers.write32(0x20, 1);
        let (status, fault) = (registers.read32(0x28), registers.read64(0x30));
        ensure!(
            (status, fault) == (READ_FAULT, SOURCE),
            "engine {number} ended with status {status} at {fault:#x}"
        );
        println!("dma-engine: engine {number} cannot read {SOURCE:#x}");
    }
    // Who reads the kernel's log next finds all faults in it.
    wait_for_faults();
    Ok(())
}
