//! Page walks (revision 5.10, §3.6 to §3.8). One file per kind of table.

pub(crate) mod first;

/// What a request wants of the page it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) write: WriteIntent,
    /// Supervisor rights.
    pub(crate) privileged: bool,
}

/// What a request wants with regard to writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteIntent {
    /// Does not write.
    No,
    /// Takes the permission if there is one, and then marks the page dirty.
    IfAllowed,
    /// Cannot do without.
    Needed,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Output for the address that was asked for.
    pub(crate) output: u64,
    /// Logarithm of the page's size in bytes.
    pub(crate) page_bits: u32,
    /// Writes are allowed, and the page is marked dirty already.
    pub(crate) write: bool,
}
