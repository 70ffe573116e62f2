//! Posted interrupts (§5.2.5): the effect of an interrupt on a posted-interrupt descriptor in guest memory.

use iommu_core::Gpa;

use super::remap::{Interrupt, Posting};
use crate::memory::TableMemory;
use crate::spec::interrupt::{
    DeliveryMode, InterruptReason, POSTED_CONTROL, PostedControl, posted_control_reserved,
};

/// How often another writer may come first. Each time it wrote the same word between our read and our write, so
/// no guest that means well comes near.
const ATTEMPTS: u32 = 1 << 12;

/// Posts an interrupt. Yields the notification to send, if one is due.
///
/// The manual has one atomic update of all 64 bytes. Here the request bit is set first and the notification bit
/// after it: software that clears the notification bit and then takes the request bits sees both or neither.
///
/// # Errors
/// The descriptor is not accessible, or has reserved bits set; nothing is changed then.
pub fn post(
    memory: &impl TableMemory,
    posting: &Posting,
    extended: bool,
) -> Result<Option<Interrupt>, InterruptReason> {
    let words: [u64; 8] = memory.load_words(posting.descriptor).ok_or(InterruptReason::DescriptorAccess)?;
    let [_, _, _, _, control, rest @ ..] = words;
    if control & posted_control_reserved(extended) != 0 || rest != [0; 3] {
        return Err(InterruptReason::DescriptorReserved);
    }
    let word = u64::from(posting.vector / 64);
    let bit = 1 << (posting.vector % 64);
    update(memory, Gpa(posting.descriptor.0 + word * 8), |requests| Some(requests | bit))?;
    let control = update(memory, Gpa(posting.descriptor.0 + POSTED_CONTROL), |raw| {
        let control = PostedControl::new_with_raw_value(raw);
        let due = !control.on() && (posting.urgent || !control.sn());
        due.then(|| control.with_on(true).raw_value())
    })?;
    Ok(control.map(|raw| notification(PostedControl::new_with_raw_value(raw), extended)))
}

fn notification(control: PostedControl, extended: bool) -> Interrupt {
    Interrupt {
        destination: if extended { control.ndst() } else { control.ndst() >> 8 & 0xff },
        logical: false,
        hint: false,
        delivery: DeliveryMode::Fixed,
        vector: control.nv(),
        level: false,
    }
}

/// Replaces a word by what `change` makes of it; `None` from `change`: it stays. Yields what was written.
fn update(
    memory: &impl TableMemory,
    gpa: Gpa,
    change: impl Fn(u64) -> Option<u64>,
) -> Result<Option<u64>, InterruptReason> {
    let mut old = memory.load(gpa).ok_or(InterruptReason::DescriptorAccess)?;
    for _ in 0..ATTEMPTS {
        let Some(new) = change(old) else { return Ok(None) };
        match memory.compare_exchange(gpa, old, new).ok_or(InterruptReason::DescriptorAccess)? {
            Ok(_) => return Ok(Some(new)),
            Err(there) => old = there,
        }
    }
    Err(InterruptReason::DescriptorAccess)
}
