//! An independent, naive model of scalable-mode translation with a first stage.
//!
//! Written from the manual's rules alone: structures are strings of bits addressed by the manual's positions,
//! every check stands where the manual lists it, and nothing is shared with the crate.

mod first_stage;

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
}

/// Memory from address 0 on, in 64-bit words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Image(pub(crate) Vec<u64>);

impl Image {
    fn word(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0, "all structures are aligned");
        self.0.get(usize::try_from(address / 8).unwrap()).copied()
    }
    fn set(&mut self, address: u64, word: u64) {
        self.0[usize::try_from(address / 8).unwrap()] = word;
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

/// Names of the conditions, as (code, qualified, translation request, translated request).
/// 'U' UR, 'A' CA, '0' empty, 'R' empty and recorded.
fn row(code: u8) -> (bool, char, char) {
    match code {
        0x03 => (true, 'A', 'U'),
        0x29 => (false, '-', '-'),
        0x30 => (false, 'A', 'U'),
        0x31 | 0x33 => (false, 'U', 'U'),
        0x38 | 0x3a | 0x40 => (false, 'A', 'U'),
        0x39 => (false, 'U', 'U'),
        0x41 | 0x44 | 0x46 | 0x48 | 0x89 => (true, 'U', 'U'),
        0x42 | 0x43 | 0x87 => (true, 'A', 'U'),
        0x45 => (true, 'U', '-'),
        0x50 | 0x58 => (false, 'A', 'A'),
        0x51 | 0x59 => (true, '0', 'U'),
        0x52 | 0x5a | 0x5b => (true, 'A', 'A'),
        0x5c | 0x5d | 0x70..=0x73 | 0x80 | 0x81 | 0x85 | 0x90 => (true, '0', '-'),
        0x83 => (true, '0', 'U'),
        0x91 => (true, 'R', '-'),
        _ => panic!("no row for {code:#x}"),
    }
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
    if request.at == AddressType::Translated && request.pasid.is_some() {
        return Outcome::UnsupportedRequest(None, false);
    }
    if !regs.enabled && request.at != AddressType::Untranslated {
        return Outcome::UnsupportedRequest(None, false);
    }
    match judge(regs, memory, request) {
        Ok(outcome) => outcome,
        Err(Failed(code, fpd)) => {
            let (qualified, translation, translated) = row(code);
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
    let identity_bits = if regs.cap(56) { 30 } else { 21 };
    if !regs.enabled {
        let bits = largest_clear(address, identity_bits);
        return Ok(Outcome::Page { output: address, bits, read: true, write: true, domain: None });
    }
    table_mode(regs, if prefix.is_some() { 0x31 } else { 0x03 })?;
    let pss_bits = (regs.ecap >> 35 & 31) + 1;
    let context = context(regs, memory, request.source);
    if prefix.is_some_and(|pasid| u64::from(pasid) >= 1 << pss_bits) {
        // Decided before any table is read; whether it is recorded is up to the context entry, if there is one.
        return Err(Failed(0x89, context.map_or_else(|Failed(_, fpd)| fpd, |c| c.bit(1))));
    }
    let context = context?;
    let fpd = context.bit(1);
    if !untranslated && !context.bit(2) {
        return Err(Failed(0x44, fpd));
    }
    check_prefix(&context, prefix)?;
    if request.at == AddressType::Translated {
        return pass_through(regs, request, identity_bits, None).map_err(|code| Failed(code, fpd));
    }
    if let AddressType::Translation { nw } = request.at
        && prefix.is_none()
        && interrupt_range(address)
    {
        let waived = nw && regs.ecap(33);
        return Ok(if waived { Outcome::Empty } else { Outcome::UntranslatedOnly { write: true } });
    }
    let pasid = prefix.map_or(context.field(83, 64), u64::from);
    let privileged = if prefix.is_some() { request.pr } else { context.bit(84) };

    let entry = pasid_entry(regs, memory, &context, pasid)?;
    let Entry { bits: entry, fpd } = entry;
    let fail = |code| Failed(code, fpd);
    if prefix.is_some() && request.er {
        return Err(fail(0x5c));
    }
    if privileged && !entry.bit(128) {
        return Err(fail(0x5d));
    }
    let domain = u16::try_from(entry.field(79, 64)).unwrap();
    match entry.field(8, 6) {
        0b100 => pass_through(regs, request, identity_bits, Some(domain)).map_err(fail),
        0b001 => first_stage::translate(regs, memory, &entry, request, privileged).map_err(fail),
        _ => unreachable!("checked with the entry"),
    }
}

/// Whether the tables are those of scalable mode; `legacy` is the fault if they are the older ones.
fn table_mode(regs: &Registers, legacy: u8) -> Result<(), Failed> {
    match regs.rtaddr >> 10 & 3 {
        0b00 => Err(Failed(legacy, false)),
        0b01 if regs.ecap(43) => Ok(()),
        0b11 if regs.ecap(52) => Err(Failed(0x33, false)),
        _ => Err(Failed(0x30, false)),
    }
}

/// Whether the context entry serves this PASID.
fn check_prefix(context: &Bits, prefix: Option<u32>) -> Result<(), Failed> {
    let fpd = context.bit(1);
    let Some(pasid) = prefix.map(u64::from) else { return Ok(()) };
    if !context.bit(3) {
        return Err(Failed(0x45, fpd));
    }
    if pasid >= 1 << (context.field(11, 9) + 13) {
        return Err(Failed(0x46, fpd));
    }
    if pasid == context.field(83, 64) {
        return Err(Failed(0x48, fpd));
    }
    Ok(())
}

fn context(regs: &Registers, memory: &Image, source: u16) -> Result<Bits, Failed> {
    let (bus, devfn) = (u64::from(source >> 8), source & 0xff);
    let root = (regs.rtaddr >> 12 << 12) + 16 * bus;
    let root = memory.structure(root + if devfn < 0x80 { 0 } else { 8 }, 1).ok_or(Failed(0x38, false))?;
    if !root.bit(0) {
        return Err(Failed(0x39, false));
    }
    if root.any(11, 1) || root.any(63, regs.haw) {
        return Err(Failed(0x3a, false));
    }
    let at = (root.field(63, 12) << 12) + u64::from(devfn & 0x7f) * 32;
    let context = memory.structure(at, 4).ok_or(Failed(0x40, false))?;
    let fpd = context.bit(1);
    if !context.bit(0) {
        return Err(Failed(0x41, fpd));
    }
    let reserved = [
        context.bit(2) && !regs.ecap(2),
        context.bit(3) && !regs.ecap(40),
        context.bit(4) && !regs.ecap(29),
        context.any(6, 5),
        context.any(8, 7),
        context.any(63, regs.haw),
        context.any(83, 64) && !regs.ecap(49),
        context.bit(84) && !regs.ecap(53),
        context.any(255, 85),
    ];
    if reserved.contains(&true) {
        return Err(Failed(0x42, fpd));
    }
    if context.bit(4) && !context.bit(2) || context.field(83, 64) >= 1 << (context.field(11, 9) + 13) {
        return Err(Failed(0x43, fpd));
    }
    Ok(context)
}

struct Entry {
    bits: Bits,
    fpd: bool,
}

fn pasid_entry(regs: &Registers, memory: &Image, context: &Bits, pasid: u64) -> Result<Entry, Failed> {
    let mut fpd = context.bit(1);
    let at = (context.field(63, 12) << 12) + (pasid >> 6) * 8;
    let directory = memory.structure(at, 1).ok_or(Failed(0x50, fpd))?;
    fpd |= directory.bit(1);
    if !directory.bit(0) {
        return Err(Failed(0x51, fpd));
    }
    if directory.any(11, 2) || directory.any(63, regs.haw) {
        return Err(Failed(0x52, fpd));
    }
    let at = (directory.field(63, 12) << 12) + (pasid & 0x3f) * 64;
    let bits = memory.structure(at, 8).ok_or(Failed(0x58, fpd))?;
    fpd |= bits.bit(1);
    if !bits.bit(0) {
        return Err(Failed(0x59, fpd));
    }
    let (first, second) = (regs.ecap(47), regs.ecap(46));
    let did_bits = (4 + 2 * u32::try_from(regs.cap & 7).unwrap()).min(16);
    let reserved = [
        bits.bit(5),
        bits.bit(9) && !(second && regs.ecap(45)),
        bits.any(11, 10),
        bits.any(63, 12) && !second,
        bits.any(63, regs.haw),
        did_bits < 16 && bits.any(79, 64 + did_bits),
        bits.any(86, 80),
        bits.bit(87) && !regs.ecap(48),
        bits.bit(88) && !regs.ecap(7),
        bits.any(127, 89),
        bits.bit(128) && !regs.ecap(31),
        bits.bit(129),
        bits.any(132, 130) && !first,
        bits.bit(135) && !regs.ecap(34),
        bits.any(139, 136),
        bits.any(191, 140) && !first,
        bits.any(191, 128 + regs.haw),
        bits.any(511, 192),
    ];
    if reserved.contains(&true) {
        return Err(Failed(0x5a, fpd));
    }
    let levels_supported = match bits.field(131, 130) {
        0 => true,
        1 => regs.cap(60),
        _ => false,
    };
    let supported = match bits.field(8, 6) {
        0b001 => first && levels_supported,
        0b100 => regs.ecap(6),
        _ => false,
    };
    if supported { Ok(Entry { bits, fpd }) } else { Err(Failed(0x5b, fpd)) }
}

fn wants_write(regs: &Registers, request: &Request) -> bool {
    match request.at {
        AddressType::Translation { nw } => !(nw && regs.ecap(33)),
        _ => matches!(request.access, Access::Write | Access::Atomic),
    }
}

fn pass_through(
    regs: &Registers,
    request: &Request,
    identity_bits: u32,
    domain: Option<u16>,
) -> Result<Outcome, u8> {
    if request.address >= 1 << regs.haw {
        return Err(0x83);
    }
    if interrupt_range(request.address) {
        return Err(0x87);
    }
    let asks = matches!(request.at, AddressType::Translation { .. });
    let bits = largest_clear(request.address, identity_bits);
    let write = !asks || wants_write(regs, request);
    Ok(Outcome::Page { output: request.address, bits, read: true, write, domain })
}

/// A page request: the domain and PASID whose translations of the page are dropped before it is queued, or the
/// fault code and whether it is recorded. Translation is enabled.
pub(crate) fn page_request(
    regs: &Registers,
    memory: &Image,
    source: u16,
    prefix: Option<u32>,
) -> Result<(u16, u64), (u8, bool)> {
    let checks = || {
        table_mode(regs, 0x32)?;
        let context = context(regs, memory, source)?;
        let fpd = context.bit(1);
        check_prefix(&context, prefix)?;
        if !context.bit(4) {
            return Err(Failed(0x47, fpd));
        }
        let pasid = prefix.map_or(context.field(83, 64), u64::from);
        let entry = pasid_entry(regs, memory, &context, pasid)?;
        Ok((u16::try_from(entry.bits.field(79, 64)).unwrap(), pasid))
    };
    checks().map_err(|Failed(code, fpd)| {
        let qualified = !matches!(code, 0x30 | 0x32 | 0x33 | 0x38..=0x3a | 0x40 | 0x50 | 0x58);
        (code, !(qualified && fpd))
    })
}
