//! What a device is like, as the host says, and a reset of it.

use std::time::Duration;

use devices::pci::spec::CONFIG_SIZE;
use rustix::io::Errno;

use crate::function_file::{FunctionFile, Region, region};

/// What the host says about a device before it is one.
pub(super) struct Survey {
    pub(super) regions: [Region; 6],
    pub(super) config_region: Region,
    pub(super) bytes: Vec<u8>,
    pub(super) can_reset: bool,
}

impl Survey {
    /// Asks for all of it.
    pub(super) fn take(file: &dyn FunctionFile) -> Result<Self, (&'static str, Errno)> {
        let because = |operation| move |errno| (operation, errno);
        let can_reset = file.can_reset().map_err(because("ask about the device"))?;
        let mut regions = [const { Region { len: 0, file_offset: 0, mappable: Vec::new() } }; 6];
        for (index, region) in (0..region::BARS).zip(&mut regions) {
            *region = file.region(index).map_err(because("ask about a BAR"))?;
        }
        let config_region = file.region(region::CONFIG).map_err(because("ask about configuration space"))?;
        let len = usize::try_from(config_region.len).unwrap_or(usize::MAX).min(CONFIG_SIZE);
        let mut bytes = vec![0; len];
        file.read(&config_region, 0, &mut bytes).map_err(because("read configuration space"))?;
        Ok(Self { regions, config_region, bytes, can_reset })
    }
}

/// How often a reset is tried while somebody else holds the device, and how long after.
const RESET_TRIES: usize = 20;
const RESET_PAUSE: Duration = Duration::from_millis(20);

/// Resets; waits a while for others who hold the device.
pub(super) fn patient_reset(file: &dyn FunctionFile) -> Result<(), Errno> {
    for _ in 1..RESET_TRIES {
        match file.reset() {
            Err(Errno::AGAIN | Errno::BUSY) => std::thread::sleep(RESET_PAUSE),
            result => return result,
        }
    }
    file.reset()
}
