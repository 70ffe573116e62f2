//! What is said when the user got something wrong.

use std::fmt;

/// Something the user can put right: one line that names the thing, the reason and the remedy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// The thing that is wrong.
    pub(crate) thing: String,
    /// What is wrong with it.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Complaint {
    /// A complaint; control characters become spaces, so that it stays one line and does nothing to a terminal.
    pub(crate) fn new(
        thing: impl fmt::Display,
        reason: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        let line = |text: String| text.replace(char::is_control, " ");
        Self {
            thing: line(thing.to_string()),
            reason: line(reason.to_string()),
            remedy: line(remedy.to_string()),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.thing, self.reason, self.remedy)
    }
}

/// The chain of an error's reasons on one line.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}
