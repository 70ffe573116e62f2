//! Tables in memory.

use crate::oracle::Image;
use crate::scenario::{Damage, Tables};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGES: u64 = 18;

/// Where the second stage maps memory from address 0 on, so that first-stage tables can be found.
const BIAS: u64 = 0x20_0000_0000;
/// First-stage table of level 1; the others lie below it, level 5 first.
const FIRST: u64 = 10;
/// Second-stage table of level 1.
const SECOND: u64 = 15;
/// Second-stage tables of levels 2 and 1 under the first stage's tables.
const UNDER: [u64; 2] = [17, 16];

/// Address of a page.
const fn page_at(number: u64) -> u64 {
    number * PAGE
}

/// Page 0 root, 1 and 2 context tables, 3 directory, 4 and 5 PASID tables, 6 to 10 the first-stage tables of levels
/// 5 to 1, 11 to 15 those of the second stage, 16 and 17 those through which the first stage's tables are found.
pub(crate) struct Laid {
    pub(crate) image: Image,
    /// The words that were written.
    path: Vec<usize>,
}

impl Laid {
    pub(crate) fn new(tables: &Tables) -> Self {
        let image = Image(vec![0; usize::try_from(PAGES * PAGE / 8).unwrap()]);
        let mut laid = Self { image, path: Vec::new() };
        if tables.legacy {
            laid.legacy(tables)
        } else {
            laid.scalable(tables)
        }
        laid.first_stage(tables);
        laid.second_stage(tables);
        for &(which, how) in &tables.damage {
            laid.spoil(which, how);
        }
        laid
    }

    /// Spoils a word of those that matter; tells where it lies, and what it is now.
    pub(crate) fn spoil(&mut self, which: usize, how: Damage) -> (u64, u64) {
        let index = self.path[which % self.path.len()];
        let word = &mut self.image.0[index];
        *word = how.apply(*word);
        (index as u64 * 8, *word)
    }

    /// The words that matter.
    pub(crate) fn path(&self) -> &[usize] {
        &self.path
    }

    fn put(&mut self, at: u64, word: u64) {
        let index = usize::try_from(at / 8).unwrap();
        self.path.push(index);
        if at >= (FIRST - 4) * PAGE {
            // Paging entries are spoiled more often than what leads to them.
            self.path.push(index);
        }
        self.image.0[index] = word;
    }

    fn legacy(&mut self, tables: &Tables) {
        self.put(0, PAGE | 1);
        let low = second_root(tables.aw) | tables.tt << 2 | u64::from(tables.context[3]) << 1 | 1;
        self.put(PAGE + 0x18 * 16, low);
        self.put(PAGE + 0x18 * 16 + 8, u64::from(tables.domain) << 8 | tables.aw);
    }

    fn scalable(&mut self, tables: &Tables) {
        self.put(0, PAGE | 1);
        self.put(8, page_at(2) | 1);
        let [dte, paside, pre, fpd, eptr] = tables.context.map(u64::from);
        let low =
            page_at(3) | tables.pdts << 9 | eptr << 6 | pre << 4 | paside << 3 | dte << 2 | fpd << 1 | 1;
        let context = [low, u64::from(tables.rid_pasid) | u64::from(tables.rid_priv) << 20, 0, 0];
        for page in [1, 2] {
            for (word, value) in (0..).zip(context) {
                self.put(page * PAGE + 0x18 * 32 + word * 8, value);
            }
        }
        for (index, page) in [(0, 4), (1, 5)] {
            self.put(3 * PAGE + index * 8, page_at(page) | u64::from(tables.fpd[0]) << 1 | 1);
        }
        let [pwsnp, pgsnp, sre, wpe, eafe, ssade] = tables.entry.map(u64::from);
        let first = page_at(if tables.five_level { FIRST - 4 } else { FIRST - 3 });
        let first = if tables.pgtt == 3 { first + BIAS } else { first };
        let entry = [
            second_root(tables.aw)
                | ssade << 9
                | tables.pgtt << 6
                | tables.aw << 2
                | u64::from(tables.fpd[1]) << 1
                | 1,
            u64::from(tables.domain) | pwsnp << 23 | pgsnp << 24,
            first | u64::from(tables.five_level) << 2 | sre | wpe << 4 | eafe << 7,
        ];
        for index in [5, 0, 63] {
            for (word, value) in (0..).zip(entry) {
                self.put(4 * PAGE + index * 64 + word * 8, value);
            }
        }
    }

    fn first_stage(&mut self, tables: &Tables) {
        let (bias, output) = if tables.pgtt == 3 { (BIAS, tables.middle) } else { (0, tables.output) };
        let leaf = tables.first.leaf_level;
        for level in leaf..=5 {
            let target = if level > leaf {
                (FIRST + 2 - level) * PAGE + bias
            } else {
                aligned(output, level) | u64::from(level > 1) << 7
            };
            let flags = tables.first.flags[usize::try_from(level - 1).unwrap()];
            self.put((FIRST + 1 - level) * PAGE + index(tables.input, level), target | flags);
        }
    }

    /// One chain of tables leads to the page; from level 3 on another one leads to the first stage's tables.
    fn second_stage(&mut self, tables: &Tables) {
        // What the first stage makes of its page's base.
        let address =
            if tables.pgtt == 3 { aligned(tables.middle, tables.first.leaf_level) } else { tables.middle };
        let leaf = tables.second.leaf_level;
        for level in leaf..=5 {
            let target = if level > leaf {
                (SECOND + 2 - level) * PAGE
            } else {
                aligned(tables.output, level) | u64::from(level > 1) << 7
            };
            let flags = tables.second.flags[usize::try_from(level - 1).unwrap()];
            self.put((SECOND + 1 - level) * PAGE + index(address, level), target | flags);
        }
        if tables.pgtt == 3 && !tables.legacy {
            self.under(tables);
        }
    }

    fn under(&mut self, tables: &Tables) {
        let flags = |level: u64| tables.under[usize::try_from(level - 1).unwrap()];
        let leaf = tables.under_level;
        let level3 = (SECOND - 2) * PAGE + index(BIAS, 3);
        let level2 = UNDER[1] * PAGE + index(BIAS, 2);
        // Readable and writable for the most part: else nothing would ever get past the tables.
        let open = tables.under[4] | 3;
        if leaf == 3 {
            return self.put(level3, open | 0x80);
        }
        self.put(level3, page_at(UNDER[1]) | open & !(1 << 11));
        if leaf == 2 {
            return self.put(level2, open | 0x80);
        }
        self.put(level2, page_at(UNDER[0]) | open & !(1 << 11));
        for level in 1..=5 {
            let table = (FIRST + 1 - level) * PAGE;
            self.put(UNDER[0] * PAGE + index(BIAS + table, 1), table | flags(level));
        }
    }
}

fn second_root(aw: u64) -> u64 {
    let levels = (aw + 2).clamp(1, 5);
    (SECOND + 1 - levels) * PAGE
}

fn aligned(address: u64, level: u64) -> u64 {
    let shift = 12 + 9 * (level - 1);
    address >> shift << shift
}

fn index(address: u64, level: u64) -> u64 {
    (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
}
