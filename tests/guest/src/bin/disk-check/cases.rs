//! What a disk has to do.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::{Disk, read, same, write};
use crate::pattern::{self, GUEST, HOST};

type Case = fn(&Disk) -> Result<()>;

/// Cases in order; the last ones leave the disk as the host wants to find it.
pub(crate) const ALL: [(&str, Case); 10] = [
    ("what-the-driver-sees", what_the_driver_sees),
    ("behind-the-iommu", behind_the_iommu),
    ("reads-of-many-sizes", reads),
    ("writes-of-many-sizes", writes),
    ("through-the-page-cache", page_cache),
    ("requests-side-by-side", side_by_side),
    ("beyond-the-end", beyond_the_end),
    ("interrupts", interrupts),
    ("driver-bound-again", bound_again),
    ("guest-pattern", guest_pattern),
];

/// Lengths of requests, in bytes: from a sector to more than fits a bounce buffer.
const SIZES: [usize; 7] = [512, 1024, 4096, 4608, 65536, 0x4_2000, 1 << 20];

fn what_the_driver_sees(disk: &Disk) -> Result<()> {
    for (name, expected) in [
        ("size", disk.sectors.to_string()),
        ("serial", disk.id.clone()),
        ("ro", "0".into()),
        ("queue/logical_block_size", "512".into()),
        ("queue/write_cache", "write back".into()),
    ] {
        let found = disk.attribute(name)?;
        ensure!(found == expected, "{name} is {found}, not {expected}");
    }
    let features = fs::read_to_string(disk.virtio()?.join("features"))?;
    // Bits 32 and 33: VERSION_1 and ACCESS_PLATFORM.
    ensure!(features.get(32..34) == Some("11"), "features {features}");
    Ok(())
}

/// With a translating domain, every address that the disk gets is an IOVA; with an identity one, the address itself.
fn behind_the_iommu(disk: &Disk) -> Result<()> {
    let group = disk.function()?.join("iommu_group/type");
    let kind = fs::read_to_string(&group).context("the disk is in no IOMMU group")?;
    let kind = kind.trim();
    let expected = disk.group.as_deref().map_or(kind.starts_with("DMA"), |group| kind == group);
    ensure!(expected, "its domain is {kind}");
    Ok(())
}

fn reads(disk: &Disk) -> Result<()> {
    let file = disk.direct()?;
    for size in SIZES {
        for offset in [0, 512, 0x7_fe00, disk.bytes() / 2 - size as u64] {
            same(&read(&file, offset, size)?, &pattern::bytes(HOST, offset, size), offset)?;
        }
    }
    Ok(())
}

fn writes(disk: &Disk) -> Result<()> {
    let file = disk.direct()?;
    for (seed, size) in (100..).zip(SIZES) {
        for offset in [disk.bytes() / 2 + 512, disk.bytes() - size as u64] {
            let data = pattern::bytes(seed, offset, size);
            write(&file, offset, &data)?;
            same(&read(&file, offset, size)?, &data, offset)?;
        }
    }
    Ok(())
}

fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop the page cache")
}

fn page_cache(disk: &Disk) -> Result<()> {
    let file = File::options().read(true).write(true).open(disk.path())?;
    let (offset, len) = (disk.bytes() / 2 + 1000, 300_000);
    let data = pattern::bytes(7, offset, len);
    file.write_all_at(&data, offset)?;
    file.sync_all().context("fsync")?;
    drop_caches()?;
    let mut found = vec![0; len];
    file.read_exact_at(&mut found, offset)?;
    same(&found, &data, offset)
}

fn side_by_side(disk: &Disk) -> Result<()> {
    const THREADS: u64 = 4;
    let share = disk.bytes() / 2 / THREADS;
    let work = |number: u64| -> Result<()> {
        let file = disk.direct()?;
        let start = disk.bytes() / 2 + number * share;
        for round in 0..50_u64 {
            let size = 4096 << (round % 4);
            let offset = start + (round * 0x1_3000) % (share - size);
            let (offset, len) = (offset & !511, usize::try_from(size)?);
            let data = pattern::bytes(number << 32 | round, offset, len);
            write(&file, offset, &data)?;
            same(&read(&file, offset, len)?, &data, offset)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || work(number))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        }
        Ok(())
    })
}

fn beyond_the_end(disk: &Disk) -> Result<()> {
    let file = disk.direct()?;
    match write(&file, disk.bytes(), &[0; 512]) {
        Ok(()) => bail!("a write beyond the end works"),
        Err(_) => reads(disk).context("afterwards"),
    }
}

fn interrupts(disk: &Disk) -> Result<()> {
    let device = disk.virtio()?;
    let device = device.file_name().context("no name")?.to_string_lossy();
    let table = fs::read_to_string("/proc/interrupts")?;
    let messages =
        !fs::read_to_string("/proc/cmdline")?.split_ascii_whitespace().any(|word| word == "pci=nomsi");
    // By its queues' messages, or by its line.
    let (queue, whole) = (format!("{device}-req"), device.as_ref());
    let is_of = |line: &&str| match messages {
        true => line.contains(&queue),
        false => line.split_ascii_whitespace().any(|word| word.trim_end_matches(',') == whole),
    };
    let line = table.lines().find(is_of).with_context(|| format!("no interrupt of {device}:\n{table}"))?;
    let counts = line.split_ascii_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
    ensure!(counts.sum::<u64>() > 0, "never raised: {line}");
    // Not every kernel calls the two kinds of messages by different names in this table.
    let number = line.split(':').next().unwrap_or_default().trim();
    let kind = fs::read_to_string(disk.function()?.join("msi_irqs").join(number));
    if !messages {
        ensure!(kind.is_err(), "messages after all: {line}");
        return Ok(());
    }
    let kind = kind.with_context(|| format!("no message: {line}"))?;
    ensure!(kind.trim() == "msix", "no MSI-X but {}: {line}", kind.trim());
    Ok(())
}

/// The driver resets the device when it leaves, and a function-level reset comes in between.
fn bound_again(disk: &Disk) -> Result<()> {
    let function = disk.function()?;
    let name = function.file_name().context("no name")?.to_owned();
    let driver = Path::new("/sys/bus/pci/drivers/virtio-pci");
    let tell = |file: &Path, what: &std::ffi::OsStr| {
        // Each of these may hang, and then the last line tells which.
        println!("# {}", file.display());
        fs::write(file, what.as_encoded_bytes()).with_context(|| format!("cannot write {}", file.display()))
    };
    for _ in 0..3 {
        tell(&driver.join("unbind"), &name)?;
        ensure!(!disk.path().exists(), "it is still there");
        let methods = fs::read_to_string(function.join("reset_method")).unwrap_or_default();
        ensure!(methods.contains("flr"), "no function-level reset: {methods}");
        tell(&function.join("reset"), "1".as_ref())?;
        tell(&driver.join("bind"), &name)?;
        disk.wait()?;
        reads(disk)?;
    }
    Ok(())
}

fn guest_pattern(disk: &Disk) -> Result<()> {
    let file = disk.direct()?;
    let half = disk.bytes() / 2;
    let step = 1 << 18;
    for offset in (half..disk.bytes()).step_by(step) {
        write(&file, offset, &pattern::bytes(GUEST, offset, step))?;
    }
    file.sync_all().context("fsync")?;
    for offset in (half..disk.bytes()).step_by(step) {
        same(&read(&file, offset, step)?, &pattern::bytes(GUEST, offset, step), offset)?;
    }
    Ok(())
}

/// A disk that the guest cannot write, also if it tries.
pub(crate) fn read_only(disk: &Disk) -> Result<()> {
    ensure!(disk.attribute("ro")? == "1", "it does not say so");
    match File::options().write(true).open(disk.path()) {
        Ok(file) => match file.write_all_at(&[0; 512], 0) {
            Ok(()) if file.sync_all().is_ok() => bail!("a write works"),
            _ => {}
        },
        Err(error) => ensure!(
            matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem),
            "opening for writes: {error}"
        ),
    }
    let mut found = vec![0; 1 << 20];
    File::open(disk.path())?.read_exact_at(&mut found, 0)?;
    same(&found, &pattern::bytes(HOST, 0, 1 << 20), 0)
}
