//! Copies of a guest's tables against a naive model: for every page, what its devices may find there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iommu_core::{Domain, DomainId, HostError, Invalidation, IovaRange, Permissions, Scope};
use vfio_bridge::testkit::FakeKernel;
use vm_memory::GuestMemoryMmap;

use super::shadow::{GuestTables, Host, Kind, host_address, ram, second};
use super::{PASS, source};

/// Pages of every domain that are looked at.
pub(crate) const PAGES: u64 = 48;
pub(crate) const DEVICES: usize = 2;

/// What an address leads to.
type Value = Option<(u64, Permissions)>;

/// What a device is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Blocked,
    Pass,
    /// A second-stage domain.
    To(u32),
}

impl Bound {
    pub(crate) fn domain(self) -> Domain {
        match self {
            Self::Blocked => Domain::Blocked,
            Self::Pass => PASS,
            Self::To(id) => second(id, 0x1000),
        }
    }
}

pub(crate) struct Machine {
    pub(crate) kernel: FakeKernel,
    pub(crate) host: Host,
    ram: GuestMemoryMmap,
    guest: Arc<GuestTables>,
    numbers: [usize; DEVICES],
    pub(crate) bound: [Bound; DEVICES],
    /// Reported as still bound to whatever it was.
    pub(crate) stuck: BTreeSet<usize>,
    /// Of each device that has a copy; of one that is stuck, those that it may have.
    views: Vec<(usize, View)>,
    shared: bool,
    pub(crate) errors: usize,
}

/// What a device may find.
#[derive(Clone)]
struct View {
    /// What it has a copy of.
    domain: u32,
    /// By page: what it led to at any time since it was announced.
    possible: BTreeMap<u64, Vec<Value>>,
    /// Blocks that the guest took back or replaced, and has not announced.
    old: Vec<IovaRange>,
    /// Invalidated since the last wait.
    noted: Vec<IovaRange>,
}

impl Machine {
    pub(crate) fn new(kind: Kind, kernel: &FakeKernel) -> Result<Self, HostError> {
        let (ram, guest) = (ram(), Arc::new(GuestTables::default()));
        let host = Host::new(kind, kernel, guest.clone())?;
        let mut numbers = [0; DEVICES];
        for (device, number) in numbers.iter_mut().enumerate() {
            let (known_as, added) = host.add_device(kernel, device);
            added?;
            *number = known_as;
        }
        host.add_memory(&ram)?;
        Ok(Self {
            kernel: kernel.clone(),
            host,
            ram,
            guest,
            numbers,
            bound: [Bound::Blocked; DEVICES],
            stuck: BTreeSet::new(),
            views: Vec::new(),
            shared: !kind.has_containers(),
            errors: 0,
        })
    }

    /// What a page leads to now, by the guest's tables.
    fn value(&self, domain: u32, page: u64) -> Value {
        let (gpa, permissions) = self.guest.lookup(domain, page << 12)?;
        Some((host_address(&self.ram, gpa)?, permissions))
    }

    fn remember(&mut self, domain: u32) {
        let values: Vec<_> = (0..PAGES).map(|page| self.value(domain, page)).collect();
        for (_, view) in self.views.iter_mut().filter(|(_, view)| view.domain == domain) {
            for (page, value) in (0..).zip(&values) {
                view.possible.entry(page).or_default().push(*value);
            }
        }
    }

    /// What a device finds that gets a copy of `domain`: what the guest has now, or what others have.
    fn view(&self, domain: u32) -> View {
        let fresh = (0..PAGES).map(|page| (page, vec![self.value(domain, page)])).collect();
        let mut view = View { domain, possible: fresh, old: Vec::new(), noted: Vec::new() };
        for (device, other) in self.views.iter().filter(|(_, other)| self.shared && other.domain == domain) {
            if !self.stuck.contains(device) {
                return other.clone();
            }
            // Perhaps this one: then anything goes that it may have, and nothing that was announced is promised.
            view.old.extend(&other.old);
            for (page, values) in &mut view.possible {
                values.extend(&other.possible[page]);
            }
        }
        view
    }

    /// The guest maps a block of `1 << bits` pages.
    pub(crate) fn map(&mut self, domain: u32, page: u64, bits: u32, (base, permissions): (u64, Permissions)) {
        let block = IovaRange::aligned(page << 12, 12 + bits);
        let base = base >> bits << bits;
        self.unmap(domain, &block);
        self.guest.map(domain, block.start(), 12 + bits, (base << 12, permissions));
        self.remember(domain);
    }

    pub(crate) fn unmap(&mut self, domain: u32, range: &IovaRange) {
        let blocks = self.guest.blocks(domain, range);
        for (_, view) in self.views.iter_mut().filter(|(_, view)| view.domain == domain) {
            view.old.extend(&blocks);
        }
        self.guest.unmap(domain, range);
        self.remember(domain);
    }

    pub(crate) fn invalidate(&mut self, scope: Scope) {
        self.host.host().invalidate(&Invalidation::new(scope));
        let (only, range) = match scope {
            Scope::DomainRange { domain: DomainId(domain), range } => (Some(domain), range),
            Scope::Domain(DomainId(domain)) => (Some(domain), IovaRange::ALL),
            _ => (None, IovaRange::ALL),
        };
        for (_, view) in self.views.iter_mut().filter(|(_, view)| only.is_none_or(|only| view.domain == only))
        {
            view.noted.push(range);
        }
    }

    /// The guest waits. What it announced is so then, and blocks are announced whole.
    pub(crate) fn sync(&mut self) {
        let result = self.host.host().sync();
        let mut views = std::mem::take(&mut self.views);
        for (_, view) in &mut views {
            for range in std::mem::take(&mut view.noted) {
                self.announced(view, &range);
            }
        }
        self.views = views;
        if let Err(error) = result {
            self.errors += 1;
            self.lost(error.still_bound);
        }
    }

    /// What `view` may be after the guest announced `range` and waited.
    fn announced(&self, view: &mut View, range: &IovaRange) {
        let gone: Vec<_> = view.old.extract_if(.., |block| block.overlaps(range)).collect();
        let mut hit = self.guest.blocks(view.domain, range);
        hit.push(*range);
        let of = |blocks: &[IovaRange], page| blocks.iter().any(|block| block.contains(page << 12));
        for page in 0..PAGES {
            let now = self.value(view.domain, page);
            if of(&hit, page) {
                view.possible.insert(page, vec![now]);
            } else if of(&gone, page) && !of(&view.old, page) {
                // What is there instead was not announced; nor, in the other case, that what was there before the
                // block went.
                view.possible.insert(page, vec![now, None]);
            }
        }
    }

    /// Some devices are blocked, and it is not said which: nothing stale is used, and all are bound anew.
    fn lost(&mut self, still_bound: bool) {
        for device in 0..DEVICES {
            if still_bound {
                // It may be this one; then it is told to be blocked, which is the attempt to detach it again.
                self.bind(device, Bound::Blocked);
                continue;
            }
            if !self.stuck.contains(&device) {
                self.check_device(device, true);
            }
            let bound = self.bound[device];
            if matches!(bound, Bound::To(_)) {
                self.bind(device, Bound::Blocked);
                self.bind(device, bound);
            }
        }
    }

    pub(crate) fn bind(&mut self, device: usize, to: Bound) {
        let result = self.host.host().set_domain(source(device), None, &to.domain());
        let same = self.bound[device] == to;
        if !self.stuck.contains(&device) && same {
            return assert!(result.is_ok(), "nothing to do");
        }
        self.bound[device] = Bound::Blocked;
        let stuck = result.as_ref().is_err_and(|error| error.still_bound);
        if !stuck {
            self.views.retain(|(of, _)| *of != device);
        }
        if let Bound::To(domain) = to
            && (stuck || result.is_ok())
        {
            self.views.push((device, self.view(domain)));
        }
        match result {
            Ok(()) => self.bound[device] = to,
            Err(_) => self.errors += 1,
        }
        if stuck {
            self.stuck.insert(device);
        } else {
            self.stuck.remove(&device);
        }
    }

    pub(crate) fn replug(&mut self, device: usize) {
        self.kernel.heal();
        self.host.remove_device(device);
        let (number, added) = self.host.add_device(&self.kernel, device);
        added.unwrap();
        self.numbers[device] = number;
        self.bound[device] = Bound::Blocked;
        self.views.retain(|(of, _)| *of != device);
        self.stuck.remove(&device);
    }

    pub(crate) fn check(&self) {
        (0..DEVICES)
            .filter(|device| !self.stuck.contains(device))
            .for_each(|device| self.check_device(device, false));
    }

    fn check_device(&self, device: usize, may_be_blocked: bool) {
        for page in 0..PAGES {
            let found = self.host.lookup(&self.kernel, self.numbers[device], page << 12);
            let right = match self.bound[device] {
                Bound::Blocked => found.is_none(),
                Bound::Pass => found.map(|found| found.0) == host_address(&self.ram, page << 12),
                Bound::To(_) => {
                    let view = self.views.iter().find(|(of, _)| *of == device);
                    view.unwrap().1.possible[&page].contains(&found)
                }
            };
            let blocked = may_be_blocked && found.is_none();
            assert!(
                right || blocked,
                "device {device}, {:?}, page {page:#x}: {found:x?}",
                self.bound[device]
            );
        }
    }

    /// All that is bound is exact now.
    pub(crate) fn announce_all(&mut self) {
        self.invalidate(Scope::All);
        self.sync();
        self.check();
    }
}
