//! Operations on memory (section 3.1), as far as one session carries them.
//!
//! An [`Engine`] knows how far it got. [`Engine::step`] goes on from there until the operation is done, the
//! session has moved as much as it may, or an address cannot be accessed; after a fault the next step starts
//! at the byte where this one stopped.

use iommu_core::{Access, DmaFault, Gpa, Iova, SESSION_LIMIT_BYTES, Session};
use vm_memory::bitmap::{BitmapSlice, MS};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryResult, Permissions, VolatileSlice,
};

use super::descriptor::{Operation, Span};

/// Most nodes visited in one session: with a translation each, about the time of a full copy.
const SESSION_LIMIT_HOPS: u64 = 256;
/// Bytes looked at at once where the CPU has to see them.
const WINDOW: usize = 4096;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The operation is complete.
    Done,
    /// There is more to do, in another session.
    More,
    /// An address could not be accessed.
    Fault {
        /// Why.
        fault: DmaFault,
        /// What was tried.
        access: Access,
    },
}

/// One operation on its way.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    operation: Operation,
    done: u64,
    /// CRC so far; node reached; offset of the first difference.
    value: u64,
    /// A comparison that found a difference.
    differs: bool,
}

impl Engine {
    /// At the start.
    #[must_use]
    pub fn new(operation: Operation) -> Self {
        let value = match operation {
            Operation::Crc32c { seed, .. } => u64::from(seed),
            Operation::Chase { first, .. } => first,
            _ => 0,
        };
        Self { operation, done: 0, value, differs: false }
    }

    /// Bytes, or hops, done so far.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.done
    }

    /// The result, of the whole if [`Step::Done`] was seen, else of the part that is done.
    #[must_use]
    pub fn result(&self) -> u64 {
        match self.operation {
            Operation::Crc32c { .. } | Operation::Chase { .. } => self.value,
            Operation::Compare { .. } if self.differs => self.done,
            Operation::Compare { source, .. } if self.done == source.length() => u64::MAX,
            _ => 0,
        }
    }

    /// The next access. `None` if the operation is complete.
    #[must_use]
    pub fn next_access(&self) -> Option<(Iova, Access)> {
        let at = |span: Span| (self.done < span.length()).then(|| Iova(span.at(self.done)));
        match self.operation {
            Operation::Nop => None,
            Operation::Fill { destination, .. } => at(destination).map(|a| (a, Access::Write)),
            Operation::Compare { .. } if self.differs => None,
            Operation::Copy { source, .. }
            | Operation::Compare { source, .. }
            | Operation::Crc32c { source, .. } => at(source).map(|a| (a, Access::Read)),
            Operation::Chase { hops, .. } => {
                (self.done < hops && self.value != 0).then_some((Iova(self.value), Access::Read))
            }
        }
    }

    /// The last address that will be accessed as `address` is, which is the next such one.
    #[must_use]
    pub fn last_after(&self, address: Iova, access: Access) -> Iova {
        let last = match self.operation {
            Operation::Copy { destination, .. } if access.is_write() => destination.last_after(address.0),
            Operation::Copy { source, .. } | Operation::Crc32c { source, .. } => source.last_after(address.0),
            Operation::Fill { destination, .. } => destination.last_after(address.0),
            Operation::Compare { source, destination } => {
                source.last_after(address.0).or_else(|| destination.last_after(address.0))
            }
            Operation::Nop | Operation::Chase { .. } => None,
        };
        last.map_or(address, Iova)
    }

    /// Goes on.
    pub fn step<M: GuestMemoryBackend>(&mut self, session: &Session<'_, M>) -> Step {
        if self.next_access().is_none() {
            return Step::Done;
        }
        let outcome = match self.operation {
            Operation::Nop => Ok(()),
            Operation::Copy { source, destination } => self.copy(session, source, destination),
            Operation::Fill { destination, pattern } => self.fill(session, destination, pattern),
            Operation::Compare { source, destination } => self.compare(session, source, destination),
            Operation::Crc32c { source, .. } => self.crc32c(session, source),
            Operation::Chase { .. } => return self.chase(session),
        };
        self.judge(session, outcome)
    }

    /// What follows from a walk over memory that ended with `Err(access)` where a slice was refused.
    fn judge<M: GuestMemoryBackend>(&self, session: &Session<'_, M>, outcome: Result<(), Access>) -> Step {
        match (outcome, self.next_access()) {
            (_, None) => Step::Done,
            (Ok(()), Some(_)) => Step::More,
            (Err(access), Some((address, _))) => {
                // Without a fault of the session, the memory gave no slice: treat it as not there.
                let fault = session.fault().unwrap_or(DmaFault::NoMemory { address, gpa: Gpa(0) });
                Step::Fault { fault, access }
            }
        }
    }

    fn copy<M: GuestMemoryBackend>(
        &mut self,
        session: &Session<'_, M>,
        source: Span,
        destination: Span,
    ) -> Result<(), Access> {
        let count = self.share(source, SESSION_LIMIT_BYTES);
        let from = slices(session, source.at(self.done), count, Access::Read)?;
        let to = slices(session, destination.at(self.done), count, Access::Write)?;
        let mut pairs = Pairs::new(from, to, Access::Write);
        while let Some((from, to)) = pairs.next()? {
            from.copy_to_volatile_slice(to);
            self.done += from.len() as u64;
        }
        Ok(())
    }

    fn compare<M: GuestMemoryBackend>(
        &mut self,
        session: &Session<'_, M>,
        source: Span,
        destination: Span,
    ) -> Result<(), Access> {
        let count = self.share(source, SESSION_LIMIT_BYTES / 2);
        let left = slices(session, source.at(self.done), count, Access::Read)?;
        let right = slices(session, destination.at(self.done), count, Access::Read)?;
        let mut pairs = Pairs::new(left, right, Access::Read);
        while let Some((left, right)) = pairs.next()? {
            let equal = equal_bytes(&left, &right);
            self.done += equal as u64;
            if equal < left.len() {
                self.differs = true;
                return Ok(());
            }
        }
        Ok(())
    }

    fn fill<M: GuestMemoryBackend>(
        &mut self,
        session: &Session<'_, M>,
        destination: Span,
        pattern: [u8; 8],
    ) -> Result<(), Access> {
        let count = self.share(destination, SESSION_LIMIT_BYTES);
        // Room for any phase: `window[phase..]` starts with the byte that is due.
        let mut window = [[0_u8; 8]; WINDOW / 8 + 1];
        window.fill(pattern);
        let window = window.as_flattened();
        for slice in slices(session, destination.at(self.done), count, Access::Write)? {
            let slice = slice.map_err(|_| Access::Write)?;
            let phase = usize::try_from(self.done % 8).unwrap_or_default();
            for start in (0..slice.len()).step_by(WINDOW) {
                // A window is a multiple of the pattern, so the phase is the same for all of a slice.
                let rest = slice.offset(start).map_err(|_| Access::Write)?;
                rest.copy_from(&window[phase..phase + WINDOW]);
            }
            self.done += slice.len() as u64;
        }
        Ok(())
    }

    fn crc32c<M: GuestMemoryBackend>(
        &mut self,
        session: &Session<'_, M>,
        source: Span,
    ) -> Result<(), Access> {
        let count = self.share(source, SESSION_LIMIT_BYTES);
        let mut window = [0_u8; WINDOW];
        for slice in slices(session, source.at(self.done), count, Access::Read)? {
            let slice = slice.map_err(|_| Access::Read)?;
            let mut crc = u32::try_from(self.value).unwrap_or_default();
            for start in (0..slice.len()).step_by(WINDOW) {
                let rest = slice.offset(start).map_err(|_| Access::Read)?;
                let length = rest.copy_to(&mut window);
                crc = crc32c::crc32c_append(crc, &window[..length]);
            }
            self.value = u64::from(crc);
            self.done += slice.len() as u64;
        }
        Ok(())
    }

    fn chase<M: GuestMemoryBackend>(&mut self, session: &Session<'_, M>) -> Step {
        for _ in 0..SESSION_LIMIT_HOPS {
            let Some((node, _)) = self.next_access() else { return Step::Done };
            match read_u64(session, node.0) {
                // The end of the chain: the node reached stays the result.
                Ok(0) => {
                    let Operation::Chase { first, .. } = self.operation else { return Step::Done };
                    self.operation = Operation::Chase { first, hops: self.done };
                    return Step::Done;
                }
                Ok(next) => {
                    self.value = next;
                    self.done += 1;
                }
                Err(access) => return self.judge(session, Err(access)),
            }
        }
        self.judge(session, Ok(()))
    }

    /// Bytes of `span` that are left for this session.
    fn share(&self, span: Span, limit: usize) -> usize {
        usize::try_from(span.length().saturating_sub(self.done)).map_or(limit, |left| left.min(limit))
    }
}

fn permissions(access: Access) -> Permissions {
    if access.is_write() { Permissions::Write } else { Permissions::Read }
}

fn slices<'a, M: GuestMemoryBackend>(
    session: &'a Session<'_, M>,
    address: u64,
    count: usize,
    access: Access,
) -> Result<impl Iterator<Item = GuestMemoryResult<VolatileSlice<'a, MS<'a, M>>>>, Access> {
    session.get_slices(GuestAddress(address), count, permissions(access)).map_err(|_| access)
}

fn read_u64<M: GuestMemoryBackend>(session: &Session<'_, M>, address: u64) -> Result<u64, Access> {
    // The pointer field of a node at the very top would wrap.
    if address.checked_add(7).is_none() {
        return Err(Access::Read);
    }
    let mut bytes = [0_u8; 8];
    let mut filled = 0;
    for slice in slices(session, address, bytes.len(), Access::Read)? {
        filled += slice.map_err(|_| Access::Read)?.copy_to(&mut bytes[filled..]);
    }
    Ok(u64::from_le_bytes(bytes))
}

/// Number of equal bytes at the start of two slices of the same length.
fn equal_bytes<B: BitmapSlice>(left: &VolatileSlice<'_, B>, right: &VolatileSlice<'_, B>) -> usize {
    let (mut a, mut b) = ([0_u8; WINDOW], [0_u8; WINDOW]);
    let mut equal = 0;
    while let (Ok(left), Ok(right)) = (left.offset(equal), right.offset(equal)) {
        let length = left.copy_to(&mut a).min(right.copy_to(&mut b));
        let (a, b) = (&a[..length], &b[..length]);
        if a != b {
            return equal + a.iter().zip(b).take_while(|(x, y)| x == y).count();
        }
        equal += length;
        if length < WINDOW {
            break;
        }
    }
    equal
}

/// Two walks over memory in step: pairs of slices of the same length.
struct Pairs<'a, L, R, B> {
    left: L,
    right: R,
    right_access: Access,
    /// What is left of the slices under way.
    rest: (Option<VolatileSlice<'a, B>>, Option<VolatileSlice<'a, B>>),
}

type Pair<'a, B> = (VolatileSlice<'a, B>, VolatileSlice<'a, B>);

impl<'a, L, R, B> Pairs<'a, L, R, B>
where
    L: Iterator<Item = GuestMemoryResult<VolatileSlice<'a, B>>>,
    R: Iterator<Item = GuestMemoryResult<VolatileSlice<'a, B>>>,
    B: BitmapSlice,
{
    fn new(left: L, right: R, right_access: Access) -> Self {
        Self { left, right, right_access, rest: (None, None) }
    }

    /// The next pair; `Err` with the access that was refused.
    #[inline]
    fn next(&mut self) -> Result<Option<Pair<'a, B>>, Access> {
        let Some(left) = take(&mut self.rest.0, &mut self.left, Access::Read)? else { return Ok(None) };
        let Some(right) = take(&mut self.rest.1, &mut self.right, self.right_access)? else {
            return Ok(None);
        };
        let length = left.len().min(right.len());
        let cut = |slice: VolatileSlice<'a, B>| match slice.len() == length {
            true => Ok((slice, None)),
            false => slice.split_at(length).map(|(first, rest)| (first, Some(rest))),
        };
        let (Ok((left, left_rest)), Ok((right, right_rest))) = (cut(left), cut(right)) else {
            return Err(Access::Read);
        };
        self.rest = (left_rest, right_rest);
        Ok(Some((left, right)))
    }
}

fn take<'a, B>(
    rest: &mut Option<VolatileSlice<'a, B>>,
    more: &mut impl Iterator<Item = GuestMemoryResult<VolatileSlice<'a, B>>>,
    access: Access,
) -> Result<Option<VolatileSlice<'a, B>>, Access> {
    match rest.take() {
        Some(slice) => Ok(Some(slice)),
        None => more.next().transpose().map_err(|_| access),
    }
}
