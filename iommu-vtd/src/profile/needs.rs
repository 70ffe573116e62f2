//! Which feature needs which other: the manual's dependencies (chapter 11, CAP and ECAP). **Pure.**

use std::fmt;

use super::fields::Profile;
use super::options::{
    ADMS, AW_BITS, DIT, DT, EAFS, EIM, ESIRTPS, FS1GP, FS5LP, FSTS, HOST_ADDRESS_WIDTH, IR, NEST, NUMBERS,
    NWFS, PASID_BITS, PDS, PI, PRESETS, PRS, QI, RPRIVS, RPS, SCALABLE_MODE, SMPWCS, SMS, SRS, SSADS, SSTS,
    Switch, names,
};

/// A profile that no hardware could have, or a text that names none. Its text is the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProfileError {
    /// A feature without one that it builds on. The reason is "`feature` needs `needs`".
    Missing {
        /// What was asked for.
        feature: &'static str,
        /// What it needs.
        needs: String,
    },
    /// A value that cannot be.
    Value {
        /// Which option.
        option: &'static str,
        /// As asked for.
        value: String,
        /// What could be given.
        possible: &'static str,
    },
    /// No preset has this name.
    Preset(String),
    /// No option has this name.
    Option(String),
    /// An option without a value.
    NoValue(&'static str),
    /// An option that is there already.
    Twice(&'static str),
}

impl ProfileError {
    /// What is wrong.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Missing { feature, needs } => format!("{feature} needs {needs}"),
            Self::Value { option, value, .. } => format!("{option} cannot be '{value}'"),
            Self::Preset(name) => format!("no preset is called '{name}'"),
            Self::Option(name) => format!("no option is called '{name}'"),
            Self::NoValue(option) => format!("{option} has no value"),
            Self::Twice(option) => format!("{option} is given twice"),
        }
    }

    /// What to do about it, with all that is possible.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing { feature, needs } => format!("give {needs} too, or leave out {feature}"),
            Self::Value { possible, .. } => format!("give {possible}"),
            Self::Preset(_) => format!("give one of {}", preset_names()),
            Self::Option(_) => format!("give one of {}", option_names()),
            Self::NoValue(option) => format!("give {option}=VALUE"),
            Self::Twice(_) => "give it once".to_owned(),
        }
    }
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason(), self.remedy())
    }
}

impl std::error::Error for ProfileError {}

fn preset_names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

fn option_names() -> String {
    names().collect::<Vec<_>>().join(", ")
}

/// The first needs the second, and goes with it when only a preset asked for it.
pub(super) const NEEDS: &[(Switch, Switch)] = &[
    (FSTS, SCALABLE_MODE),
    (SSTS, SCALABLE_MODE),
    (NEST, FSTS),
    (NEST, SSTS),
    (FS5LP, FSTS),
    (FS1GP, FSTS),
    (SMPWCS, SCALABLE_MODE),
    (EAFS, FSTS),
    (EAFS, SMPWCS),
    (SSADS, SSTS),
    (SSADS, SMPWCS),
    (RPS, SCALABLE_MODE),
    (SRS, SCALABLE_MODE),
    (RPRIVS, SRS),
    (ADMS, QI),
    (DT, QI),
    (DIT, DT),
    (NWFS, DT),
    (PDS, DT),
    (PRS, DT),
    (PRS, SCALABLE_MODE),
    (SMS, PRS),
    (IR, QI),
    (EIM, IR),
    (PI, IR),
    (ESIRTPS, IR),
];

/// A need that is not one switch's of another, or where nothing goes silently: who switches off a small thing is
/// not to lose scalable mode by it.
struct Special {
    feature: &'static str,
    needs: &'static str,
    broken: fn(&Profile) -> bool,
}

/// All others.
const SPECIAL: &[Special] = &[
    Special {
        feature: "scalable-mode",
        needs: "qi=on",
        broken: |p| p.scalable_mode && !p.queued_invalidation,
    },
    Special { feature: "scalable-mode", needs: "dma-drain=on", broken: |p| p.scalable_mode && !p.dma_drain },
    Special {
        feature: "scalable-mode",
        needs: "fsts=on or ssts=on",
        broken: |p| p.scalable_mode && !p.first_stage && !p.second_stage,
    },
    Special {
        feature: "scalable-mode",
        needs: "rwbf=off",
        broken: |p| p.scalable_mode && p.write_buffer_flush,
    },
    Special {
        feature: "pasid-bits",
        needs: "scalable-mode=on",
        broken: |p| p.pasid_bits > 0 && !p.scalable_mode,
    },
    Special { feature: "fs5lp", needs: "aw-bits=57", broken: |p| p.five_level && p.address_width != 57 },
    // Linux finds no width that both stages have, and ignores such a unit.
    Special {
        feature: "fsts",
        needs: "aw-bits=48 or aw-bits=57",
        broken: |p| p.first_stage && p.address_width < 48,
    },
    Special {
        feature: "aw-bits=57",
        needs: "fs5lp=on or ssts=on",
        broken: |p| p.address_width == 57 && p.scalable_mode && !p.five_level && !p.second_stage,
    },
];

/// Whether hardware could be so.
///
/// # Errors
/// The first value or need that is wrong.
pub(crate) fn check(profile: &Profile) -> Result<(), ProfileError> {
    for number in std::iter::once(&HOST_ADDRESS_WIDTH).chain(NUMBERS) {
        let value = number.get(profile);
        if !(number.fits)(value) {
            let (option, possible) = (number.name, number.possible);
            return Err(ProfileError::Value { option, value: value.to_string(), possible });
        }
    }
    for (feature, needs) in NEEDS {
        if feature.get(profile) && !needs.get(profile) {
            let needs = format!("{}=on", needs.name);
            return Err(ProfileError::Missing { feature: feature.name, needs });
        }
    }
    match SPECIAL.iter().find(|special| (special.broken)(profile)) {
        Some(special) => Err(ProfileError::Missing { feature: special.feature, needs: special.needs.into() }),
        None => Ok(()),
    }
}

impl Profile {
    /// The profile without what has lost its base: whoever switches a feature off need not know which others
    /// build on it.
    #[must_use]
    pub fn settled(self) -> Self {
        self.settled_except(&[])
    }

    /// The same, but options in `pinned` stay as they are, so that a check finds them.
    pub(super) fn settled_except(mut self, pinned: &[&str]) -> Self {
        let free = |name: &str| !pinned.contains(&name);
        if self.address_width < 57 && free(FS5LP.name) {
            self.five_level = false;
        }
        // Each round switches something off, or is the last.
        loop {
            let before = self;
            for (feature, needs) in NEEDS {
                if free(feature.name) && !needs.get(&self) {
                    feature.set(&mut self, false);
                }
            }
            if self == before {
                break;
            }
        }
        if !self.scalable_mode && free(PASID_BITS.name) {
            self.pasid_bits = 0;
        }
        if self.scalable_mode && !self.second_stage && !self.five_level && free(AW_BITS.name) {
            self.address_width = self.address_width.min(48);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{RWBF, SWITCHES};
    use super::*;

    /// All features at once; only flushing write buffers goes with no other.
    fn everything() -> Profile {
        let mut profile = Profile::svm(46).with_address_width(57);
        for switch in SWITCHES.iter().filter(|switch| switch.name != RWBF.name) {
            switch.set(&mut profile, true);
        }
        profile
    }

    #[test]
    fn everything_goes_together() {
        assert_eq!(check(&everything()), Ok(()));
        assert_eq!(everything().settled(), everything());
        for preset in PRESETS {
            let profile = (preset.make)(46);
            assert_eq!((check(&profile), profile.settled()), (Ok(()), profile), "{}", preset.name);
        }
    }

    #[test]
    fn a_feature_without_its_base_is_refused_by_both_names() {
        for (feature, needs) in NEEDS {
            let mut profile = everything();
            needs.set(&mut profile, false);
            let expected = format!("{} needs {}=on", feature.name, needs.name);
            let asked_for = profile.settled_except(&[feature.name]);
            assert_eq!(check(&asked_for).map_err(|error| error.reason()), Err(expected.clone()));
            let rest = profile.settled();
            assert!(!feature.get(&rest), "{expected}");
            let possible = Profile { scalable_mode: rest.scalable_mode && rest.queued_invalidation, ..rest };
            assert_eq!(check(&possible.settled()), Ok(()), "{expected}");
        }
    }

    /// (name, change, error)
    #[test]
    fn other_impossible_mixes_say_what_is_missing() {
        type Row = (&'static str, fn(&mut Profile), &'static str);
        let rows: [Row; 13] = [
            (
                "no queue",
                |p| *p = Profile { queued_invalidation: false, ..*p }.settled(),
                "scalable-mode needs qi=on",
            ),
            ("no drain", |p| p.dma_drain = false, "scalable-mode needs dma-drain=on"),
            (
                "no stage",
                |p| *p = Profile { first_stage: false, second_stage: false, ..*p }.settled(),
                "scalable-mode needs fsts=on or ssts=on",
            ),
            ("write buffers", |p| p.write_buffer_flush = true, "scalable-mode needs rwbf=off"),
            (
                "PASIDs in legacy mode",
                |p| *p = Profile { pasid_bits: 20, ..Profile::legacy(46) },
                "pasid-bits needs scalable-mode=on",
            ),
            (
                "five levels of 48 bits",
                |p| *p = Profile { five_level: true, ..Profile::svm(46) },
                "fs5lp needs aw-bits=57",
            ),
            (
                "39-bit first stage",
                |p| *p = Profile::svm(46).with_address_width(39),
                "fsts needs aw-bits=48 or aw-bits=57",
            ),
            (
                "57 bits and no table that has them",
                |p| *p = Profile { address_width: 57, ..Profile::svm(46) },
                "aw-bits=57 needs fs5lp=on or ssts=on",
            ),
            ("PASIDs", |p| p.pasid_bits = 21, "pasid-bits cannot be '21'"),
            ("narrow CPUs", |p| p.host_address_width = 35, "host address width cannot be '35'"),
            ("wide CPUs", |p| p.host_address_width = 64, "host address width cannot be '64'"),
            ("mask", |p| p.max_address_mask = 52, "mamv cannot be '52'"),
            ("domains", |p| p.domain_id_bits = 5, "domain-bits cannot be '5'"),
        ];
        for (name, change, expected) in rows {
            let mut profile = everything();
            change(&mut profile);
            assert_eq!(check(&profile).unwrap_err().reason(), expected, "{name}");
        }
    }
}
