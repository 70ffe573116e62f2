//! What can go wrong.

use std::ops::RangeInclusive;

/// One way to misbehave. The number is that of the switchboard's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A device-TLB invalidation completes late.
    LateInvalidation = 0,
    /// The completion of a device-TLB invalidation never comes.
    LostInvalidation = 1,
    /// An invalidated translation goes on being used.
    StaleTranslation = 2,
    /// A page request carries another group index than the function waits for.
    WrongGroup = 3,
    /// A page request is made though all credits are used up.
    ExcessRequest = 4,
    /// Memory is accessed by untranslated requests though ATS is on.
    UntranslatedAccess = 5,
    /// A translated request with an address that nobody translated.
    TranslatedAccess = 6,
    /// A request with a PASID that is not the queue's.
    ForeignPasid = 7,
    /// A read in the interrupt range.
    InterruptRange = 8,
    /// Page requests without end and without credits.
    RequestFlood = 9,
    /// A page group response is ignored.
    IgnoredResponse = 10,
    /// A page request asks for a privileged access.
    PrivilegedRequest = 11,
    /// A page request asks for execution.
    ExecuteRequest = 12,
    /// A page request names an address that is not canonical.
    StrangeAddress = 13,
    /// A page request is not the last of its group, and the last never comes.
    UnfinishedGroup = 14,
    /// The function disappears from the bus.
    SurpriseRemoval = 15,
}

/// What the argument of a kind means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// In a word or two.
    pub meaning: &'static str,
    /// What it may be. Anything else is taken for the nearest end.
    pub range: RangeInclusive<u32>,
    /// Unless it is given.
    pub default: u32,
}

/// A row of the table of kinds: kind, name, what happens, argument.
struct Row(Kind, &'static str, &'static str, Argument);

const NONE: Argument = Argument { meaning: "none", range: 0..=0, default: 0 };

/// Within what a CPU waits for a device-TLB invalidation, in milliseconds: less than the second in which an endpoint
/// has to come back ([`Endpoint`](iommu_core::Endpoint)).
const fn wait(default: u32) -> Argument {
    argument("milliseconds", 0..=900, default)
}

const fn argument(meaning: &'static str, range: RangeInclusive<u32>, default: u32) -> Argument {
    Argument { meaning, range, default }
}

/// All kinds, by number.
const TABLE: [Row; 16] = [
    Row(Kind::LateInvalidation, "late-invalidation", "a device-TLB invalidation completes late", wait(50)),
    Row(
        Kind::LostInvalidation,
        "lost-invalidation",
        "the completion of a device-TLB invalidation is lost; the IOMMU gives up after",
        wait(10),
    ),
    Row(
        Kind::StaleTranslation,
        "stale-translation",
        "a device-TLB invalidation completes, and what it names goes on being used",
        NONE,
    ),
    Row(Kind::WrongGroup, "wrong-group", "a page request carries a wrong group index", NONE),
    Row(Kind::ExcessRequest, "excess-request", "a page request is made though all credits are used up", NONE),
    Row(
        Kind::UntranslatedAccess,
        "untranslated-access",
        "memory is accessed by untranslated requests though ATS is on",
        NONE,
    ),
    Row(
        Kind::TranslatedAccess,
        "translated-access",
        "a translated request with the descriptor's first address, which nobody translated",
        NONE,
    ),
    Row(
        Kind::ForeignPasid,
        "foreign-pasid",
        "an untranslated request with a PASID that is not the queue's",
        argument("PASID", 0..=0xf_ffff, 0xf_ffff),
    ),
    Row(
        Kind::InterruptRange,
        "interrupt-range",
        "a read at fee00000h",
        argument("1: with the PASID", 0..=1, 0),
    ),
    // Twice what Linux's queue holds by default.
    Row(
        Kind::RequestFlood,
        "request-flood",
        "page requests for the descriptor's first page, without credits",
        argument("page requests", 1..=8192, 4096),
    ),
    Row(Kind::IgnoredResponse, "ignored-response", "a page group response is ignored", NONE),
    Row(Kind::PrivilegedRequest, "privileged-request", "a page request asks for a privileged access", NONE),
    Row(Kind::ExecuteRequest, "execute-request", "a page request asks for execution", NONE),
    Row(
        Kind::StrangeAddress,
        "strange-address",
        "a page request names an address that is not canonical",
        NONE,
    ),
    Row(
        Kind::UnfinishedGroup,
        "unfinished-group",
        "a page request is not the last of its group, and the last never comes",
        NONE,
    ),
    Row(
        Kind::SurpriseRemoval,
        "surprise-removal",
        "the function leaves the bus when a descriptor is due",
        argument("looks at its vendor until it is back, 0: it is brought back", 0..=0xffff, 0),
    ),
];

impl Kind {
    /// How many there are.
    pub const COUNT: usize = TABLE.len();

    /// All, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The one with this number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        TABLE.get(usize::try_from(number).ok()?).map(|row| row.0)
    }

    /// The one with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self.index()].1
    }

    /// What happens, in a line.
    #[must_use]
    pub fn what(self) -> &'static str {
        TABLE[self.index()].2
    }

    /// What its argument means.
    #[must_use]
    pub fn argument(self) -> &'static Argument {
        &TABLE[self.index()].3
    }

    /// Its place in tables.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    /// Its bit in a set of kinds.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_names_are_one_word() {
        for (number, kind) in (0..).zip(Kind::all()) {
            assert_eq!((Kind::of_number(number), Kind::of_name(kind.name())), (Some(kind), Some(kind)));
            assert!(kind.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{kind:?}");
            assert!(kind.argument().range.contains(&kind.argument().default), "{kind:?}");
        }
        assert_eq!(Kind::all().fold(0, |set, kind| set | kind.bit()), 0xffff);
        assert_eq!((Kind::of_number(16), Kind::of_name("late")), (None, None));
    }
}
