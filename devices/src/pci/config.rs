//! Configuration space as bytes: what reads return, which bits can be written, which are cleared by ones.
//!
//! Knows no register. Meaning and side effects are [`super::base`]'s.

use super::spec::{CONFIG_SIZE, Command, header};

/// 4 KiB of configuration space. Bits without a write mask are read-only.
#[derive(Clone)]
pub struct ConfigSpace {
    value: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
    /// Write one to clear. Wins over `writable`.
    w1c: Box<[u8; CONFIG_SIZE]>,
}

impl Default for ConfigSpace {
    fn default() -> Self {
        let zeros = || Box::new([0; CONFIG_SIZE]);
        Self { value: zeros(), writable: zeros(), w1c: zeros() }
    }
}

impl ConfigSpace {
    /// Reads as the guest does. Bytes beyond the space read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.value.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes as the guest does, under the masks. Bytes beyond the space are dropped.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..CONFIG_SIZE).zip(data) {
            let (w1c, writable) = (self.w1c[at], self.writable[at]);
            let kept = self.value[at] & !(byte & w1c);
            let writable = writable & !w1c;
            self.value[at] = kept & !writable | byte & writable;
        }
    }

    /// Whether `len` bytes at `offset` share a byte with a write of `data_len` bytes at `written`.
    #[must_use]
    pub fn touches(written: u16, data_len: usize, offset: u16, len: u16) -> bool {
        let (written, offset) = (usize::from(written), usize::from(offset));
        written < offset + usize::from(len) && offset < written.saturating_add(data_len)
    }

    /// The byte at `offset`; 0 beyond the space.
    #[must_use]
    pub fn u8(&self, offset: u16) -> u8 {
        self.bytes::<1>(offset)[0]
    }

    /// The 16 bits at `offset`, little-endian; 0 beyond the space.
    #[must_use]
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    /// The 32 bits at `offset`, little-endian; 0 beyond the space.
    #[must_use]
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    /// Sets bytes whatever the masks. What lies beyond the space is dropped.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        fill(&mut self.value, offset, bytes);
    }

    /// Makes bits writable: ones in `mask`. Replaces the mask of these bytes.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        fill(&mut self.writable, offset, mask);
    }

    /// Makes writable what every function has of a header: the switches of its command register but that of I/O ports,
    /// which no function here has, and the bytes that mean nothing to it.
    pub fn open_header(&mut self) {
        let command = Command::DEFAULT
            .with_memory_space(true)
            .with_bus_master(true)
            .with_parity_error_response(true)
            .with_serr(true)
            .with_interrupt_disable(true);
        self.set_writable(header::COMMAND, &command.raw_value().to_le_bytes());
        self.set_writable(header::CACHE_LINE, &[0xff]);
        self.set_writable(header::INTERRUPT_LINE, &[0xff]);
    }

    /// Makes bits write-one-to-clear: ones in `mask`. Replaces the mask of these bytes.
    pub fn set_w1c(&mut self, offset: u16, mask: &[u8]) {
        fill(&mut self.w1c, offset, mask);
    }

    fn bytes<const N: usize>(&self, offset: u16) -> [u8; N] {
        let start = usize::from(offset);
        self.value.get(start..start + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }
}

fn fill(space: &mut [u8; CONFIG_SIZE], offset: u16, bytes: &[u8]) {
    for (slot, &byte) in space.iter_mut().skip(usize::from(offset)).zip(bytes) {
        *slot = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_decide_what_a_write_does() {
        // (name, value, writable, w1c, written, expected)
        let rows: [(&str, u8, u8, u8, u8, u8); 6] = [
            ("read-only stays", 0x5a, 0x00, 0x00, 0xff, 0x5a),
            ("writable takes", 0x5a, 0xff, 0x00, 0xa5, 0xa5),
            ("half writable", 0x5a, 0x0f, 0x00, 0xa5, 0x55),
            ("one clears", 0xff, 0x00, 0xf0, 0x30, 0xcf),
            ("one does not set", 0x00, 0x00, 0xff, 0xff, 0x00),
            ("clearing wins over writing", 0xff, 0xff, 0x0f, 0x01, 0x0e),
        ];
        for (name, value, writable, w1c, written, expected) in rows {
            let mut space = ConfigSpace::default();
            space.set(0x7, &[value]);
            space.set_writable(0x7, &[writable]);
            space.set_w1c(0x7, &[w1c]);
            space.write(0x7, &[written]);
            assert_eq!(space.u8(0x7), expected, "{name}");
        }
    }

    #[test]
    fn accesses_at_the_end_are_cut() {
        let mut space = ConfigSpace::default();
        space.set_writable(0xffc, &[0xff; 4]);
        space.write(0xffe, &[1, 2, 3, 4]);
        assert_eq!(space.u16(0xffe), 0x0201);
        let mut data = [0; 4];
        space.read(0xffe, &mut data);
        assert_eq!(data, [1, 2, 0xff, 0xff]);
        assert_eq!((space.u32(0xffe), space.u8(u16::MAX)), (0, 0));
        space.set(0xfff, &[9, 9]);
        assert_eq!(space.u8(0xfff), 9);
    }

    proptest! {
        /// A wide write is the same as its bytes one by one, and no read-only bit ever changes.
        #[test]
        fn width_does_not_matter(offset in 0u16..4100, data in prop::collection::vec(any::<u8>(), 0..9),
                                 seed in any::<u8>()) {
            let mut wide = ConfigSpace::default();
            for at in 0..4096u16 {
                let byte = at.to_le_bytes()[0] ^ seed;
                wide.set(at, &[byte]);
                wide.set_writable(at, &[byte.rotate_left(3)]);
                wide.set_w1c(at, &[byte.reverse_bits() & 0x55]);
            }
            let before = wide.clone();
            let mut narrow = wide.clone();
            wide.write(offset, &data);
            for (i, byte) in data.iter().enumerate() {
                narrow.write(offset + u16::try_from(i).unwrap(), &[*byte]);
            }
            prop_assert_eq!(&wide.value[..], &narrow.value[..]);
            for at in 0..4096 {
                let changed = wide.value[at] ^ before.value[at];
                prop_assert_eq!(changed & !(before.writable[at] | before.w1c[at]), 0);
            }
        }
    }
}
