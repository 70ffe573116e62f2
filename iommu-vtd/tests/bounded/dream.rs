//! Memory without end, in which there is a word wherever one looks: made up when it is first read, mostly so that
//! the walk goes on, and checked against what has been read before.

use std::collections::HashMap;
use std::sync::Mutex;

use iommu_core::Gpa;
use iommu_vtd::TableMemory;

/// Random numbers, the same for the same seed.
#[derive(Clone, Copy)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bits of page-table entries that hardware sets: A, D and EA of the first stage, A and D of the second.
const MAINTAINED: u64 = 1 << 5 | 1 << 6 | 1 << 10 | 1 << 8 | 1 << 9;
/// Most entries that one request reads, and reads once more whenever another CPU changes one under it: root,
/// context, directory and PASID entry, and a nested walk of five levels over five.
const MOST_READS: usize = 4 + 5 * 6 + 5;

/// What has been read, and where the next entry may be.
struct Seen {
    dice: Dice,
    words: HashMap<u64, u64>,
    /// Where entries may lie: start and length in bytes.
    named: Vec<(u64, u64)>,
    reads: usize,
    /// How often another CPU came first.
    interruptions: usize,
}

/// The memory.
pub(crate) struct Dream {
    legacy: bool,
    host_bits: u32,
    seen: Mutex<Seen>,
}

impl Dream {
    /// Nothing is named yet but the table at `root`.
    pub(crate) fn new(seed: u64, root: u64, legacy: bool, host_bits: u32) -> Self {
        let seen = Seen {
            dice: Dice(seed),
            words: HashMap::new(),
            named: vec![(root, 4096)],
            reads: 0,
            interruptions: 0,
        };
        Self { legacy, host_bits, seen: Mutex::new(seen) }
    }

    /// Entries read.
    pub(crate) fn reads(&self) -> usize {
        self.seen.lock().unwrap().reads
    }
}

impl Seen {
    /// Where a table lies.
    fn table(&mut self, host_bits: u32) -> u64 {
        let wide = self.dice.below(8) == 0;
        self.dice.roll() & FRAME & ((1 << if wide { host_bits } else { 30 }) - 1)
    }

    /// Words as a driver would write them for the entry that comes next, by the order in which tables are read.
    fn invent(&mut self, words: &mut [u64], legacy: bool, host_bits: u32) {
        for word in words.iter_mut() {
            *word = 0;
        }
        let table = self.table(host_bits);
        let dice = &mut self.dice;
        match (self.reads, legacy) {
            (0, _) => words[0] = table | 1,
            (1, true) => {
                words[0] = table | dice.pick(&[0, 0, 1, 1, 2]) << 2 | 1;
                words[1] = dice.below(0x1_0000) << 8 | dice.pick(&[1, 2, 2, 3]);
            }
            (1, false) => {
                words[0] = table | dice.below(8) << 9 | dice.pick(&[0x1d, 0x1d, 0x1d, 0x0d, 0x05, 0x01]);
                words[1] = dice.pick(&[0, 1, 1 << 20]);
            }
            (2, false) => words[0] = table | 1,
            (3, false) => {
                let kind = dice.pick(&[1, 2, 3, 3, 3, 4]);
                words[0] = table | dice.below(2) << 9 | kind << 6 | dice.pick(&[1, 2, 2, 3]) << 2 | 1;
                words[1] = dice.below(0x1_0000) | 1 << 23;
                words[2] = self.table(host_bits) | self.dice.pick(&[0x00, 0x04, 0x81, 0x11]);
            }
            _ => {
                let large = if dice.below(6) == 0 { 1 << 7 } else { 0 };
                let aligned = if large == 0 { table } else { table & !0x3fff_ffff };
                words[0] =
                    aligned | large | dice.pick(&[0x07, 0x07, 0x07, 0x27, 0x67, 0x167, 0x367, 0x03, 0x01]);
            }
        }
        // Now and then anything.
        if self.dice.below(48) == 0 {
            let index = self.dice.below(words.len() as u64);
            words[usize::try_from(index).unwrap()] ^= 1 << self.dice.below(64);
        }
    }

    /// Checks where an entry is read. Root, context and PASID entries are read once, so their words are one range.
    fn check(&self, gpa: u64, bytes: u64) {
        let inside = |&(start, length): &(u64, u64)| gpa >= start && gpa - start + bytes <= length;
        assert!(
            gpa.is_multiple_of(bytes.next_power_of_two().min(64)),
            "{bytes} bytes at {gpa:#x} are no entry"
        );
        assert!(
            self.named.iter().any(inside),
            "{bytes} bytes at {gpa:#x} lie in no table of {:x?}",
            self.named
        );
    }

    /// Takes down where a word may lead.
    fn name(&mut self, word: u64, legacy: bool) {
        // A PASID directory has 2^(PDTS+7) entries.
        let directory = self.reads == 1 && !legacy;
        let directory_bytes = if directory { 8 << ((word >> 9 & 7) + 7) } else { 4096 };
        self.named.push((word & FRAME, directory_bytes));
        if self.reads > 3 && word & 1 << 7 != 0 {
            // A large page of a second stage, in which tables of a first stage lie.
            self.named.push((word & FRAME & !0x3fff_ffff, 1 << 30));
        }
    }
}

impl TableMemory for Dream {
    type Hint<'a> = ();

    fn load_words_near<const N: usize>(&self, gpa: Gpa, (): &mut ()) -> Option<[u64; N]> {
        let seen = &mut *self.seen.lock().unwrap();
        seen.check(gpa.0, 8 * N as u64);
        // Now and then there is no memory.
        if seen.dice.below(160) == 0 {
            return None;
        }
        let mut words = [0; N];
        seen.invent(&mut words, self.legacy, self.host_bits);
        for (index, word) in words.iter_mut().enumerate() {
            *word = *seen.words.entry(gpa.0 + 8 * index as u64).or_insert(*word);
            seen.name(*word, self.legacy);
        }
        seen.reads += 1;
        let most = MOST_READS * (1 + seen.interruptions);
        assert!(seen.reads <= most, "{} entries where there are no more than {most}", seen.reads);
        Some(words)
    }

    fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let seen = &mut *self.seen.lock().unwrap();
        // Panics if it is not there: only what was read is changed.
        let there = seen.words[&gpa.0];
        assert!(old & !new == 0 && new & !old & !MAINTAINED == 0, "{old:#x} became {new:#x}");
        // Now and then another CPU comes first.
        if seen.dice.below(8) == 0 {
            let other = there ^ seen.dice.pick(&[1 << 5, 1 << 6, 1 << 1, 1]);
            seen.words.insert(gpa.0, other);
            seen.interruptions += 1;
            return Some(Err(other));
        }
        if there != old {
            seen.interruptions += 1;
            return Some(Err(there));
        }
        seen.words.insert(gpa.0, new);
        Some(Ok(old))
    }

    fn read(&self, _: Gpa, _: &mut [u8]) -> bool {
        panic!("a walk reads words");
    }

    fn write(&self, _: Gpa, _: &[u8]) -> bool {
        panic!("a walk writes nothing");
    }
}
