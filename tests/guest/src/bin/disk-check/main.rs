//! Judges virtio disks from inside a guest: contents, sizes, caches, parallel requests, resets; and that their
//! DMA goes through the IOMMU.
//!
//! `disk-check [group=TYPE] DISK SECTORS ID [READ_ONLY_DISK]`. The IOMMU group has to be of that type, or of any that
//! translates. The host has filled DISK with [`pattern::HOST`]; the program leaves
//! [`pattern::GUEST`] in its second half. Prints TAP, as svm-selftest does.
#![forbid(unsafe_code)]

mod cases;
mod disk;
mod pattern;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use disk::Disk;

const GROUP: &str = "group=";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<bool> {
    println!("TAP version 14");
    let mut words = arguments.iter().peekable();
    let group = words.next_if(|word| word.starts_with(GROUP)).map(|word| word[GROUP.len()..].to_owned());
    let mut word = |what: &str| words.next().with_context(|| format!("{what} is missing"));
    let disk = Disk::find(word("DISK")?, word("SECTORS")?.parse()?, word("ID")?, group)?;
    let read_only = words.next();
    let mut cases = cases::ALL.to_vec();
    if read_only.is_some() {
        cases.push(("read-only", cases::read_only));
    }
    println!("1..{}", cases.len());
    let mut failed = 0;
    for (number, (name, case)) in (1..).zip(&cases) {
        let start = Instant::now();
        let target = if *name == "read-only" { Disk::named(read_only, disk.sectors) } else { disk.clone() };
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&target)));
        let micro = start.elapsed().as_micros();
        match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))) {
            Ok(()) => println!("ok {number} - {name} # us={micro}"),
            Err(error) => {
                failed += 1;
                println!("not ok {number} - {name} # us={micro}\n# {error:#}");
            }
        }
    }
    let count = cases.len();
    println!("# totals {{\"cases\":{count},\"page_requests\":0,\"need_page_requests\":[]}}");
    Ok(failed == 0)
}
