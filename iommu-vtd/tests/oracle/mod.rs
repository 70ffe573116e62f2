//! An independent, naive model of translation: legacy and scalable mode, both stages and their nesting.
//!
//! Written from the manual's rules alone: structures are strings of bits addressed by the manual's positions,
//! every check stands where the manual lists it, and nothing is shared with the crate.

mod conditions;
mod first_stage;
mod legacy;
mod nested;
mod scalable;
mod second_stage;

pub(crate) use scalable::page_request;

/// The registers that matter, as raw values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    pub(crate) haw: u32,
    pub(crate) cap: u64,
    pub(crate) ecap: u64,
    pub(crate) enabled: bool,
    pub(crate) rtaddr: u64,
}

impl Registers {
    fn cap(&self, bit: u32) -> bool {
        self.cap >> bit & 1 == 1
    }
    fn ecap(&self, bit: u32) -> bool {
        self.ecap >> bit & 1 == 1
    }
    /// Size of the largest page of any stage.
    fn identity_bits(&self) -> u32 {
        if self.cap(56) || self.cap(35) { 30 } else { 21 }
    }
    /// Domain-id bits.
    fn domain_bits(&self) -> u32 {
        (4 + 2 * u32::try_from(self.cap & 7).unwrap()).min(16)
    }
    /// Width of a second stage's input for an AW field, if it is supported.
    fn second_width(&self, aw: u64) -> Option<u32> {
        let bits = match aw {
            1 => 39,
            2 => 48,
            3 => 57,
            _ => return None,
        };
        let mgaw = u32::try_from(self.cap >> 16 & 63).unwrap() + 1;
        self.cap(8 + u32::try_from(aw).unwrap()).then_some(bits.min(mgaw))
    }
}

/// Memory from address 0 on, in 64-bit words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Image(pub(crate) Vec<u64>);

impl Image {
    fn word(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0, "all structures are aligned");
        self.0.get(usize::try_from(address / 8).unwrap()).copied()
    }
    /// Sets bits of a word.
    fn mark(&mut self, address: u64, bits: u64) {
        self.0[usize::try_from(address / 8).unwrap()] |= bits;
    }
    /// A structure of `words` words, or `None` if some of it is no memory.
    fn structure(&self, address: u64, words: u64) -> Option<Bits> {
        (0..words).map(|i| self.word(address + 8 * i)).collect::<Option<Vec<_>>>().map(Bits)
    }
}

/// A structure as the manual numbers its bits.
#[derive(Clone, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn bit(&self, position: u32) -> bool {
        self.0[position as usize / 64] >> (position % 64) & 1 == 1
    }
    /// Bits `high:low`, inclusive.
    fn field(&self, high: u32, low: u32) -> u64 {
        (low..=high).rev().fold(0, |value, position| value << 1 | u64::from(self.bit(position)))
    }
    fn any(&self, high: u32, low: u32) -> bool {
        (low..=high).any(|position| self.bit(position))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AddressType {
    Untranslated,
    Translation { nw: bool },
    Translated,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
    ZeroLength,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) source: u16,
    pub(crate) pasid: Option<u32>,
    pub(crate) address: u64,
    pub(crate) access: Access,
    pub(crate) at: AddressType,
    pub(crate) pr: bool,
    pub(crate) er: bool,
}

/// What the device sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Blocked, with the fault code (`None`: there is none), and whether it is recorded.
    UnsupportedRequest(Option<u8>, bool),
    CompleterAbort(Option<u8>, bool),
    EmptyRecorded(Option<u8>, bool),
    /// Success without permission.
    Empty,
    /// Success, but only the untranslated address may be used.
    UntranslatedOnly {
        write: bool,
    },
    /// Success: output, smallest and largest size of the block in bits that may be returned, permissions and
    /// domain (`None`: no table names it).
    Page {
        output: u64,
        bits: u32,
        read: bool,
        write: bool,
        domain: Option<u16>,
    },
}

/// A request that failed: code and FPD so far.
struct Failed(u8, bool);

/// In 0xFEEx_xxxx.
fn interrupt_range(address: u64) -> bool {
    address >> 32 == 0 && address >> 20 & 0xfff == 0xfee
}

/// Whether an aligned block of `2^bits` bytes shares an address with the interrupt range.
fn touches_interrupts(address: u64, bits: u32) -> bool {
    let start = address >> bits << bits;
    let last = start + ((1u64 << bits) - 1);
    start <= 0xfeef_ffff && last >= 0xfee0_0000
}

/// The largest aligned block up to `limit` bits that keeps clear of interrupts.
fn largest_clear(address: u64, limit: u32) -> u32 {
    (12..=limit).rev().find(|&bits| !touches_interrupts(address, bits)).expect("checked before")
}

/// Judges `request`, and leaves accessed and dirty bits in `memory`.
pub(crate) fn translate(regs: &Registers, memory: &mut Image, request: &Request) -> Outcome {
    let translated_pasid = regs.ecap(56) && regs.ecap(2);
    if request.at == AddressType::Translated && request.pasid.is_some() && !translated_pasid {
        return Outcome::UnsupportedRequest(None, false);
    }
    if !regs.enabled && request.at != AddressType::Untranslated {
        return Outcome::UnsupportedRequest(None, false);
    }
    match judge(regs, memory, request) {
        Ok(outcome) => outcome,
        Err(Failed(code, fpd)) => {
            let (qualified, translation, translated) = conditions::row(code);
            let recorded = !(qualified && fpd);
            let column = match request.at {
                AddressType::Untranslated => 'U',
                AddressType::Translation { .. } => translation,
                AddressType::Translated => translated,
            };
            match column {
                'U' => Outcome::UnsupportedRequest(Some(code), recorded),
                'A' => Outcome::CompleterAbort(Some(code), recorded),
                'R' => Outcome::EmptyRecorded(Some(code), recorded),
                '0' => Outcome::Empty,
                _ => panic!("{code:#x} cannot happen to {:?}", request.at),
            }
        }
    }
}

fn judge(regs: &Registers, memory: &mut Image, request: &Request) -> Result<Outcome, Failed> {
    let address = request.address;
    let untranslated = request.at == AddressType::Untranslated;
    // While translation is off the PASID is ignored.
    let prefix = if regs.enabled { request.pasid } else { None };
    if untranslated && prefix.is_none() && interrupt_range(address) {
        return match request.access {
            Access::ZeroLength => Ok(Outcome::UntranslatedOnly { write: false }),
            _ => Err(Failed(0x29, false)),
        };
    }
    if !regs.enabled {
        let bits = largest_clear(address, regs.identity_bits());
        return Ok(Outcome::Page { output: address, bits, read: true, write: true, domain: None });
    }
    match regs.rtaddr >> 10 & 3 {
        0b00 if prefix.is_some() => Err(Failed(0x31, false)),
        0b00 => legacy::judge(regs, memory, request),
        0b01 if regs.ecap(43) => scalable::judge(regs, memory, request),
        0b11 if regs.ecap(52) => Err(Failed(0x33, false)),
        _ => Err(Failed(0x30, false)),
    }
}

/// A translation request without PASID for the interrupt range, if this is one.
fn special_completion(regs: &Registers, request: &Request) -> Option<Outcome> {
    let AddressType::Translation { nw } = request.at else { return None };
    if request.pasid.is_some() || !interrupt_range(request.address) {
        return None;
    }
    let waived = nw && regs.ecap(33);
    Some(if waived { Outcome::Empty } else { Outcome::UntranslatedOnly { write: true } })
}

fn wants_write(regs: &Registers, request: &Request) -> bool {
    match request.at {
        AddressType::Translation { nw } => !(nw && regs.ecap(33)),
        _ => matches!(request.access, Access::Write | Access::Atomic),
    }
}

fn pass_through(regs: &Registers, request: &Request, domain: Option<u16>) -> Result<Outcome, u8> {
    if request.address >= 1 << regs.haw {
        return Err(0x83);
    }
    if interrupt_range(request.address) {
        return Err(0x87);
    }
    let asks = matches!(request.at, AddressType::Translation { .. });
    let bits = largest_clear(request.address, regs.identity_bits());
    let write = !asks || wants_write(regs, request);
    Ok(Outcome::Page { output: request.address, bits, read: true, write, domain })
}

/// What a request needs of a page that allows `(read, write)`, as the fault code; `None` for a translation request
/// that gets nothing.
fn permitted(regs: &Registers, request: &Request, (read, write): (bool, bool)) -> Result<Option<()>, u8> {
    match request.at {
        AddressType::Translation { .. } => {
            let any = read || write && wants_write(regs, request);
            Ok(any.then_some(()))
        }
        _ => match request.access {
            Access::Write | Access::Atomic if !write => Err(0x85),
            Access::Read | Access::Atomic if !read => Err(0x86),
            Access::ZeroLength if !read && !regs.cap(22) => Err(0x86),
            _ => Ok(Some(())),
        },
    }
}

/// A page that a walk found: its address in memory and its size.
#[derive(Clone, Copy)]
struct Page {
    start: u64,
    bits: u32,
}

/// The answer for a page. `rights`: read, and write without asking again.
fn deliver(
    regs: &Registers,
    request: &Request,
    page: Page,
    rights: (bool, bool),
    domain: u64,
) -> Result<Outcome, u8> {
    let output = page.start + (request.address & ((1 << page.bits) - 1));
    let asks = matches!(request.at, AddressType::Translation { .. });
    if interrupt_range(output) || asks && touches_interrupts(page.start, page.bits) {
        return Err(0x87);
    }
    let mut bits = page.bits;
    while touches_interrupts(output, bits)
        || request.pasid.is_none() && touches_interrupts(request.address, bits)
    {
        bits -= 1;
    }
    let (read, write) = (rights.0, rights.1 && (!asks || wants_write(regs, request)));
    if !read && !write {
        return Ok(Outcome::Empty);
    }
    let domain = Some(u16::try_from(domain).unwrap());
    Ok(Outcome::Page { output, bits, read, write, domain })
}
