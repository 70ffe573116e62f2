//! Interrupt messages by tables in which anything may stand, while commands and invalidations come.
#![no_main]

use arbitrary::Arbitrary;
use iommu_core::testkit::RecordingMsi;
use iommu_core::{InterruptRemapper, Msi, SourceId};
use iommu_vtd_fuzz::{Bench, LAYOUT};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Message {
    /// In remappable format, by an index that is in the table or near.
    Index {
        index: u16,
        subhandle: Option<u16>,
    },
    Compatibility {
        destination: u8,
        data: u32,
    },
    Any {
        address: u32,
        data: u32,
    },
    /// No interrupt at all.
    Memory {
        address: u64,
        data: u32,
    },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Deliver {
        message: Message,
        source: u16,
    },
    Resolve {
        message: Message,
        source: u16,
    },
    Entry {
        index: u8,
        words: [u64; 2],
    },
    Flip {
        index: u8,
        bit: u8,
    },
    /// A word of the posted-interrupt descriptor.
    Posted {
        word: u8,
        value: u64,
    },
    Table {
        page: u8,
        size: u8,
        extended: bool,
    },
    TableAt(u64),
    Command(u32),
    /// Remapping and compatibility format, on or off.
    Levels {
        remap: bool,
        compatibility: bool,
    },
    Invalidate {
        index: u16,
        mask: u8,
        all: bool,
    },
}

const TES: u32 = 1 << 31;
const QIES: u32 = 1 << 26;
const IRES: u32 = 1 << 25;

impl Message {
    fn get(&self) -> Msi {
        match *self {
            Self::Index { index, subhandle } => {
                let (low, high) = (u64::from(index & 0x7fff) << 5, u64::from(index >> 15) << 2);
                let shv = u64::from(subhandle.is_some()) << 3;
                Msi { address: 0xfee0_0010 | low | high | shv, data: subhandle.unwrap_or(0).into() }
            }
            Self::Compatibility { destination, data } => {
                Msi { address: 0xfee0_0000 | u64::from(destination) << 12, data }
            }
            Self::Any { address, data } => Msi { address: 0xfee0_0000 | u64::from(address & 0xf_ffff), data },
            Self::Memory { address, data } => Msi { address, data },
        }
    }
}

fn source_of(source: u16) -> SourceId {
    if source < 0x100 { LAYOUT.source } else { SourceId(source) }
}

/// What is sent, and that it fits what [`InterruptRemapper::resolve`] says.
fn deliver(bench: &Bench, msi: Msi, source: SourceId) {
    let resolved = bench.unit.resolve(source, msi);
    let sink = RecordingMsi::default();
    bench.unit.deliver(source, msi, &sink);
    let sent = sink.sent.lock();
    assert!(sent.len() <= 1, "{msi:x?} became {sent:x?}");
    if let Some(resolved) = resolved {
        assert_eq!(sent.first().map(|(_, msi)| *msi), Some(resolved), "{msi:x?}");
    }
    for (_, out) in sent.iter() {
        assert_eq!(out.address >> 20 & 0xfff, 0xfee, "{out:x?} is no interrupt");
        if bench.read32(0x1c) & IRES == 0 {
            assert_eq!(*out, msi, "changed though remapping is off");
        }
    }
}

fn take(bench: &Bench, step: &Step) {
    let levels = bench.read32(0x1c) & (TES | QIES);
    match step {
        Step::Deliver { message, source } => deliver(bench, message.get(), source_of(*source)),
        Step::Resolve { message, source } => drop(bench.unit.resolve(source_of(*source), message.get())),
        Step::Entry { index, words } => {
            for (word, value) in words.iter().enumerate() {
                bench.poke(LAYOUT.interrupts + 16 * u64::from(*index) + 8 * word as u64, *value);
            }
        }
        Step::Flip { index, bit } => {
            let at = LAYOUT.interrupts + 16 * u64::from(*index) + u64::from(bit / 64 % 2) * 8;
            bench.poke(at, bench.word(at) ^ 1 << (bit % 64));
        }
        Step::Posted { word, value } => bench.poke(LAYOUT.posted + 8 * u64::from(word % 8), *value),
        Step::Table { page, size, extended } => {
            let register = u64::from(page % 32) << 12 | u64::from(*extended) << 11 | u64::from(size % 16);
            bench.write64(0xb8, register);
            bench.write32(0x18, bench.read32(0x1c) & 0x8680_0000 | 1 << 24);
        }
        Step::TableAt(register) => {
            bench.write64(0xb8, *register);
            bench.write32(0x18, bench.read32(0x1c) & 0x8680_0000 | 1 << 24);
        }
        Step::Command(command) => bench.write32(0x18, *command),
        Step::Levels { remap, compatibility } => {
            bench.write32(0x18, levels | u32::from(*remap) << 25 | u32::from(*compatibility) << 23);
        }
        Step::Invalidate { index, mask, all } => {
            let low = u64::from(*index) << 32 | u64::from(mask % 32) << 27 | u64::from(!all) << 4 | 4;
            let tail = bench.read64(0x88) % 4096 & !31;
            for (word, value) in [low, 0, 0, 0].into_iter().enumerate() {
                bench.poke(LAYOUT.ring + tail + 8 * word as u64, value);
            }
            bench.write64(0x88, (tail + 32) % 4096);
            bench.write32(0x34, 0x10);
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let bench = Bench::new();
    bench.memory_posts();
    for step in steps.iter().take(64) {
        take(&bench, step);
    }
});
