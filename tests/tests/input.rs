//! What a user can get wrong: exit code 2 and one line that names it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::process::Command;

use svmm_tests::guest::{Materials, Outcome};

/// A row: its name, the arguments, and what the line must name. `{kernel}` stands for a good kernel.
type Row = (&'static str, &'static [&'static str], &'static str);

const ROWS: &[Row] = &[
    ("no kernel", &["run"], "--kernel"),
    ("missing kernel", &["run", "--kernel", "/nowhere/kernel"], "/nowhere/kernel"),
    ("folder as kernel", &["run", "--kernel", "/"], "/"),
    ("text as kernel", &["run", "--kernel", "/proc/version"], "/proc/version"),
    ("empty kernel", &["run", "--kernel", "/dev/null"], "/dev/null"),
    ("missing initrd", &["run", "--kernel", "{kernel}", "--initrd", "/nowhere/initrd"], "/nowhere/initrd"),
    ("folder as initrd", &["run", "--kernel", "{kernel}", "--initrd", "/"], "/"),
    ("no memory", &["run", "--kernel", "{kernel}", "--memory-mib", "0"], "memory"),
    ("odd memory", &["run", "--kernel", "{kernel}", "--memory-mib", "513"], "memory"),
    ("huge memory", &["run", "--kernel", "{kernel}", "--memory-mib", "18446744073709551614"], "memory"),
    ("memory that is no number", &["run", "--kernel", "{kernel}", "--memory-mib", "much"], "memory"),
    ("no CPU", &["run", "--kernel", "{kernel}", "--cpus", "0"], "cpu"),
    ("too many CPUs", &["run", "--kernel", "{kernel}", "--cpus", "100000"], "cpu"),
    ("unknown flag", &["run", "--kernel", "{kernel}", "--frobnicate"], "--frobnicate"),
    ("unknown command", &["walk"], "walk"),
    ("unknown endpoint option", &["run", "--kernel", "{kernel}", "--svm=colour=red"], "colour"),
    ("endpoint without queues", &["run", "--kernel", "{kernel}", "--svm=queues=0"], "queues"),
    ("too many queues", &["run", "--kernel", "{kernel}", "--svm=queues=17"], "queues"),
    ("pri neither on nor off", &["run", "--kernel", "{kernel}", "--svm=pri=maybe"], "pri"),
    ("unknown preset", &["run", "--kernel", "{kernel}", "--iommu", "modern"], "legacy, scalable, svm, full"),
    ("unknown unit option", &["run", "--kernel", "{kernel}", "--iommu", "colour=red"], "scalable-mode"),
    ("impossible width", &["run", "--kernel", "{kernel}", "--iommu", "full,aw-bits=40"], "39, 48 or 57"),
    (
        "page requests in legacy mode",
        &["run", "--kernel", "{kernel}", "--iommu", "legacy,svm=on"],
        "scalable-mode=on",
    ),
    (
        "nesting without second stage",
        &["run", "--kernel", "{kernel}", "--iommu", "svm,nest=on"],
        "nest needs ssts=on",
    ),
    (
        "x2APIC without remapping",
        &["run", "--kernel", "{kernel}", "--iommu", "intremap=off,eim=on"],
        "eim needs intremap=on",
    ),
    (
        "five levels of 48 bits",
        &["run", "--kernel", "{kernel}", "--iommu", "aw-bits=48,fs5lp=on"],
        "aw-bits=57",
    ),
    ("PASIDs too wide", &["run", "--kernel", "{kernel}", "--iommu", "pasid-bits=21"], "0 to 20"),
    ("unit among none", &["run", "--kernel", "{kernel}", "--iommu", "off", "--iommu", "full"], "off"),
    ("two units of one name", &["run", "--kernel", "{kernel}", "--iommu", "id=a", "--iommu", "id=a"], "id a"),
    ("unit without devices", &["run", "--kernel", "{kernel}", "--iommu", "full", "--iommu", "id=b"], "id=b"),
    ("device behind no unit", &["run", "--kernel", "{kernel}", "--svm=iommu=b"], "iommu0"),
    ("endpoint without unit", &["run", "--kernel", "{kernel}", "--svm", "--iommu", "off"], "--iommu on"),
    ("unknown option of a DMA engine", &["run", "--kernel", "{kernel}", "--acpi-dma=ats=on"], "ats=on"),
    ("strange serial", &["run", "--kernel", "{kernel}", "--serial", "telepathy"], "telepathy"),
    (
        "serial where nothing can be",
        &["run", "--kernel", "{kernel}", "--serial", "file:/nowhere/log"],
        "/nowhere/log",
    ),
    ("missing disk", &["run", "--kernel", "{kernel}", "--disk", "/nowhere/disk"], "/nowhere/disk"),
    ("folder as disk", &["run", "--kernel", "{kernel}", "--disk", "/"], "--disk /: is a directory"),
    ("strange disk option", &["run", "--kernel", "{kernel}", "--disk", "/dev/null,colour=red"], "colour"),
    ("command line too long", &["run", "--kernel", "{kernel}", "--cmdline", "{long}"], "command line"),
];

#[test]
#[ignore = "needs svmm: run cargo lab test"]
fn bad_input_is_one_line_and_exit_code_2() {
    let materials = Materials::from_environment().unwrap();
    let mut wrong = Vec::new();
    for (name, arguments, named) in ROWS {
        let mut command = Command::new(&materials.svmm);
        for argument in *arguments {
            match *argument {
                "{kernel}" => command.arg(&materials.kernel),
                "{long}" => command.arg("x".repeat(5000)),
                other => command.arg(other),
            };
        }
        let outcome = Outcome::of(command).unwrap();
        wrong.extend(complaint(&outcome, named).map(|what| format!("{name}: {what}: {:?}", outcome.stderr)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn complaint(outcome: &Outcome, named: &str) -> Option<String> {
    let text = outcome.stderr.trim_end();
    if outcome.code != 2 {
        return Some(format!("exit code {}", outcome.code));
    }
    if text.contains("panicked") || text.contains("backtrace") || text.contains("RUST_") {
        return Some("speaks of its own insides".into());
    }
    if text.lines().filter(|line| !line.trim().is_empty()).count() != 1 {
        return Some("not one line".into());
    }
    let names_it = text.to_ascii_lowercase().contains(&named.to_ascii_lowercase());
    (!names_it).then(|| format!("does not name {named}"))
}
