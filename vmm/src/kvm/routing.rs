//! KVM's table of interrupt routes, which is replaced as a whole: pins of the IOAPIC first, then messages of assigned
//! functions, one number each.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use iommu_core::Msi;
use kvm_bindings::kvm_irq_routing_entry;
use parking_lot::Mutex;
use vfio_bridge::function::{InterruptShortcuts, Shortcut};
use vmm_sys_util::eventfd::EventFd;

use super::irq::{RoutingTable, route};
use crate::layout::gsi;

/// KVM's limit on the numbers of routes.
const MAX_ROUTES: u32 = 4096;

#[derive(Default)]
struct State {
    pins: Vec<kvm_irq_routing_entry>,
    /// By number; `None`: taken, and leads nowhere.
    messages: BTreeMap<u32, Option<Msi>>,
}

/// The table, and who takes it.
pub(crate) struct Routing {
    table: Box<dyn RoutingTable>,
    state: Mutex<State>,
}

impl Routing {
    /// An empty table for `table`.
    pub(crate) fn new(table: impl RoutingTable + 'static) -> Arc<Self> {
        Arc::new(Self { table: Box::new(table), state: Mutex::default() })
    }

    fn publish(&self, state: &State) -> Result<(), String> {
        let messages = state.messages.iter().filter_map(|(number, msi)| route(*number, (*msi)?));
        let entries: Vec<_> = state.pins.iter().copied().chain(messages).collect();
        self.table.replace(&entries)
    }

    fn allocate(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let number =
            (u32::from(gsi::PINS)..MAX_ROUTES).find(|number| !state.messages.contains_key(number))?;
        state.messages.insert(number, None);
        Some(number)
    }

    fn set(&self, number: u32, msi: Msi) -> io::Result<()> {
        if route(number, msi).is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = self.state.lock();
        if state.messages.get(&number) == Some(&Some(msi)) {
            return Ok(());
        }
        state.messages.insert(number, Some(msi));
        self.publish(&state).map_err(io::Error::other)
    }

    /// The next change takes the route itself away; nothing uses it any more.
    fn free(&self, number: u32) {
        self.state.lock().messages.remove(&number);
    }
}

/// The IOAPIC's part.
impl RoutingTable for Arc<Routing> {
    fn replace(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), String> {
        let mut state = self.state.lock();
        state.pins = routes.to_vec();
        self.publish(&state)
    }
}

/// Who connects events with routes: KVM.
pub(crate) trait EventRoutes: Send + Sync {
    /// From now on, signals of `event` take the route.
    fn connect(&self, event: &EventFd, number: u32) -> io::Result<()>;
    /// On return, none of them does any more.
    fn disconnect(&self, event: &EventFd, number: u32) -> io::Result<()>;
}

impl EventRoutes for Arc<kvm_ioctls::VmFd> {
    fn connect(&self, event: &EventFd, number: u32) -> io::Result<()> {
        Ok(self.register_irqfd(event, number)?)
    }

    fn disconnect(&self, event: &EventFd, number: u32) -> io::Result<()> {
        Ok(self.unregister_irqfd(event, number)?)
    }
}

/// Ways from events into the guest that KVM itself takes.
pub(crate) struct KvmShortcuts {
    routing: Arc<Routing>,
    events: Arc<dyn EventRoutes>,
}

impl KvmShortcuts {
    /// Ways by routes of this table.
    pub(crate) fn new(routing: Arc<Routing>, events: impl EventRoutes + 'static) -> Self {
        Self { routing, events: Arc::new(events) }
    }
}

impl InterruptShortcuts for KvmShortcuts {
    fn shortcut(&self, event: &EventFd) -> io::Result<Box<dyn Shortcut>> {
        let event = event.try_clone()?;
        let number = self.routing.allocate().ok_or(io::ErrorKind::QuotaExceeded)?;
        let (routing, events) = (self.routing.clone(), self.events.clone());
        Ok(Box::new(KvmShortcut { number, event, connected: Mutex::new(false), routing, events }))
    }
}

struct KvmShortcut {
    number: u32,
    event: EventFd,
    connected: Mutex<bool>,
    routing: Arc<Routing>,
    events: Arc<dyn EventRoutes>,
}

impl KvmShortcut {
    fn disconnect(&self, connected: &mut bool) -> io::Result<()> {
        if std::mem::take(connected) { self.events.disconnect(&self.event, self.number) } else { Ok(()) }
    }
}

impl Shortcut for KvmShortcut {
    fn lead(&self, msi: Option<Msi>) -> io::Result<()> {
        let mut connected = self.connected.lock();
        let Some(msi) = msi else { return self.disconnect(&mut connected) };
        if let Err(error) = self.routing.set(self.number, msi) {
            // Not as before, then not at all.
            self.disconnect(&mut connected)?;
            return Err(error);
        }
        if !*connected {
            self.events.connect(&self.event, self.number)?;
            *connected = true;
        }
        Ok(())
    }
}

impl Drop for KvmShortcut {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect(&mut self.connected.lock()) {
            log::debug!("an interrupt's event stays connected: {error}");
        }
        self.routing.free(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Default)]
    struct Notes {
        tables: Mutex<Vec<Vec<u32>>>,
        events: Mutex<Vec<String>>,
        refuse: Mutex<bool>,
    }

    impl RoutingTable for Arc<Notes> {
        fn replace(&self, routes: &[kvm_irq_routing_entry]) -> Result<(), String> {
            if *self.refuse.lock() {
                return Err("refused".into());
            }
            self.tables.lock().push(routes.iter().map(|route| route.gsi).collect());
            Ok(())
        }
    }

    impl EventRoutes for Arc<Notes> {
        fn connect(&self, _: &EventFd, number: u32) -> io::Result<()> {
            self.events.lock().push(format!("+{number}"));
            Ok(())
        }
        fn disconnect(&self, _: &EventFd, number: u32) -> io::Result<()> {
            self.events.lock().push(format!("-{number}"));
            Ok(())
        }
    }

    const MSI: Msi = Msi { address: 0xfee0_1000, data: 0x31 };

    fn pin(gsi: u32) -> kvm_irq_routing_entry {
        kvm_irq_routing_entry { gsi, ..Default::default() }
    }

    #[test]
    fn pins_and_messages_share_the_table() {
        let notes = Arc::new(Notes::default());
        let routing = Routing::new(notes.clone());
        let shortcuts = KvmShortcuts::new(routing.clone(), notes.clone());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let first = u32::from(gsi::PINS);
        let (a, b) = (shortcuts.shortcut(&event).unwrap(), shortcuts.shortcut(&event).unwrap());
        assert_eq!(*notes.tables.lock(), Vec::<Vec<u32>>::new(), "none leads anywhere");
        a.lead(Some(MSI)).unwrap();
        routing.replace(&[pin(4)]).unwrap();
        b.lead(Some(MSI)).unwrap();
        b.lead(Some(MSI)).unwrap();
        let other = Msi { data: 0x32, ..MSI };
        a.lead(Some(other)).unwrap();
        let both = vec![4, first, first + 1];
        assert_eq!(*notes.tables.lock(), [vec![first], vec![4, first], both.clone(), both]);
        a.lead(None).unwrap();
        a.lead(None).unwrap();
        drop(a);
        drop(b);
        let expected =
            [format!("+{first}"), format!("+{}", first + 1), format!("-{first}"), format!("-{}", first + 1)];
        assert_eq!(*notes.events.lock(), expected);
        routing.replace(&[]).unwrap();
        assert_eq!(notes.tables.lock().last(), Some(&vec![]));
    }

    #[test]
    fn a_way_that_cannot_be_changed_ends() {
        let notes = Arc::new(Notes::default());
        let shortcuts = KvmShortcuts::new(Routing::new(notes.clone()), notes.clone());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let way = shortcuts.shortcut(&event).unwrap();
        let number = gsi::PINS;
        assert!(way.lead(Some(Msi { address: 0x1000, data: 0 })).is_err(), "no interrupt");
        way.lead(Some(MSI)).unwrap();
        *notes.refuse.lock() = true;
        assert!(way.lead(Some(Msi { data: 0x99, ..MSI })).is_err());
        assert_eq!(*notes.events.lock(), [format!("+{number}"), format!("-{number}")]);
    }

    /// What a host's KVM says to routes and events.
    #[test]
    fn kvm_takes_what_is_signalled_while_a_way_is_open() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("skipped: no KVM");
            return;
        };
        let ram = crate::memory::allocate(2 << 20).unwrap();
        let vm = crate::kvm::vm::Vm::new(&kvm, ram).unwrap();
        let shortcuts = KvmShortcuts::new(Routing::new(vm.fd().clone()), vm.fd().clone());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let way = shortcuts.shortcut(&event).unwrap();
        let taken = || {
            event.write(1).unwrap();
            (0..200).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                let left = event.read().is_ok();
                if left {
                    event.write(1).unwrap();
                }
                !left
            })
        };
        event.write(1).unwrap();
        assert!(event.read().is_ok(), "nobody takes it");
        way.lead(Some(MSI)).unwrap();
        assert!(taken());
        way.lead(Some(Msi { data: 0x32, ..MSI })).unwrap();
        assert!(taken());
        way.lead(None).unwrap();
        event.write(1).unwrap();
        assert!(event.read().is_ok(), "nobody takes it any more");
        way.lead(Some(MSI)).unwrap();
        drop(way);
        event.write(1).unwrap();
        assert!(event.read().is_ok());
    }

    #[test]
    fn there_are_as_many_as_kvm_has() {
        let notes = Arc::new(Notes::default());
        let routing = Routing::new(notes);
        let numbers: Vec<_> = std::iter::from_fn(|| routing.allocate()).collect();
        assert_eq!((numbers.len(), numbers.last()), (4096 - usize::from(gsi::PINS), Some(&4095)));
        routing.free(100);
        assert_eq!(routing.allocate(), Some(100));
    }
}
