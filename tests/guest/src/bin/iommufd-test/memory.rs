//! What devices are shown as memory: one mapping of this program's at an address of its own choice, handed out
//! page by page.

use std::cell::Cell;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use guest::model::Random;
use guest::sys::{Mapping, PAGE};

/// A stretch of whole pages of a [`Memory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    /// Where it starts in the mapping, in bytes.
    pub(crate) offset: usize,
    /// What the device calls its first byte, without a first stage.
    pub(crate) address: u64,
    /// How many pages.
    pub(crate) count: usize,
}

impl Pages {
    /// The stretch of one page of it.
    pub(crate) fn page(&self, index: usize) -> Self {
        assert!(index < self.count);
        let offset = index * PAGE;
        Self { offset: self.offset + offset, address: self.address + offset as u64, count: 1 }
    }

    /// Each page of it.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> + use<'_> {
        (0..self.count).map(|index| self.page(index))
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.count * PAGE
    }

    fn bytes(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Memory for devices. What is handed out is never taken back.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    address: u64,
    taken: Cell<usize>,
}

impl Memory {
    /// `pages` present pages of zeros; devices are to find them from `address` on. With `huge`, of huge pages,
    /// if the kernel has any.
    pub(crate) fn new(pages: usize, address: u64, huge: bool) -> Result<Self> {
        const ALIGNMENT: usize = 2 << 20;
        let mapping = Mapping::aligned(pages * PAGE, ALIGNMENT).context("no memory for the device")?;
        if huge {
            mapping.prefer_huge().context("no huge pages")?;
        }
        for page in (0..mapping.len()).step_by(PAGE) {
            mapping.store(page, 0);
        }
        Ok(Self { mapping, address, taken: Cell::new(0) })
    }

    /// The mapping.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Pages of all of it.
    pub(crate) fn pages(&self) -> usize {
        self.mapping.len() / PAGE
    }

    /// Hands out `count` pages that nobody has.
    pub(crate) fn take(&self, count: usize) -> Result<Pages> {
        self.take_aligned(count, 1)
    }

    /// Hands out `count` pages that start at a multiple of `alignment` pages of the device's addresses; the
    /// memory's own start is such a multiple.
    pub(crate) fn take_aligned(&self, count: usize, alignment: usize) -> Result<Pages> {
        let offset = self.taken.get().next_multiple_of(alignment * PAGE);
        ensure!(offset + count * PAGE <= self.mapping.len(), "the case needs more memory than it made");
        self.taken.set(offset + count * PAGE);
        Ok(Pages { offset, address: self.address + offset as u64, count })
    }

    /// The page with this device address.
    pub(crate) fn find(&self, address: u64) -> Result<Pages> {
        let offset = address.checked_sub(self.address).and_then(|offset| usize::try_from(offset).ok());
        let offset = offset.filter(|offset| *offset < self.mapping.len() && offset.is_multiple_of(PAGE));
        let offset = offset.with_context(|| format!("{address:#x} is no page of the memory"))?;
        Ok(Pages { offset, address, count: 1 })
    }

    /// `count` pages of random bytes, and these.
    pub(crate) fn random(&self, count: usize, random: &mut Random) -> Result<(Pages, Vec<u8>)> {
        let pages = self.take(count)?;
        let bytes = random.bytes(pages.len());
        self.write(&pages, &bytes);
        Ok((pages, bytes))
    }

    /// The CPU's view.
    pub(crate) fn read(&self, pages: &Pages) -> Vec<u8> {
        self.mapping.read(pages.bytes())
    }

    /// Stores bytes from the start of `pages` on.
    pub(crate) fn write(&self, pages: &Pages, bytes: &[u8]) {
        assert!(bytes.len() <= pages.len());
        self.mapping.write(pages.offset, bytes);
    }

    /// One 64-bit word.
    pub(crate) fn load(&self, pages: &Pages, index: usize) -> u64 {
        self.mapping.load(pages.offset + index * 8)
    }

    /// Stores one 64-bit word.
    pub(crate) fn store(&self, pages: &Pages, index: usize, value: u64) {
        self.mapping.store(pages.offset + index * 8, value);
    }
}
