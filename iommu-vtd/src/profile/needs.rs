//! Which feature needs which other: the manual's dependencies (chapter 11, CAP and ECAP). **Pure.**

use super::fields::Profile;
use super::options::{
    ADMS, AW_BITS, DIT, DRAIN, DT, EAFS, EIM, ESIRTPS, FS1GP, FS5LP, FSTS, HOST_ADDRESS_WIDTH, IR, NEST,
    NUMBERS, NWFS, PASID_BITS, PDS, PI, PRESETS, PRS, QI, RPRIVS, RPS, SCALABLE_MODE, SMPWCS, SMS, SRS,
    SSADS, SSTS, Switch, names,
};

/// A profile that no hardware could have, or a text that names none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A feature without one that it builds on. The text is "`feature` needs `needs`".
    #[error("{feature} needs {needs}")]
    Missing {
        /// What was asked for.
        feature: &'static str,
        /// What it needs.
        needs: String,
    },
    /// A value that cannot be.
    #[error("{option} of {value} is not possible: give {possible}")]
    Value {
        /// Which option.
        option: &'static str,
        /// As asked for.
        value: String,
        /// What could be given.
        possible: &'static str,
    },
    /// No preset has this name.
    #[error("no preset is called '{0}': there are {presets}", presets = preset_names())]
    Preset(String),
    /// No option has this name.
    #[error("no option is called '{0}': there are {options}", options = option_names())]
    Option(String),
    /// An option without a value.
    #[error("{0} has no value: write {0}=...")]
    NoValue(&'static str),
    /// An option that is there already.
    #[error("{0} is given twice")]
    Twice(&'static str),
}

fn preset_names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

fn option_names() -> String {
    names().collect::<Vec<_>>().join(", ")
}

/// The first needs the second.
pub(super) const NEEDS: &[(Switch, Switch)] = &[
    (SCALABLE_MODE, QI),
    (SCALABLE_MODE, DRAIN),
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

/// A need that is not one switch's of another.
struct Special {
    feature: &'static str,
    needs: &'static str,
    broken: fn(&Profile) -> bool,
}

/// All others.
const SPECIAL: &[Special] = &[
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
        needs: "fs5lp=on, or a second stage (ssts=on)",
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
