//! `--ioat`: DMA engines that the guest's kernel drives.

use devices::ioat::IoatConfig;
use devices::ioat::spec::{MAX_CHANNELS, TRANSFER_LOG2};

use super::complaint::Complaint;
use super::units::{Placement, UnitSpec};

/// A DMA engine to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoatSpec {
    /// The engine itself.
    pub(crate) config: IoatConfig,
    /// Its unit.
    pub(crate) placement: Placement,
}

/// All engines.
pub(super) fn parse_all(values: &[String], units: &[UnitSpec]) -> Result<Vec<IoatSpec>, Complaint> {
    let parse = |value: &String| {
        let (placement, rest) = Placement::take(value, "--ioat", units)?;
        Ok(IoatSpec { config: parse(&rest)?, placement })
    };
    values.iter().map(parse).collect()
}

fn parse(options: &[String]) -> Result<IoatConfig, Complaint> {
    let mut config = IoatConfig::default();
    for option in options {
        let complaint = |reason: &str, remedy: &str| {
            Complaint::new(format_args!("--ioat option '{option}'"), reason, remedy)
        };
        match option.split_once('=') {
            Some(("channels", value)) => {
                let wanted = value.parse().ok().filter(|count| (1..=MAX_CHANNELS).contains(count));
                let wrong = || complaint("not a number in range", &format!("give 1 to {MAX_CHANNELS}"));
                config.channels = wanted.ok_or_else(wrong)?;
            }
            Some(("transfer-kib", value)) => {
                let wrong = || complaint("not a length", "give a power of two from 4 to 1024");
                config.transfer_log2 = transfer_log2(value).ok_or_else(wrong)?;
            }
            _ => {
                return Err(complaint(
                    "unknown",
                    "known are channels=N, transfer-kib=N, iommu, rmrr-mib and satc",
                ));
            }
        }
    }
    Ok(config)
}

/// The logarithm of a length in KiB that a transfer can have. **Pure.**
fn transfer_log2(kib: &str) -> Option<u8> {
    let bytes = kib.parse::<u32>().ok()?.checked_mul(1024).filter(|bytes| bytes.is_power_of_two())?;
    let log2 = u8::try_from(bytes.trailing_zeros()).ok()?;
    TRANSFER_LOG2.contains(&log2).then_some(log2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (options, channels and logarithm of a transfer, or what is said)
    #[test]
    fn options_become_an_engine() {
        type Row = (&'static str, Result<(u8, u8), &'static str>);
        let rows: [Row; 9] = [
            ("", Ok((1, 16))),
            ("channels=4,transfer-kib=4", Ok((4, 12))),
            ("transfer-kib=1024", Ok((1, 20))),
            ("channels=0", Err("give 1 to 4")),
            ("channels=5", Err("give 1 to 4")),
            ("transfer-kib=2", Err("power of two from 4 to 1024")),
            ("transfer-kib=12", Err("power of two from 4 to 1024")),
            ("transfer-kib=4194304", Err("power of two from 4 to 1024")),
            ("queues=1", Err("known are channels")),
        ];
        for (options, expected) in rows {
            let found = parse_all(&[options.to_owned()], &[]);
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    let config = found[0].config;
                    assert_eq!((config.channels, config.transfer_log2), expected, "{options}");
                }
                (Err(complaint), Err(expected)) => {
                    assert!(complaint.to_string().contains(expected), "{options}: {complaint}");
                }
                (found, _) => panic!("{options}: {found:?}"),
            }
        }
    }
}
