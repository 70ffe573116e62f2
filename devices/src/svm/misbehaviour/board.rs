//! The switchboard: what is on, and whether it happens now.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use super::dice::Dice;
use super::kind::Kind;
use super::plan::{How, Plan, Setting};

/// One kind.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// What the plan says; its count is used up only once.
    planned: Setting,
    /// What the guest says instead.
    live: Option<Setting>,
    dice: Dice,
    happened: u32,
}

impl Slot {
    fn setting(&self) -> Setting {
        self.live.unwrap_or(self.planned)
    }

    /// Whether it happens this time.
    fn throw(&mut self) -> bool {
        let Setting { how, .. } = self.live.as_mut().unwrap_or(&mut self.planned);
        let happens = match how {
            How::Off => false,
            How::Always => true,
            How::Count(left) => {
                let some = *left > 0;
                *left = left.saturating_sub(1);
                some
            }
            How::OneIn(times) => self.dice.one_in(*times),
        };
        self.happened = self.happened.wrapping_add(u32::from(happens));
        happens
    }
}

struct Board {
    seed: u32,
    slots: [Slot; Kind::COUNT],
    /// What the guest wrote into the registers SELECT and ARGUMENT.
    select: u32,
    argument: u32,
}

impl Default for Misbehaviour {
    /// None.
    fn default() -> Self {
        Self::new(&Plan::default())
    }
}

/// The misbehaviour of one function. Its lock is a leaf, and not touched while nothing is on.
pub struct Misbehaviour {
    /// Bits of the kinds that are on.
    on: AtomicU32,
    /// The function is off the bus.
    gone: AtomicBool,
    /// Looks at its vendor until it is back; 0: it waits to be brought back.
    looks: AtomicU32,
    /// Held while the function leaves the bus and while it comes back.
    moving: Mutex<()>,
    seed: u32,
    board: Mutex<Board>,
}

impl Misbehaviour {
    /// As planned.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let mut slots = [Slot::default(); Kind::COUNT];
        for (slot, kind) in slots.iter_mut().zip(Kind::all()) {
            slot.planned = plan.setting(kind);
        }
        let board = Board { seed: plan.seed, slots, select: 0, argument: 0 };
        let misbehaviour = Self {
            on: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            looks: AtomicU32::new(0),
            moving: Mutex::default(),
            seed: plan.seed,
            board: Mutex::new(board),
        };
        misbehaviour.change(|board| board.sow(plan.seed));
        misbehaviour
    }

    /// Whether one of a set of kinds ([`Kind::bit`]) is on: one relaxed load.
    #[must_use]
    #[inline]
    pub fn any(&self, kinds: u32) -> bool {
        self.on.load(Ordering::Relaxed) & kinds != 0
    }

    /// Whether it happens this time; with its argument.
    #[must_use]
    #[inline]
    pub fn happens(&self, kind: Kind) -> Option<u32> {
        if self.any(kind.bit()) { self.throw(kind) } else { None }
    }

    #[cold]
    fn throw(&self, kind: Kind) -> Option<u32> {
        self.change(|board| {
            let slot = &mut board.slots[kind.index()];
            let argument = slot.setting().argument;
            slot.throw().then_some(argument)
        })
    }

    /// Function-level reset: what the guest switched is as planned again. Counts that are used up stay so, and a
    /// function that is gone stays gone.
    pub fn reset(&self) {
        self.change(|board| {
            for slot in &mut board.slots {
                (slot.live, slot.happened) = (None, 0);
            }
            (board.select, board.argument) = (0, 0);
            board.sow(self.seed);
        });
    }

    /// Switches a kind, in place of what is planned.
    pub fn switch(&self, kind: Kind, setting: Setting) {
        self.change(|board| board.slots[kind.index()].live = Some(setting));
    }

    /// Switches everything off, what is planned too.
    pub fn all_off(&self) {
        self.change(|board| board.slots.iter_mut().for_each(|slot| slot.live = Some(Setting::default())));
    }

    /// Starts all dice anew.
    pub fn sow(&self, seed: u32) {
        self.change(|board| board.sow(seed));
    }

    /// The kinds that are on.
    #[must_use]
    pub fn on(&self) -> u32 {
        self.on.load(Ordering::Relaxed)
    }

    /// The seed of the dice.
    #[must_use]
    pub fn seed(&self) -> u32 {
        self.board.lock().seed
    }

    /// How a kind is switched.
    #[must_use]
    pub fn setting(&self, kind: Kind) -> Setting {
        self.board.lock().slots[kind.index()].setting()
    }

    /// How often a kind happened since the last reset; wraps.
    #[must_use]
    pub fn happened(&self, kind: Kind) -> u32 {
        self.board.lock().slots[kind.index()].happened
    }

    /// The registers SELECT and ARGUMENT.
    #[must_use]
    pub(super) fn chosen(&self) -> (u32, u32) {
        let board = self.board.lock();
        (board.select, board.argument)
    }

    /// Writes SELECT; ARGUMENT becomes the one of that kind.
    pub(super) fn select(&self, select: u32) {
        let mut board = self.board.lock();
        board.select = select;
        board.argument = Kind::of_number(select).map_or(0, |kind| {
            let setting = board.slots[kind.index()].setting();
            if setting.how.is_on() { setting.argument } else { kind.argument().default }
        });
    }

    /// Writes ARGUMENT.
    pub(super) fn set_argument(&self, argument: u32) {
        self.board.lock().argument = argument;
    }

    fn change<R>(&self, change: impl FnOnce(&mut Board) -> R) -> R {
        let mut board = self.board.lock();
        let result = change(&mut board);
        let on = Kind::all().filter(|kind| board.slots[kind.index()].setting().how.is_on());
        self.on.store(on.fold(0, |set, kind| set | kind.bit()), Ordering::Relaxed);
        result
    }

    /// Whether the function is off the bus.
    #[must_use]
    #[inline]
    pub fn gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Takes the function off the bus until it was looked for so many times; 0: until it is brought back. `abandon`
    /// stops its work.
    pub fn vanish(&self, looks: u32, abandon: impl FnOnce()) {
        let _moving = self.moving.lock();
        self.looks.store(looks, Ordering::Relaxed);
        self.gone.store(true, Ordering::Release);
        abandon();
    }

    /// Somebody read the vendor of a function that is gone. True: this was the last look, it comes back.
    #[must_use]
    pub fn looked_for(&self) -> bool {
        let fewer = |looks: u32| looks.checked_sub(1);
        self.looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer) == Ok(1)
    }

    /// Puts the function on the bus again, if it is not there, after `reset` brought it into its power-on state.
    pub fn appear(&self, reset: impl FnOnce()) {
        let _moving = self.moving.lock();
        reset();
        self.gone.store(false, Ordering::Release);
    }
}

impl Board {
    fn sow(&mut self, seed: u32) {
        self.seed = seed;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.dice = Dice::new(seed, index);
        }
    }
}
