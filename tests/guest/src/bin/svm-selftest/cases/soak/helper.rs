//! A thread that takes pages away while a device works beside them.

use std::io;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::Result;

use crate::sys::{Mapping, PAGE, Protection};

/// How pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    /// The kernel drops them.
    Discard,
    /// Another mapping takes their place.
    Replace,
    /// They may not be reached for a moment, and are what they were afterwards.
    Protect,
}

/// What the thread is asked to do.
pub(super) struct Chore {
    /// Whose pages.
    pub(super) memory: Arc<Mapping>,
    /// Which, in bytes.
    pub(super) range: Range<usize>,
    /// How they go.
    pub(super) taking: Taking,
}

impl Chore {
    /// Pages that are gone now.
    fn run(self) -> io::Result<usize> {
        let pages = self.range.len() / PAGE;
        match self.taking {
            Taking::Discard => self.memory.discard(self.range)?,
            Taking::Replace => self.memory.replace(self.range)?,
            Taking::Protect => {
                self.memory.protect(self.range.clone(), Protection::None)?;
                self.memory.protect(self.range, Protection::ReadWrite)?;
            }
        }
        Ok(pages)
    }
}

/// The thread; it ends when this is dropped.
pub(super) struct Helper {
    chores: mpsc::Sender<Chore>,
    reports: mpsc::Receiver<io::Result<usize>>,
}

impl Helper {
    /// Starts it.
    pub(super) fn start<'scope>(scope: &'scope thread::Scope<'scope, '_>) -> Self {
        let (chores, work) = mpsc::channel::<Chore>();
        let (report, reports) = mpsc::channel();
        scope.spawn(move || {
            for chore in work {
                if report.send(chore.run()).is_err() {
                    break;
                }
            }
        });
        Self { chores, reports }
    }

    /// Gives it something to do.
    pub(super) fn ask(&self, chore: Chore) -> Result<()> {
        Ok(self.chores.send(chore)?)
    }

    /// Waits for one chore's end; how many pages it took away.
    pub(super) fn report(&self) -> Result<usize> {
        Ok(self.reports.recv()??)
    }
}
