//! For tests: what is at guest-physical addresses that are no RAM. A function's DMA reaches RAM and nothing else; whatever
//! else its address leads to, the request is unsupported, and each kind of function tells it in its own way.

/// (name, page). That of an address map as svmm's; the memory of tests ends long before.
pub(crate) const NO_MEMORY: [(&str, u64); 9] = [
    ("nothing, behind low RAM", 0xbfff_f000),
    ("the BAR of a function", 0xc000_0000),
    ("configuration space", 0xe000_0000),
    ("the IOAPIC", 0xfec0_0000),
    ("the registers of a unit", 0xfed9_0000),
    ("the registers of a DMA engine", 0xfeda_0000),
    ("the interrupt range", 0xfee0_0000),
    ("nothing, behind high RAM", 0x40_0000_0000),
    ("the top", 0xffff_ffff_ffff_f000),
];
