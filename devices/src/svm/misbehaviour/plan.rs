//! What is to go wrong, how often, and the text that says so: `KIND[:COUNT|:1/N][@ARGUMENT]`.

use super::kind::Kind;

/// Largest count, and largest N of one in N: what a register holds.
pub const MOST: u32 = 0xff_ffff;

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum How {
    /// Never.
    #[default]
    Off,
    /// Every time.
    Always,
    /// The next times, then never.
    Count(u32),
    /// Once in so many times, on average.
    OneIn(u32),
}

impl How {
    /// Whether it can happen.
    #[must_use]
    pub fn is_on(self) -> bool {
        !matches!(self, Self::Off | Self::Count(0) | Self::OneIn(0))
    }
}

/// How often, and with which argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// How often.
    pub how: How,
    /// Argument, inside the range of its kind.
    pub argument: u32,
}

impl Setting {
    /// With the argument brought into the kind's range.
    #[must_use]
    pub fn new(kind: Kind, how: How, argument: u32) -> Self {
        let range = &kind.argument().range;
        Self { how, argument: argument.clamp(*range.start(), *range.end()) }
    }
}

/// What goes wrong from power-on on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Seed of the dice.
    pub seed: u32,
    settings: [Setting; Kind::COUNT],
}

/// A text that is no misbehaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kind.
    #[error("no kind of misbehaviour")]
    Kind,
    /// How often.
    #[error("neither a count of 1 to {MOST} nor 1/N")]
    How,
    /// The argument.
    #[error("the argument ({}) is not one of {} to {}", .0.argument().meaning, .0.argument().range.start(), .0.argument().range.end())]
    Argument(Kind),
}

impl Plan {
    /// The setting of a kind.
    #[must_use]
    pub fn setting(&self, kind: Kind) -> Setting {
        self.settings[kind.index()]
    }

    /// Changes the setting of a kind.
    pub fn set(&mut self, kind: Kind, setting: Setting) {
        self.settings[kind.index()] = setting;
    }

    /// Adds what a text says.
    ///
    /// # Errors
    /// It says nothing that can be.
    pub fn add(&mut self, text: &str) -> Result<(), PlanError> {
        let (rest, argument) = match text.split_once('@') {
            Some((rest, argument)) => (rest, Some(argument)),
            None => (text, None),
        };
        let (name, how) = match rest.split_once(':') {
            Some((name, how)) => (name, Some(how)),
            None => (rest, None),
        };
        let kind = Kind::of_name(name).ok_or(PlanError::Kind)?;
        let how = how.map_or(Ok(How::Always), |how| parse_how(how).ok_or(PlanError::How))?;
        let known = kind.argument();
        let argument = match argument.map(number) {
            None => known.default,
            Some(Some(argument)) if known.range.contains(&argument) => argument,
            Some(_) => return Err(PlanError::Argument(kind)),
        };
        self.set(kind, Setting { how, argument });
        Ok(())
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_how(text: &str) -> Option<How> {
    let count = |text: &str| text.parse().ok().filter(|count| (1..=MOST).contains(count));
    match text.strip_prefix("1/") {
        Some(times) => count(times).map(How::OneIn),
        None => count(text).map(How::Count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let late = |how, argument| Ok((Kind::LateInvalidation, Setting { how, argument }));
        let rows = [
            ("late-invalidation", late(How::Always, 50)),
            ("late-invalidation:3", late(How::Count(3), 50)),
            ("late-invalidation:1/20", late(How::OneIn(20), 50)),
            ("late-invalidation@900", late(How::Always, 900)),
            ("late-invalidation:1/20@0", late(How::OneIn(20), 0)),
            (
                "foreign-pasid:1@0x10000",
                Ok((Kind::ForeignPasid, Setting { how: How::Count(1), argument: 0x1_0000 })),
            ),
            ("late-invalidation@901", Err(PlanError::Argument(Kind::LateInvalidation))),
            ("late-invalidation@", Err(PlanError::Argument(Kind::LateInvalidation))),
            ("wrong-group@1", Err(PlanError::Argument(Kind::WrongGroup))),
            ("late-invalidation:", Err(PlanError::How)),
            ("late-invalidation:0", Err(PlanError::How)),
            ("late-invalidation:2/3", Err(PlanError::How)),
            ("late-invalidation:1/0", Err(PlanError::How)),
            ("late-invalidation:16777216", Err(PlanError::How)),
            ("late", Err(PlanError::Kind)),
            ("", Err(PlanError::Kind)),
        ];
        for (text, expected) in rows {
            let mut plan = Plan::default();
            let added = plan.add(text);
            match expected {
                Err(error) => assert_eq!((added, plan), (Err(error), Plan::default()), "{text}"),
                Ok((kind, setting)) => {
                    assert_eq!((added, plan.setting(kind)), (Ok(()), setting), "{text}");
                    plan.set(kind, Setting::default());
                    assert_eq!(plan, Plan::default(), "{text}: and no other");
                }
            }
        }
    }
}
