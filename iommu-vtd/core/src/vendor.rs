//! Typed room for what only one vendor's model understands.
//!
//! The flows are the same for every IOMMU; some carry a few words that only the two ends
//! understand. They travel as [`VendorData`]: a kind and two words. A vendor's crate implements
//! [`VendorPayload`] for its own type, and a consumer that finds a foreign kind ignores it.

/// Opaque words with the kind that tells how to read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VendorData {
    kind: u32,
    words: [u64; 2],
}

impl VendorData {
    /// No vendor data; kind 0 is reserved for it.
    pub const NONE: Self = Self { kind: 0, words: [0; 2] };

    /// Wraps a vendor's payload.
    #[must_use]
    pub fn of<P: VendorPayload>(payload: &P) -> Self {
        Self { kind: P::KIND, words: payload.to_words() }
    }

    /// The payload, if it is of this kind.
    #[must_use]
    pub fn get<P: VendorPayload>(&self) -> Option<P> {
        if self.kind == P::KIND { P::from_words(self.words) } else { None }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.kind == 0
    }
}

/// A vendor's own addition to a neutral message.
pub trait VendorPayload: Sized {
    /// Tells this payload from all others. Not 0.
    const KIND: u32;
    /// Packs.
    fn to_words(&self) -> [u64; 2];
    /// Unpacks; `None` if the words are not well-formed.
    fn from_words(words: [u64; 2]) -> Option<Self>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Hint(u64);
    impl VendorPayload for Hint {
        const KIND: u32 = 7;
        fn to_words(&self) -> [u64; 2] {
            [self.0, 0]
        }
        fn from_words(words: [u64; 2]) -> Option<Self> {
            (words[1] == 0).then_some(Self(words[0]))
        }
    }
    #[derive(Debug, PartialEq)]
    struct Foreign;
    impl VendorPayload for Foreign {
        const KIND: u32 = 8;
        fn to_words(&self) -> [u64; 2] {
            [0; 2]
        }
        fn from_words(_: [u64; 2]) -> Option<Self> {
            Some(Self)
        }
    }

    #[test]
    fn only_the_right_kind_comes_back() {
        let data = VendorData::of(&Hint(3));
        assert_eq!(data.get::<Hint>(), Some(Hint(3)));
        assert_eq!(data.get::<Foreign>(), None);
        assert!(VendorData::NONE.is_none() && VendorData::NONE.get::<Hint>().is_none());
    }
}
