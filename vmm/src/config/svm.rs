//! `--svm`: the SVM endpoints.

use devices::svm::SvmConfig;
use devices::svm::misbehaviour::{Kind, PlanError};
use devices::svm::spec::{DEPTH_LOG2, MAX_ENGINES, MAX_QUEUES};

use super::complaint::Complaint;
use super::units::{Placement, UnitSpec};
use crate::layout::slot::MAX_ENDPOINTS;

/// An SVM endpoint to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SvmSpec {
    /// The endpoint itself.
    pub(crate) config: SvmConfig,
    /// Its unit; there is one.
    pub(crate) placement: Placement,
}

/// All endpoints.
pub(super) fn parse_all(values: &[String], units: &[UnitSpec]) -> Result<Vec<SvmSpec>, Complaint> {
    if !values.is_empty() && units.is_empty() {
        return Err(Complaint::new("--svm", "the endpoint works behind a VT-d unit only", "give --iommu on"));
    }
    if values.len() > MAX_ENDPOINTS {
        let thing = format!("--svm given {} times", values.len());
        return Err(Complaint::new(thing, "too many", format_args!("give at most {MAX_ENDPOINTS}")));
    }
    let parse = |value: &String| {
        let (placement, rest) = Placement::take(value, "--svm", units)?;
        Ok(SvmSpec { config: parse(&rest)?, placement })
    };
    values.iter().map(parse).collect()
}

fn parse(options: &[String]) -> Result<SvmConfig, Complaint> {
    let mut config = SvmConfig::default();
    for option in options {
        let complaint = |reason: &str, remedy: &str| {
            Complaint::new(format_args!("--svm option '{option}'"), reason, remedy)
        };
        let Some((key, value)) = option.split_once('=') else {
            return Err(complaint("no value", "give key=value, such as queues=8"));
        };
        let number = |max: u16| {
            let wanted: Option<u16> = value.parse().ok().filter(|n| (1..=max).contains(n));
            wanted.ok_or_else(|| complaint("not a number in range", &format!("give 1 to {max}")))
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(complaint("neither on nor off", "give on or off")),
        };
        match key {
            "queues" => config.queues = u8::try_from(number(MAX_QUEUES.into())?).unwrap_or(MAX_QUEUES),
            "depth" => {
                config.depth_log2 = depth_log2(value)
                    .ok_or_else(|| complaint("not a depth", "give a power of two from 2 to 1024"))?
            }
            "engines" => config.engines = u8::try_from(number(MAX_ENGINES.into())?).unwrap_or(MAX_ENGINES),
            "ats" => config.ats = switch()?,
            "pri" => config.pri = switch()?,
            "pasid-bits" => config.pasid_bits = u8::try_from(number(20)?).unwrap_or(20),
            "misbehave" => config
                .misbehaviour
                .add(value)
                .map_err(|error| complaint(&error.to_string(), &how_to_misbehave(error)))?,
            "seed" => {
                config.misbehaviour.seed =
                    value.parse().map_err(|_| complaint("not a number", "give 0 to 4294967295"))?;
            }
            _ => {
                return Err(complaint(
                    "unknown",
                    "known are queues, depth, engines, ats, pri, pasid-bits, misbehave, seed, iommu, rmrr-mib and satc",
                ));
            }
        }
    }
    if config.pri && !config.ats {
        return Err(Complaint::new("--svm pri=on", "page requests need ATS", "give ats=on, or pri=off too"));
    }
    Ok(config)
}

/// What to give in place of a misbehaviour that is none.
fn how_to_misbehave(error: PlanError) -> String {
    match error {
        PlanError::Kind => {
            format!("known are {}", Kind::all().map(Kind::name).collect::<Vec<_>>().join(", "))
        }
        PlanError::How => "give KIND:COUNT, or KIND:1/N for once in N times on average".to_owned(),
        PlanError::Argument(kind) => format!("give {}@N with such a number", kind.name()),
    }
}

/// The logarithm of a depth that queues can have. **Pure.**
fn depth_log2(value: &str) -> Option<u8> {
    let depth: u32 = value.parse().ok().filter(|depth: &u32| depth.is_power_of_two())?;
    let log2 = u8::try_from(depth.trailing_zeros()).ok()?;
    DEPTH_LOG2.contains(&log2).then_some(log2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::svm::misbehaviour::{How, Setting};

    fn parsed(text: &str) -> Result<SvmConfig, Complaint> {
        parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn misbehaviour_adds_up() {
        let config = parsed("misbehave=late-invalidation:1/20@200,seed=7,misbehave=wrong-group:3").unwrap();
        let mut expected = SvmConfig::default();
        expected.misbehaviour.seed = 7;
        expected.misbehaviour.set(Kind::LateInvalidation, Setting { how: How::OneIn(20), argument: 200 });
        expected.misbehaviour.set(Kind::WrongGroup, Setting { how: How::Count(3), argument: 0 });
        assert_eq!(config, expected);
    }

    #[test]
    fn few_pasids() {
        assert_eq!(parsed("pasid-bits=5"), Ok(SvmConfig { pasid_bits: 5, ..SvmConfig::default() }));
        for text in ["pasid-bits=0", "pasid-bits=21", "pasid-bits=x"] {
            assert!(parsed(text).expect_err(text).to_string().contains("give 1 to 20"), "{text}");
        }
    }

    #[test]
    fn wrong_misbehaviour() {
        for (text, expected) in [
            ("misbehave=late", "no kind of misbehaviour; known are late-invalidation, lost-"),
            ("misbehave=", "known are late-invalidation"),
            ("misbehave=wrong-group:x", "neither a count of 1 to 16777215 nor 1/N; give KIND:COUNT"),
            ("misbehave=late-invalidation@1000", "0 to 900; give late-invalidation@N"),
            ("seed=-1", "not a number; give 0 to 4294967295"),
        ] {
            let complaint = parsed(text).expect_err(text).to_string();
            assert!(complaint.contains(expected), "{text}: {complaint}");
        }
    }
}
