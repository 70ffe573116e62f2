//! Profiles as text: `preset,name=value,...`. **Pure.**

use super::fields::Profile;
use super::needs::{ProfileError, check};
use super::options::{AW_BITS, FS5LP, NUMBERS, Number, PAGES, PRESETS, SSLPS, SWITCHES, Switch};

/// What a profile takes over from the guest's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Width of physical addresses in bits.
    pub host_address_width: u32,
    /// Whether CPUs have five-level tables: presets with a first stage then have them, too.
    pub five_level: bool,
}

impl Profile {
    /// The profile that `text` describes: a preset's name, options, both (the preset first) or nothing, separated
    /// by commas. Without a name, the last of [`PRESETS`]. Options are `name=on`, `name=off` or
    /// `name=value`; a name alone stands for `name=on`.
    ///
    /// What the preset has and an option takes the base from goes with it: `full,intremap=off` has no extended
    /// interrupts either. What is asked for by name stays, and fails without its base.
    ///
    /// # Errors
    /// A name or value that does not exist, with all that do; or a feature without what it needs.
    pub fn parse(text: &str, platform: Platform) -> Result<Self, ProfileError> {
        let mut items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).peekable();
        let [.., default] = &PRESETS;
        let first = items.peek().copied().unwrap_or_default();
        let preset = match PRESETS.iter().find(|preset| preset.name == first) {
            // `svm` is an option, too; as the first word it is the preset.
            Some(preset) => {
                items.next();
                preset
            }
            None if first.is_empty() || first.contains('=') || is_option(first) => default,
            None => return Err(ProfileError::Preset(first.to_owned())),
        };
        let mut profile = (preset.make)(platform.host_address_width);
        if platform.five_level && profile.first_stage {
            profile = profile.with_address_width(57);
        }
        let mut pinned = Vec::new();
        for item in items {
            let name = apply(&mut profile, item)?;
            if pinned.contains(&name) {
                return Err(ProfileError::Twice(name));
            }
            pinned.push(name);
        }
        let profile = fit_width(profile, &pinned).settled_except(&pinned);
        check(&profile)?;
        Ok(profile)
    }
}

/// Width and number of levels of the first stage go together: whichever is given decides.
fn fit_width(mut profile: Profile, pinned: &[&str]) -> Profile {
    let (width, levels) = (pinned.contains(&AW_BITS.name), pinned.contains(&FS5LP.name));
    match (width, levels) {
        (true, false) => profile.five_level = profile.first_stage && profile.address_width == 57,
        (false, true) => profile.address_width = if profile.five_level { 57 } else { 48 },
        _ => {}
    }
    profile
}

/// Applies one `name=value`; the option's first name.
fn apply(profile: &mut Profile, item: &str) -> Result<&'static str, ProfileError> {
    let (name, value) = match item.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (item, None),
    };
    if let Some(switch) = find_switch(name) {
        switch.set(profile, read_switch(switch.name, value.unwrap_or("on"))?);
        return Ok(switch.name);
    }
    if let Some(number) = find_number(name) {
        number.set(profile, read_number(number, value.ok_or(ProfileError::NoValue(number.name))?)?);
        return Ok(number.name);
    }
    if name == SSLPS {
        let value = value.ok_or(ProfileError::NoValue(SSLPS))?;
        let found = PAGES.iter().find(|(text, _)| *text == value);
        let wrong = || ProfileError::Value { option: SSLPS, value: value.into(), possible: "4k, 2m or 1g" };
        profile.second_stage_pages = found.ok_or_else(wrong)?.1;
        return Ok(SSLPS);
    }
    Err(ProfileError::Option(name.to_owned()))
}

fn is_option(name: &str) -> bool {
    find_switch(name).is_some() || find_number(name).is_some() || name == SSLPS
}

fn find_number(name: &str) -> Option<&'static Number> {
    NUMBERS.iter().find(|number| number.name == name || number.aliases.contains(&name))
}

fn find_switch(name: &str) -> Option<&'static Switch> {
    SWITCHES.iter().find(|switch| switch.name == name || switch.aliases.contains(&name))
}

fn read_switch(option: &'static str, value: &str) -> Result<bool, ProfileError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ProfileError::Value { option, value: value.into(), possible: "on or off" }),
    }
}

fn read_number(number: &Number, value: &str) -> Result<u32, ProfileError> {
    let read: Option<u32> = value.parse().ok().filter(|value| (number.fits)(*value));
    let (option, possible) = (number.name, number.possible);
    read.ok_or_else(|| ProfileError::Value { option, value: value.into(), possible })
}

#[cfg(test)]
mod tests {
    use super::super::fields::LargestPage;
    use super::super::options::names;
    use super::*;
    use proptest::prelude::*;
    use proptest::{collection, sample};

    const FOUR: Platform = Platform { host_address_width: 46, five_level: false };
    const FIVE: Platform = Platform { five_level: true, ..FOUR };

    fn error(text: &str) -> String {
        Profile::parse(text, FOUR).unwrap_err().to_string()
    }

    /// (text, profile)
    #[test]
    fn texts_name_profiles() {
        let full = Profile::full(46);
        let rows = [
            ("", full),
            ("full", full),
            (" full , ", full),
            ("svm", Profile::svm(46)),
            ("legacy", Profile::legacy(46)),
            ("scalable,pasid-bits=16", Profile { pasid_bits: 16, ..Profile::scalable(46) }),
            ("svm=off", Profile { page_requests: false, stop_marker: false, ..full }),
            ("svm,prs=off", Profile { page_requests: false, stop_marker: false, ..Profile::svm(46) }),
            ("legacy,caching-mode", Profile { caching_mode: true, ..Profile::legacy(46) }),
            ("legacy,sslps=2m", Profile { second_stage_pages: LargestPage::TwoMib, ..Profile::legacy(46) }),
            ("legacy,aw-bits=39", Profile::legacy(46).with_address_width(39)),
            ("svm,aw-bits=57", Profile::svm(46).with_address_width(57)),
            ("svm,fs5lp=on", Profile::svm(46).with_address_width(57)),
            ("scalable,aw-bits=57", Profile::scalable(46).with_address_width(57)),
            (
                "svm,scalable-mode=off",
                Profile { second_stage_pages: LargestPage::FourKib, page_drain: true, ..Profile::legacy(46) },
            ),
            ("legacy,qi=off", Profile { queued_invalidation: false, ..Profile::legacy(46) }.settled()),
        ];
        for (text, expected) in rows {
            assert_eq!(Profile::parse(text, FOUR), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_first_stage_follows_the_cpus_unless_told() {
        for (text, address_width, five_level) in [
            ("svm", 57, true),
            ("svm,fs5lp=off", 48, false),
            ("svm,aw-bits=48", 48, false),
            ("legacy", 48, false),
            ("scalable", 48, false),
        ] {
            let profile = Profile::parse(text, FIVE).unwrap();
            assert_eq!((profile.address_width, profile.five_level), (address_width, five_level), "{text}");
        }
    }

    /// (text, what the error says)
    #[test]
    fn mistakes_are_named_with_what_is_possible() {
        for (text, expected) in [
            ("modern", "no preset is called 'modern'; give one of legacy, scalable, svm, full"),
            ("full,colour=red", "no option is called 'colour'; give one of scalable-mode, "),
            ("colour=red", "no option is called 'colour'; "),
            ("full,svm,full", "no option is called 'full'; "),
            ("full,eim=maybe", "eim cannot be 'maybe'; give on or off"),
            ("full,pasid-bits", "pasid-bits has no value; give pasid-bits=VALUE"),
            ("aw-bits", "aw-bits has no value"),
            ("full,aw-bits=40", "aw-bits cannot be '40'; give 39, 48 or 57"),
            ("full,mamv=-1", "mamv cannot be '-1'; give 0 to 51"),
            ("full,sslps=1m", "sslps cannot be '1m'; give 4k, 2m or 1g"),
            ("full,sslps", "sslps has no value"),
            ("full,prs=on,svm=on", "svm is given twice"),
            ("legacy,svm=on", "svm needs scalable-mode=on; give scalable-mode=on too, or leave out svm"),
            ("legacy,fsts=on", "fsts needs scalable-mode=on"),
            ("legacy,scalable-mode=on", "scalable-mode needs fsts=on or ssts=on"),
            ("legacy,pasid-bits=8", "pasid-bits needs scalable-mode=on"),
            ("full,device-iotlb=off,svm=on", "svm needs device-iotlb=on"),
            ("full,intremap=off,eim=on", "eim needs intremap=on"),
            ("svm,nest=on", "nest needs ssts=on"),
            ("svm,aw-bits=39", "fsts needs aw-bits=48 or aw-bits=57"),
            ("svm,aw-bits=48,fs5lp=on", "fs5lp needs aw-bits=57"),
            ("svm,aw-bits=57,fs5lp=off", "aw-bits=57 needs fs5lp=on"),
            ("full,rwbf=on", "scalable-mode needs rwbf=off"),
            ("full,dma-drain=off", "scalable-mode needs dma-drain=on"),
            ("full,qi=off", "scalable-mode needs qi=on"),
            ("svm,fsts=off", "scalable-mode needs fsts=on or ssts=on"),
        ] {
            assert!(error(text).starts_with(expected), "{text}: {}", error(text));
        }
    }

    #[test]
    fn no_two_options_share_a_name() {
        let aliases = SWITCHES.iter().flat_map(|switch| switch.aliases);
        let numbers = NUMBERS.iter().flat_map(|number| number.aliases);
        let all: Vec<&str> = names().chain(aliases.chain(numbers).copied()).collect();
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len(), "{all:?}");
        let help = super::super::help();
        assert!(names().all(|name| help.contains(&format!("\n{name}="))), "{help}");
    }

    /// One item: a name that exists or not, with a value that fits or not.
    fn item() -> impl Strategy<Value = String> {
        let known: Vec<&str> =
            names().chain(PRESETS.map(|preset| preset.name)).chain(["colour", ""]).collect();
        let values = ["on", "off", "0", "16", "18", "39", "48", "57", "2m", "1g", "maybe", ""];
        (sample::select(known), sample::select(values.to_vec()))
            .prop_map(|(name, value)| format!("{name}={value}"))
    }

    proptest! {
        /// Whatever is accepted makes a unit, and settling it changes nothing.
        #[test]
        fn what_is_accepted_is_possible(
            preset in sample::select(PRESETS.map(|preset| preset.name).to_vec()),
            items in collection::vec(item(), 0..6),
            five_level: bool,
        ) {
            let text = format!("{preset},{}", items.join(","));
            if let Ok(profile) = Profile::parse(&text, Platform { host_address_width: 46, five_level }) {
                prop_assert!(crate::Capability::new(&profile).is_ok());
                prop_assert_eq!(profile.settled(), profile);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let read = Profile::parse(&text, FOUR);
            prop_assert!(read.is_ok() || !read.unwrap_err().to_string().is_empty());
        }
    }
}
