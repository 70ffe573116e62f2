//! Random histories of bindings, invalidations, page requests and refusals, against a naive model.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{PASS, Pair, check_nothing_left, expected, first, guest, memory, pasid, response, source};
use iommu_core::testkit::ListTranslator;
use iommu_core::{
    Domain, DomainId, HostIommu, Invalidation, IovaRange, Pasid, ResponseCode, Scope, StageTag, Tag,
};
use proptest::prelude::*;
use rustix::io::Errno;
use vfio_bridge::NestedIommu;
use vfio_bridge::testkit::{Answer, Call, Damage, Failure, FakeKernel, Hardware};

#[derive(Clone, Debug)]
enum Step {
    Bind(Pair, Domain),
    Touch(Pair, u64),
    Invalidate(Scope, bool),
    Sync,
    Request(Pair, u16),
    Deliver,
    Respond(Pair, u16, bool),
    Reset(usize),
    Replug(usize),
    Fail(Failure),
    Heal,
}

fn pair() -> impl Strategy<Value = Pair> {
    (0..2_usize, prop_oneof![Just(None), Just(Some(1)), Just(Some(2))])
}

fn domain() -> impl Strategy<Value = Domain> {
    let table = (1..3_u32, 1..4_u64).prop_map(|(id, root)| first(id, root << 12));
    prop_oneof![5 => table, 1 => Just(PASS), 2 => Just(Domain::Blocked)]
}

fn scope() -> impl Strategy<Value = Scope> {
    let range = (0..24_u64, 0..4_u32).prop_map(|(n, bits)| IovaRange::aligned(n << 12, 12 + bits));
    let pasid = (0..3_u32).prop_map(Pasid::truncate);
    let domain = (1..3_u32).prop_map(DomainId);
    (domain, pasid, range, 0..12_u8).prop_map(|(domain, pasid, range, kind)| match kind {
        0 => Scope::All,
        1 => Scope::Domain(domain),
        2 => Scope::DomainRange { domain, range },
        3 => Scope::Pasid { domain, pasid },
        _ => Scope::PasidRange { domain, pasid, range },
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    let call = prop_oneof![
        Just(Call::Attach),
        Just(Call::Detach),
        Just(Call::HwptAlloc),
        Just(Call::Destroy),
        Just(Call::Invalidate),
        Just(Call::FaultRead),
        Just(Call::FaultWrite),
    ];
    let errno = prop_oneof![Just(Errno::IO), Just(Errno::BUSY), Just(Errno::NOMEM)];
    let damage = prop_oneof![Just(Damage::None), Just(Damage::Torn), Just(Damage::Done)];
    (call, errno, 1..5_usize, 0..3_usize, damage).prop_map(|(call, errno, times, partial, damage)| Failure {
        times,
        partial,
        damage,
        ..Failure::next(call, errno)
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (pair(), domain()).prop_map(|(pair, domain)| Step::Bind(pair, domain)),
        12 => (pair(), 0..24_u64).prop_map(|(pair, n)| Step::Touch(pair, n << 12)),
        10 => (scope(), any::<bool>()).prop_map(|(scope, leaf)| Step::Invalidate(scope, leaf)),
        4 => Just(Step::Sync),
        6 => (pair(), 0..4_u16).prop_map(|(pair, group)| Step::Request(pair, group)),
        4 => Just(Step::Deliver),
        6 => (pair(), 0..4_u16, any::<bool>()).prop_map(|(pair, group, ok)| Step::Respond(pair, group, ok)),
        1 => (0..2_usize).prop_map(Step::Reset),
        1 => (0..2_usize).prop_map(Step::Replug),
        2 => failure().prop_map(Step::Fail),
        2 => Just(Step::Heal),
    ]
}

/// The host, and what a reader of the contract expects of it.
struct Model {
    kernel: FakeKernel,
    host: NestedIommu,
    guest: Arc<ListTranslator>,
    /// The fake kernel's number of each device; a device that was plugged again has a new one.
    number: [usize; 2],
    bound: BTreeMap<Pair, Domain>,
    stuck: BTreeSet<Pair>,
    /// Pages cached by the hardware.
    cached: BTreeSet<(Pair, u64)>,
    /// Those that must not be used after the next wait.
    stale: BTreeSet<(Pair, u64)>,
}

impl Model {
    fn new() -> Self {
        let kernel = FakeKernel::new();
        let host = NestedIommu::new(Arc::new(kernel.clone())).unwrap();
        for device in 0..2 {
            host.add_device(source(device), Box::new(kernel.add_device(0))).unwrap();
        }
        host.add_memory(&memory()).unwrap();
        Self {
            kernel,
            host,
            guest: guest(),
            number: [0, 1],
            bound: BTreeMap::new(),
            stuck: BTreeSet::new(),
            cached: BTreeSet::new(),
            stale: BTreeSet::new(),
        }
    }

    fn hardware(&self, pair: Pair) -> Hardware {
        self.kernel.hardware(self.number[pair.0], pair.1)
    }

    fn gone(&mut self, pair: Pair) {
        self.cached.retain(|(of, _)| *of != pair);
        self.stale.retain(|(of, _)| *of != pair);
    }

    fn tag(&self, pair: Pair) -> Option<Tag> {
        match self.bound.get(&pair) {
            Some(Domain::FirstStage { id, .. }) => {
                let pasid = pasid(pair.1).unwrap_or(Pasid::ZERO);
                Some(Tag { domain: *id, pasid, stage: StageTag::First })
            }
            _ => None,
        }
    }

    fn bind(&mut self, pair: Pair, domain: Domain) {
        let same =
            self.bound.get(&pair).unwrap_or(&Domain::Blocked) == &domain && !self.stuck.contains(&pair);
        let calls = self.kernel.count(Call::Attach) + self.kernel.count(Call::Detach);
        let result = self.host.set_domain(source(pair.0), pasid(pair.1), &domain);
        if same {
            let after = self.kernel.count(Call::Attach) + self.kernel.count(Call::Detach);
            assert!(result.is_ok() && calls == after, "nothing to do");
            return;
        }
        let target = |domain: &Domain| expected(domain);
        let passes = self.bound.get(&pair).map(target) == Some(Hardware::Parent)
            && target(&domain) == Hardware::Parent;
        if !passes {
            self.gone(pair);
        }
        self.bound.remove(&pair);
        self.stuck.remove(&pair);
        match result {
            Ok(()) if domain == Domain::Blocked => {}
            Ok(()) => {
                self.bound.insert(pair, domain);
            }
            Err(error) if error.still_bound => {
                self.stuck.insert(pair);
            }
            Err(_) => {}
        }
    }

    fn invalidate(&mut self, scope: Scope, leaf_only: bool) {
        let invalidation = Invalidation { leaf_only, ..Invalidation::new(scope) };
        self.host.invalidate(&invalidation);
        for (pair, page) in &self.cached {
            let tag = self.tag(*pair);
            if tag.is_some_and(|tag| invalidation.hits(&tag, &IovaRange::aligned(*page, 12))) {
                self.stale.insert((*pair, *page));
            }
        }
    }

    fn sync(&mut self) {
        let tables = self.kernel.audit().objects.get("nested").copied().unwrap_or(0);
        let calls = self.kernel.count(Call::Invalidate);
        let result = self.host.sync();
        let made = self.kernel.count(Call::Invalidate) - calls;
        match result {
            Ok(()) => {}
            Err(error) => {
                for pair in self.bound.keys().copied().collect::<Vec<_>>() {
                    if self.hardware(pair) == Hardware::Blocked {
                        self.bound.remove(&pair);
                        self.gone(pair);
                    } else if error.still_bound {
                        self.stuck.insert(pair);
                    }
                }
            }
        }
        assert!(made <= tables || self.failing(), "{made} calls for {tables} tables");
        for (pair, page) in std::mem::take(&mut self.stale) {
            let cached = self.kernel.has_cached(self.number[pair.0], pair.1, page);
            assert!(!cached || self.stuck.contains(&pair), "{pair:?} still uses {page:#x}");
        }
        self.cached.retain(|(pair, page)| self.kernel.has_cached(self.number[pair.0], pair.1, *page));
    }

    /// More calls are fine after errors; that some were to fail is all that is known.
    fn failing(&self) -> bool {
        self.kernel.audit().failed > 0
    }

    fn replug(&mut self, device: usize) {
        self.kernel.heal();
        self.host.remove_device(source(device));
        for pair in [(device, None), (device, Some(1)), (device, Some(2))] {
            assert_eq!(self.hardware(pair), Hardware::Blocked);
            self.gone(pair);
            self.bound.remove(&pair);
            self.stuck.remove(&pair);
        }
        let file = self.kernel.add_device(0);
        self.number[device] = file.number();
        self.host.add_device(source(device), Box::new(file)).unwrap();
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Bind(pair, domain) => self.bind(*pair, *domain),
            Step::Touch(pair, page) => {
                if self.kernel.touch(self.number[pair.0], pair.1, *page) && !self.stuck.contains(pair) {
                    self.cached.insert((*pair, *page));
                    self.stale.remove(&(*pair, *page));
                }
            }
            Step::Invalidate(scope, leaf_only) => self.invalidate(*scope, *leaf_only),
            Step::Sync => self.sync(),
            Step::Request(pair, group) => {
                self.kernel.request_pages(self.number[pair.0], pair.1, u32::from(*group), &[0x1000, 0x2000]);
            }
            Step::Deliver => {
                let delivered = self.host.deliver_page_requests(&*self.guest);
                assert!(delivered.is_ok() || self.failing());
            }
            Step::Respond(pair, group, success) => {
                let code = if *success { ResponseCode::Success } else { ResponseCode::Invalid };
                let taken = self.host.respond(&response(*pair, *group, code));
                assert!(taken.is_ok() || self.failing());
            }
            Step::Reset(device) => {
                let reset = self.host.device_was_reset(source(*device), &*self.guest);
                assert!(reset.is_ok() || self.failing());
            }
            Step::Replug(device) => self.replug(*device),
            Step::Fail(failure) => self.kernel.fail(*failure),
            Step::Heal => drop(self.kernel.heal()),
        }
    }

    fn check(&self) {
        for pair in [(0, None), (0, Some(1)), (0, Some(2)), (1, None), (1, Some(1)), (1, Some(2))] {
            if !self.stuck.contains(&pair) {
                let domain = self.bound.get(&pair).unwrap_or(&Domain::Blocked);
                assert_eq!(self.hardware(pair), expected(domain), "{pair:?}");
            }
        }
        for answers in &self.kernel.audit().groups {
            assert!(answers.len() <= 1, "{answers:?}");
        }
    }

    /// Every group that the guest was shown and that is still open can be answered now, unless its name was used
    /// again or its attachment went.
    fn finish(self) {
        self.kernel.heal();
        self.host.deliver_page_requests(&*self.guest).unwrap();
        for device in 0..2 {
            for pasid in [None, Some(1), Some(2)] {
                for group in 0..4 {
                    self.host.respond(&response((device, pasid), group, ResponseCode::Success)).unwrap();
                }
            }
        }
        let audit = self.kernel.audit();
        assert!(audit.groups.iter().all(|answers| answers.len() == 1), "none is lost: {:?}", audit.groups);
        let Self { kernel, host, .. } = self;
        drop(host);
        check_nothing_left(&kernel);
        assert_eq!(kernel.audit().stale_responses, 0, "none is answered twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn histories_end_well(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
            model.check();
        }
        model.finish();
    }
}

/// The guest answers, devices ask and bindings change at once. Nothing is lost, nothing answered twice.
#[test]
fn page_requests_survive_concurrent_changes() {
    let mut model = Model::new();
    for pair in [(0, Some(1)), (1, Some(1))] {
        model.bind(pair, first(1, 0x1000));
    }
    let Model { kernel, host, guest, .. } = &model;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..2000_u32 {
                kernel.request_pages(usize::from(n.is_multiple_of(2)), Some(1), n % 512, &[0x1000]);
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for n in 0..400_u64 {
                let domain = first(1, ((n % 3) + 1) << 12);
                host.set_domain(source(0), pasid(Some(1)), &domain).unwrap();
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for _ in 0..4000 {
                host.deliver_page_requests(&**guest).unwrap();
            }
        });
        for n in 0..40_000_u32 {
            let device = usize::from(n.is_multiple_of(2));
            let group = u16::try_from(n % 512).unwrap();
            host.respond(&response((device, Some(1)), group, ResponseCode::Success)).unwrap();
        }
    });
    host.deliver_page_requests(&**guest).unwrap();
    for group in 0..512 {
        for device in 0..2 {
            host.respond(&response((device, Some(1)), group, ResponseCode::Success)).unwrap();
        }
    }
    let audit = kernel.audit();
    assert_eq!(audit.groups.len(), 2000);
    assert!(audit.groups.iter().all(|answers| answers.len() == 1));
    assert!(audit.groups.iter().any(|answers| answers[0] == Answer::Written(0)));
}
