//! Chains of any content against a model that is as simple as can be; and whatever a guest writes wherever.

use proptest::prelude::*;

use super::rig::{BASE, COMPLETION, DATA, DESCRIPTORS, PAGES, READ_ONLY, Rig, copy, gpa, with};
use crate::ioat::spec::{Descriptor, DescriptorControl, Register, TransferStatus, error};
use crate::pci::PciFunction;

/// What is left when a chain has ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    memory: Vec<u8>,
    status: u64,
    errors: u64,
}

/// One descriptor after the other, one byte after the other.
fn model(memory: &[u8], descriptors: &[Descriptor], count: usize) -> Outcome {
    let mut memory = memory.to_vec();
    let (mut completed, mut errors) = (0, 0);
    for (number, descriptor) in (0..count)
        .map(|n| (n % descriptors.len()) as u64)
        .map(|n| (n, descriptors[usize::try_from(n).unwrap()]))
    {
        errors = one(&mut memory, &descriptor);
        if errors != 0 {
            break;
        }
        completed = DESCRIPTORS + 64 * number;
        let control = DescriptorControl::new_with_raw_value(descriptor.control.get());
        // Whether more follows is not compared: it is the channel's business until the last one.
        if control.completion() {
            let at = usize::try_from(gpa(COMPLETION)).unwrap();
            memory[at..at + 8].copy_from_slice(&completed.to_le_bytes());
        }
    }
    let status = if errors == 0 { TransferStatus::Done } else { TransferStatus::Halted };
    Outcome { memory, status: completed | status as u64, errors: errors.into() }
}

fn one(memory: &mut [u8], descriptor: &Descriptor) -> u32 {
    let control = DescriptorControl::new_with_raw_value(descriptor.control.get());
    let size = u64::from(descriptor.size.get());
    if control.operation() != 0 {
        return error::CONTROL;
    }
    if size == 0 || size > 1 << 17 {
        return error::LENGTH;
    }
    if control.null() {
        return 0;
    }
    let mapped = |iova: u64| (BASE..BASE + 0x1000 * PAGES).contains(&iova);
    let (source, destination) = (descriptor.source.get(), descriptor.destination.get());
    // Both sides are looked at in pieces, and what was moved before stays.
    for start in (0..size).step_by(0x1_0000) {
        let piece = start..size.min(start + 0x1_0000);
        let mut bytes = Vec::new();
        for at in piece.clone() {
            if !mapped(source.wrapping_add(at)) {
                return error::READ_DATA;
            }
            bytes.push(memory[usize::try_from(gpa(source.wrapping_add(at))).unwrap()]);
        }
        for (at, byte) in piece.zip(bytes) {
            let to = destination.wrapping_add(at);
            if !mapped(to) || to >= READ_ONLY {
                return error::WRITE_DATA;
            }
            memory[usize::try_from(gpa(to)).unwrap()] = byte;
        }
    }
    0
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    // Neither descriptors nor the completion are written to: what follows would depend on the moment.
    let address = || {
        prop_oneof![
            12 => DATA..READ_ONLY + 0x1000,
            1 => Just(u64::MAX - 5),
            1 => any::<u64>().prop_map(|n| n | 1 << 40),
        ]
    };
    let size = prop_oneof![6 => 1_u32..0x3000, 2 => 1_u32..0x2_0000, 1 => Just(0), 1 => 0x2_0001_u32..];
    let control = (any::<bool>(), prop::bool::weighted(0.1), prop_oneof![20 => Just(0), 1 => any::<u8>()]);
    (address(), address(), size, control).prop_map(|(source, destination, size, (told, null, operation))| {
        let control =
            DescriptorControl::DEFAULT.with_completion(told).with_null(null).with_operation(operation);
        with(copy(source, destination, size), control)
    })
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, data: Vec<u8> },
    Read { offset: u64, length: usize },
    Config { offset: u16, data: Vec<u8> },
    Chain { descriptors: Vec<Descriptor>, count: u16 },
    Unmap { page: u64 },
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let data = || prop::collection::vec(prop_oneof![any::<u8>(), 0_u8..8], 1..=8);
    let register = || prop_oneof![8 => 0_u64..0x140, 1 => 0_u64..0x3ff8];
    prop_oneof![
        8 => (register(), data()).prop_map(|(offset, data)| Step::Write { offset, data }),
        2 => (register(), 1_usize..=8).prop_map(|(offset, length)| Step::Read { offset, length }),
        1 => (0x4_u16..0x200, data()).prop_map(|(offset, data)| Step::Config { offset, data }),
        3 => (prop::collection::vec(descriptor(), 1..4), any::<u16>())
            .prop_map(|(descriptors, count)| Step::Chain { descriptors, count: count % 100 }),
        1 => (2..PAGES - 1).prop_map(|page| Step::Unmap { page }),
        1 => Just(Step::Reset),
    ]
}

fn apply(rig: &Rig, step: &Step) {
    match step {
        Step::Write { offset, data } => rig.write(*offset, data),
        Step::Read { offset, length } => _ = rig.read(*offset, *length),
        Step::Config { offset, data } => rig.function.config_write(*offset, data),
        Step::Chain { descriptors, count } => {
            rig.chain(descriptors);
            rig.start(*count);
        }
        Step::Unmap { page } => rig.iommu.unmap(None, BASE + 0x1000 * page),
        Step::Reset => rig.function.reset(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn chains_do_what_a_model_says(
        descriptors in prop::collection::vec(descriptor(), 1..8),
        count in 1_u16..12,
        seed in any::<u8>(),
    ) {
        let rig = Rig::new();
        let pattern: Vec<u8> = (0..0x1000 * (PAGES - 2)).map(|n| n.to_le_bytes()[0] ^ seed ^ n.to_le_bytes()[1]).collect();
        rig.fill(DATA, &pattern);
        rig.chain(&descriptors);
        let bytes = usize::try_from(0x1000 * PAGES).unwrap();
        let mut before = vec![0; 0x1000];
        before.extend(rig.bytes(BASE, bytes));
        let expected = model(&before, &descriptors, count.into());
        rig.start(count);
        rig.settle();
        let mut memory = vec![0; 0x1000];
        memory.extend(rig.bytes(BASE, bytes));
        memory[usize::try_from(gpa(COMPLETION)).unwrap()] &= !7;
        let (status, errors) = (rig.get(Register::Status), rig.get(Register::Error));
        prop_assert!(memory == expected.memory, "memory differs");
        prop_assert_eq!((status, errors), (expected.status, expected.errors));
    }

    #[test]
    fn random_accesses_leave_the_device_usable(steps in prop::collection::vec(step(), 0..60)) {
        let rig = Rig::new();
        for step in &steps {
            apply(&rig, step);
        }
        // What a driver does that finds the device in an unknown state.
        rig.function.reset();
        rig.bring_up();
        for page in 0..PAGES {
            let iova = BASE + 0x1000 * page;
            rig.iommu.map(iommu_core::testkit::Page { pasid: None, iova, gpa: gpa(iova), write: true });
        }
        rig.assert_alive();
    }
}
