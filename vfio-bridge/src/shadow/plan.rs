//! What an invalidation has the host change: the guest's mappings against what is mapped.

use std::ops::ControlFlow;

use iommu_core::{Domain, GuestMappings, IovaRange, Mapping, Visit};
use rustix::io::Errno;

use super::areas::{Area, Areas, Changes, changes, union};
use crate::memory::{HostRange, parts_in_memory};

/// Most mappings of one domain, those that lead nowhere included. Each costs this process and its kernel a few hundred
/// bytes, and a guest can make as many as it has addresses. With 4 KiB pages it is a gigabyte of memory that a device
/// can reach at a time.
pub const MAPPINGS_LIMIT: usize = 1 << 18;

/// A domain as it is copied.
pub(super) struct Source<'a> {
    pub(super) mappings: &'a dyn GuestMappings,
    pub(super) domain: &'a Domain,
    pub(super) ram: &'a [HostRange],
}

/// Makes out what is to change so that `areas` is what the guest maps in `range`.
///
/// A mapping is hit as a whole by an invalidation of a part of it, be it the old one or the new one. So the range
/// grows until none of either reaches out of it; as blocks are aligned to their size, it does that once per size.
///
/// # Errors
/// `ENOSPC`: there would be more than [`MAPPINGS_LIMIT`]. `E2BIG`: the guest's tables take too long to read.
/// `EOPNOTSUPP`: there is no second stage to be read.
pub(super) fn plan(source: &Source<'_>, areas: &Areas, range: &IovaRange) -> Result<Changes, Errno> {
    let mut range = areas.hull(range);
    // Three sizes of blocks on either side; a guest that changes its tables meanwhile gets what was read last.
    for _ in 0..ROUNDS {
        let Found { wanted, reached, nowhere } = read(source, &range)?;
        let hull = areas.hull(&union(&range, &reached));
        if hull == range {
            let changes = Changes { nowhere, ..changes(areas, &range, wanted) };
            let after = areas.len() - changes.gone_areas + changes.new.len();
            return if after > MAPPINGS_LIMIT { Err(Errno::NOSPC) } else { Ok(changes) };
        }
        range = hull;
    }
    Err(Errno::TOOBIG)
}

/// Rounds in which a range may grow.
const ROUNDS: usize = 16;

/// What the guest maps.
struct Found {
    wanted: Vec<Area>,
    /// How far mappings reach.
    reached: IovaRange,
    /// The first that leads to no memory.
    nowhere: Option<Mapping>,
}

/// The guest's mappings that share an address with `range`.
fn read(source: &Source<'_>, range: &IovaRange) -> Result<Found, Errno> {
    let mut found = Found { wanted: Vec::new(), reached: *range, nowhere: None };
    let mut told = 0;
    let visit = source.mappings.visit(source.domain, range, &mut |mapping| {
        let Mapping { range: whole, base, permissions } = *mapping;
        found.reached = union(&found.reached, &whole);
        let before = found.wanted.len();
        parts_in_memory(source.ram, &whole, base.0, |iova, base| {
            found.wanted.push(Area { iova, base, permissions, whole });
        });
        if found.wanted.len() == before {
            found.nowhere.get_or_insert(*mapping);
        }
        told += 1;
        if told > MAPPINGS_LIMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match visit {
        Visit::Complete => Ok(found),
        Visit::Stopped => Err(Errno::NOSPC),
        Visit::TooMuch => Err(Errno::TOOBIG),
        Visit::Unsupported => Err(Errno::OPNOTSUPP),
    }
}
