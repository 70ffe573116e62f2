//! States that are not taken.

use std::sync::Arc;

use iommu_core::SourceId;
use iommu_core::testkit::RecordingMsi;
use iommu_vtd::state::BadRegister;
use iommu_vtd::{Capability, Profile, RestoreError, Unit, UnitConfig, UnitState};

use super::bound;
use crate::driver::Machine;

fn contradiction(error: &RestoreError) -> bool {
    matches!(error, RestoreError::Contradiction { .. })
}

fn bits_of(register: &'static str) -> impl Fn(&RestoreError) -> bool {
    move |error| matches!(error, RestoreError::Register(BadRegister::Bits { name, .. }) if *name == register)
}

/// A change to a good state, and whether an error is the one that it must have.
type Refusal = (&'static str, fn(&mut UnitState), Box<dyn Fn(&RestoreError) -> bool>);

fn refusals() -> Vec<Refusal> {
    vec![
        ("version", |s| s.version = 7, Box::new(|e| *e == RestoreError::Version { found: 7 })),
        (
            "unknown register",
            |s| put(s, "XYZ", 0),
            Box::new(|e| *e == RestoreError::Register(BadRegister::Unknown { name: "XYZ".to_owned() })),
        ),
        (
            "missing register",
            |s| _ = s.registers.remove("IQT"),
            Box::new(|e| *e == RestoreError::Register(BadRegister::Missing { name: "IQT" })),
        ),
        ("reserved bit", |s| put(s, "IQT", 1), Box::new(bits_of("IQT"))),
        ("wider than it is", |s| put(s, "FEDATA", 1 << 32), Box::new(bits_of("FEDATA"))),
        ("a command under way", |s| put(s, "CCMD", 1 << 63), Box::new(bits_of("CCMD"))),
        (
            "records missing",
            |s| _ = s.fault_records.pop(),
            Box::new(|e| *e == RestoreError::Register(BadRegister::Records { found: 7 })),
        ),
        ("record out of range", |s| s.next_fault_record = 8, Box::new(contradiction)),
        ("record pending, PPF not", |s| s.fault_records[2][1] = 1 << 63, Box::new(contradiction)),
        ("PPF without a record", |s| put(s, "FSTS", 2), Box::new(contradiction)),
        ("FRI out of range", |s| put(s, "FSTS", 8 << 8), Box::new(contradiction)),
        ("IQE without a reason", |s| put(s, "FSTS", 1 << 4), Box::new(contradiction)),
        ("a reason without IQE", |s| put(s, "IQERCD", 3), Box::new(contradiction)),
        ("root in the middle of a page", |s| s.root.table |= 8, Box::new(contradiction)),
        ("no such table mode", |s| s.root.mode = 4, Box::new(contradiction)),
        ("translation off and on", |s| s.root.enabled = false, Box::new(contradiction)),
        ("queue off and on", |s| s.queue = None, Box::new(contradiction)),
        ("remapping without the feature", |s| s.interrupts.compatibility = true, Box::new(contradiction)),
        ("an interrupt table without the feature", |s| s.interrupts.table = 0x1000, Box::new(contradiction)),
        ("an interrupt table in a page", |s| s.interrupts.table = 8, Box::new(contradiction)),
        ("a function timed out, ITE not", |s| put(s, "IQERCD", 0x18 << 32), Box::new(contradiction)),
        ("ring too large", |s| s.queue.as_mut().unwrap().size = 8, Box::new(contradiction)),
        ("ring in the middle of a page", |s| s.queue.as_mut().unwrap().base |= 16, Box::new(contradiction)),
        ("head beyond the ring", |s| put(s, "IQH", 0x2000), Box::new(contradiction)),
        ("head inside a descriptor", |s| put(s, "IQH", 0x10), Box::new(contradiction)),
        ("a message that nothing holds back", |s| put(s, "PECTL", 1 << 30), Box::new(contradiction)),
    ]
}

fn put(state: &mut UnitState, register: &str, value: u64) {
    state.registers.insert(register.to_owned(), value);
}

#[test]
fn states_that_no_unit_is_in_are_refused() {
    for (name, change, expected) in refusals() {
        let machine = Machine::new();
        let _driver = bound(&machine);
        let before = machine.unit.save();
        let mut state = before.clone();
        change(&mut state);
        assert_ne!(state, before, "{name}");
        let error = machine.unit.restore(&state).unwrap_err();
        assert!(expected(&error), "{name}: {error:?}");
        assert_eq!(machine.unit.save(), before, "{name}: nothing is changed");
    }
}

/// (name, profile of the unit that takes the state, what is named)
#[test]
fn another_profile_is_refused_by_name() {
    let svm = Profile { interrupt_remapping: false, ..Profile::svm(46) }.settled();
    let rows = [
        ("width", Profile { host_address_width: 39, ..svm }, "host address width"),
        ("1 GiB pages", Profile { one_gib_pages: false, ..svm }, "FS1GP"),
        ("PASID width", Profile { pasid_bits: 16, ..svm }, "PSS"),
        ("supervisor", Profile { supervisor: false, ..svm }, "SRS"),
    ];
    for (name, profile, expected) in rows {
        let machine = Machine::new();
        let config = UnitConfig { capability: Capability::new(&profile).unwrap(), source: SourceId(0) };
        let other = Unit::new(&config, machine.memory.clone(), Arc::new(RecordingMsi::default()));
        let error = other.restore(&machine.unit.save()).unwrap_err();
        assert!(matches!(&error, RestoreError::Profile { what, .. } if *what == expected), "{name}: {error}");
    }
}

#[test]
fn fields_that_this_version_does_not_know_are_refused() {
    let machine = Machine::new();
    let mut text = serde_json::to_value(machine.unit.save()).unwrap();
    text["more"] = 1.into();
    assert!(serde_json::from_value::<UnitState>(text).is_err());
}
