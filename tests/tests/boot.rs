//! A guest starts, and ends in every way a guest can.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use svmm_tests::guest::{Guest, Outcome, STATUS_BASE};

fn boot(guest: &Guest) -> Outcome {
    guest.boot().unwrap()
}

/// Both kernel formats, without the endpoint, and no complaint of the kernel's.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn boots_and_powers_off() {
    let rows = [
        ("bzImage", Guest::new().without_svm()),
        ("vmlinux by PVH, 2 CPUs", Guest::new().without_svm().elf().cpus(2)),
    ];
    for (name, guest) in rows {
        let outcome = boot(&guest.run("@dmesg").run("@poweroff"));
        assert_eq!(outcome.code, 0, "{name}: {}", outcome.tail());
        assert!(outcome.boot_ms().is_some(), "{name}: {}", outcome.tail());
        let log = outcome.kernel_log().unwrap();
        assert_eq!(log.complaints(), [""; 0], "{name}");
        println!("{name}: userspace after {:?} ms, ended after {:?}", outcome.boot_ms(), outcome.elapsed);
    }
}

/// svmm's exit code tells how the guest ended.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn exit_codes() {
    let rows = [
        ("status 0", "@exit:0", 0),
        ("status 42", "@exit:42", STATUS_BASE + 42),
        ("status too great", "@exit:300", STATUS_BASE + 63),
        ("reset", "@reboot", 3),
        ("triple fault", "@triple-fault", 5),
    ];
    for (name, action, code) in rows {
        let outcome = boot(&Guest::new().without_svm().run(action));
        assert_eq!(outcome.code, code, "{name}: {}", outcome.tail());
    }
}

/// A kernel that panics says why, and svmm ends with a failure: code 4 if the kernel has a pvpanic
/// driver, else the reset that follows a panic.
#[test]
#[ignore = "needs a guest: run cargo lab test"]
fn a_panic_ends_the_machine() {
    let outcome = boot(&Guest::new().without_svm().run("@panic"));
    assert!(matches!(outcome.code, 3 | 4), "{}", outcome.tail());
    assert!(outcome.console.contains("Kernel panic - not syncing: sysrq"), "{}", outcome.tail());
}
