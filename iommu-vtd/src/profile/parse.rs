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
