//! Judges the kernel's own DMA engine from inside a guest: its driver, its IOMMU group, and what the kernel's `dmatest`
//! says of copies on it. Prints TAP, as svm-selftest does.
#![forbid(unsafe_code)]

mod dmatest;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest::program;
use guest::suite::{self, Entry, Plan, Work};

use dmatest::Order;

const CHANNELS: &str = "/sys/class/dma";
/// The driver of the channels that are tested.
const DRIVER: &str = "ioatdma";

/// Tests the channels of ioatdma with the kernel's dmatest.
#[derive(Parser)]
struct Options {
    /// Threads on each channel
    #[arg(long, default_value_t = 4)]
    threads: u32,
    /// Copies of each thread
    #[arg(long, default_value_t = 100)]
    iterations: u32,
    /// Longest copy, in bytes
    #[arg(long, default_value_t = 16384)]
    bytes: u32,
    /// Type that the function's IOMMU group has
    #[arg(long)]
    group: Option<String>,
    /// Channels there are
    #[arg(long, default_value_t = 1)]
    channels: usize,
}

fn main() -> ExitCode {
    program::exit_code(run(&Options::parse()))
}

fn run(options: &Options) -> Result<bool> {
    let mut entries =
        vec![entry("driver-has-channels", Box::new(|_, notes| driver_has_channels(options, notes)))];
    if let Some(kind) = &options.group {
        entries.push(entry("group-type", Box::new(move |_, _| group_type(kind))));
    }
    entries.push(entry("dmatest", Box::new(|_, notes| copies(options, notes))));
    suite::run(&Plan { program: "dma-test", entries, seed: 0, json: false, page_requests: &|| Ok(0) })
}

fn entry<'a>(name: &'a str, work: Work<'a>) -> Entry<'a> {
    Entry { name, needs_page_requests: false, provokes: false, work }
}

/// The folders of the driver's channels, in order.
fn channels() -> Result<Vec<PathBuf>> {
    let folders = fs::read_dir(CHANNELS).context("the kernel has no DMA engines: CONFIG_DMA_ENGINE")?;
    let ours = |path: &PathBuf| {
        fs::read_link(path.join("device/driver")).is_ok_and(|driver| driver.ends_with(DRIVER))
    };
    let mut channels: Vec<_> = folders.flatten().map(|entry| entry.path()).filter(ours).collect();
    channels.sort();
    Ok(channels)
}

fn name(channel: &Path) -> String {
    channel.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The driver has bound: it resets each channel and copies something before it offers them.
fn driver_has_channels(options: &Options, notes: &mut Vec<String>) -> Result<()> {
    let names: Vec<_> = channels()?.iter().map(|channel| name(channel)).collect();
    ensure!(names.len() == options.channels, "{DRIVER} has {} channels: {names:?}", names.len());
    notes.push(format!("{DRIVER} has {}", names.join(", ")));
    Ok(())
}

fn group_type(wanted: &str) -> Result<()> {
    for channel in channels()? {
        let file = channel.join("device/iommu_group/type");
        let found = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(found.trim() == wanted, "the group of {} is of type {}", name(&channel), found.trim());
    }
    Ok(())
}

fn copies(options: &Options, notes: &mut Vec<String>) -> Result<()> {
    let channels = channels()?;
    ensure!(!channels.is_empty(), "{DRIVER} has no channel");
    let order = Order {
        channels: channels.iter().map(|channel| name(channel)).collect(),
        threads: options.threads,
        iterations: options.iterations,
        bytes: options.bytes,
    };
    let summaries = dmatest::run(&order)?;
    notes.extend(summaries.iter().map(|summary| summary.text.clone()));
    for summary in &summaries {
        ensure!(summary.tests == options.iterations, "not all copies were made: {}", summary.text);
        ensure!(summary.failures == 0 && summary.error == 0, "copies failed: {}", summary.text);
    }
    Ok(())
}
