//! Copies of a guest's tables in random histories of mappings, announcements, bindings and refusals.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::check_nothing_left;
use common::copies::{Bound, DEVICES, Machine, PAGES};
use common::shadow::{KINDS, Kind};
use iommu_core::{DomainId, IovaRange, Permissions, Scope};
use proptest::prelude::*;
use rustix::io::Errno;
use vfio_bridge::testkit::{Call, Damage, Failure, FakeKernel};

#[derive(Clone, Debug)]
enum Step {
    Map(u32, u64, u32, (u64, Permissions)),
    Unmap(u32, IovaRange),
    Invalidate(Scope),
    Sync,
    Bind(usize, Bound),
    Replug(usize),
    Fail(Failure),
    Heal,
}

/// A block of pages.
fn range() -> impl Strategy<Value = IovaRange> {
    (0..PAGES, 0..5_u32).prop_map(|(page, bits)| IovaRange::aligned(page << 12, 12 + bits))
}

fn target() -> impl Strategy<Value = (u64, Permissions)> {
    // Low memory, and where it ends.
    let base = prop_oneof![4 => 0..16_u64, 1 => 0x3f8..0x408_u64];
    let permissions = prop_oneof![
        4 => Just(Permissions::READ_WRITE),
        1 => Just(Permissions { read: true, write: false }),
        1 => Just(Permissions { read: false, write: true }),
    ];
    (base, permissions)
}

fn scope() -> impl Strategy<Value = Scope> {
    (1..3_u32, range(), 0..12_u8).prop_map(|(domain, range, kind)| match kind {
        0 => Scope::All,
        1 => Scope::Domain(DomainId(domain)),
        _ => Scope::DomainRange { domain: DomainId(domain), range },
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    let call = prop::sample::select(vec![
        Call::Attach,
        Call::Detach,
        Call::Destroy,
        Call::IoasAlloc,
        Call::IoasMap,
        Call::IoasCopy,
        Call::IoasUnmap,
        Call::ContainerMap,
        Call::ContainerUnmap,
    ]);
    let errno = prop::sample::select(vec![Errno::IO, Errno::NOMEM, Errno::NOSPC]);
    let damage = prop::sample::select(vec![Damage::None, Damage::Torn, Damage::Done]);
    (call, errno, 1..4_usize, 0..4_usize, damage).prop_map(|(call, errno, times, after, damage)| Failure {
        times,
        after,
        damage,
        ..Failure::next(call, errno)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let bound = prop_oneof![
        4 => (1..3_u32).prop_map(Bound::To),
        1 => Just(Bound::Pass),
        1 => Just(Bound::Blocked),
    ];
    prop_oneof![
        12 => (1..3_u32, 0..PAGES, prop_oneof![4 => Just(0), 1 => 1..4_u32], target())
            .prop_map(|(domain, page, bits, target)| Step::Map(domain, page, bits, target)),
        6 => (1..3_u32, range()).prop_map(|(domain, range)| Step::Unmap(domain, range)),
        8 => scope().prop_map(Step::Invalidate),
        6 => Just(Step::Sync),
        4 => (0..DEVICES, bound).prop_map(|(device, bound)| Step::Bind(device, bound)),
        1 => (0..DEVICES).prop_map(Step::Replug),
        2 => failure().prop_map(Step::Fail),
        2 => Just(Step::Heal),
    ]
}

fn run(kind: Kind, steps: &[Step]) {
    let kernel = FakeKernel::new();
    let mut machine = Machine::new(kind, &kernel).unwrap();
    for step in steps {
        match step {
            Step::Map(domain, page, bits, target) => machine.map(*domain, *page, *bits, *target),
            Step::Unmap(domain, range) => machine.unmap(*domain, range),
            Step::Invalidate(scope) => machine.invalidate(*scope),
            Step::Sync => machine.sync(),
            Step::Bind(device, bound) => machine.bind(*device, *bound),
            Step::Replug(device) => machine.replug(*device),
            Step::Fail(failure) => kernel.fail(*failure),
            Step::Heal => drop(kernel.heal()),
        }
        machine.check();
    }
    let failed = kernel.audit().failed;
    assert!(failed > 0 || machine.errors == 0, "nothing was made to fail");
    kernel.heal();
    machine.announce_all();
    drop(machine);
    check_nothing_left(&kernel);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn devices_find_what_the_guest_announced(steps in prop::collection::vec(step(), 1..120)) {
        for kind in KINDS {
            run(kind, &steps);
        }
    }
}
