//! Engines, and who gets the next one (section 5.3).
//!
//! What moves data is a queue's thread; an engine is its right to do so for one session. Threads that want one while
//! all are in use get them in the order of their *passes*: a queue's pass goes forward by what it moved, divided by its
//! weight, so the one that is furthest behind its share is next. A queue that comes back after a rest starts where the
//! others are and has no claim for the past.

use parking_lot::{Condvar, Mutex};

use super::spec::{MAX_ENGINES, MAX_QUEUES};

const QUEUES: usize = MAX_QUEUES as usize;
const _: () = assert!(QUEUES <= u32::BITS as usize, "each has a bit in `Shares::waiting`");
/// What a piece costs besides its bytes.
const PIECE_BYTES: u64 = 4096;
/// Passes of the highest weight still go forward by a number that is exact enough.
const SCALE: u64 = 256;

/// Who gets the next engine. **Pure**: no lock, no thread.
#[derive(Clone, Debug)]
pub struct Shares {
    engines: usize,
    in_use: usize,
    /// A bit for each queue.
    waiting: u32,
    passes: [u64; QUEUES],
    /// The pass of the last one that got an engine.
    now: u64,
}

impl Shares {
    /// Nobody wants any of these engines.
    #[must_use]
    pub fn new(engines: usize) -> Self {
        Self { engines, in_use: 0, waiting: 0, passes: [0; QUEUES], now: 0 }
    }

    /// A queue wants an engine, after it moved `bytes` with its last one, with this weight.
    pub fn want(&mut self, queue: usize, bytes: u64, weight: u64) {
        let cost = bytes.saturating_add(PIECE_BYTES).saturating_mul(SCALE) / weight.max(1);
        let pass = self.passes[queue].saturating_add(cost);
        self.passes[queue] = pass.max(self.now);
        self.waiting |= 1 << queue;
    }

    /// Gives an engine to the one that is furthest behind, if there is an engine and one that wants it.
    pub fn give(&mut self) -> Option<usize> {
        if self.waiting == 0 || self.in_use >= self.engines {
            return None;
        }
        let wants = |queue: &usize| self.waiting & 1 << queue != 0;
        let next = (0..QUEUES).filter(wants).min_by_key(|&queue| self.passes[queue])?;
        self.waiting &= !(1 << next);
        self.in_use += 1;
        self.now = self.now.max(self.passes[next]);
        Some(next)
    }

    /// An engine comes back.
    pub fn take_back(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// Engines in use from now on; those that are too many are given no more when they come back.
    pub fn resize(&mut self, engines: usize) {
        self.engines = engines;
    }
}

struct State {
    shares: Shares,
    /// Has been given an engine and has not seen it yet.
    granted: [bool; QUEUES],
}

/// The engines.
pub struct Engines {
    count: usize,
    state: Mutex<State>,
    /// One per queue.
    granted: [Condvar; QUEUES],
}

/// One engine, until dropped. Never held while waiting for a guest.
pub struct Engine<'a>(&'a Engines);

impl Engines {
    /// This many, all of them in use.
    #[must_use]
    pub fn new(count: u8) -> Self {
        let count = usize::from(count.clamp(1, MAX_ENGINES));
        let state = Mutex::new(State { shares: Shares::new(count), granted: [false; QUEUES] });
        Self { count, state, granted: std::array::from_fn(|_| Condvar::new()) }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u8 {
        // Lossless: at most MAX_ENGINES.
        u8::try_from(self.count).unwrap_or(MAX_ENGINES)
    }

    /// ENGINES.
    #[must_use]
    pub fn used(&self) -> u32 {
        u32::try_from(self.state.lock().shares.engines).unwrap_or(u32::MAX)
    }

    /// Writes ENGINES.
    pub fn use_only(&self, engines: u8) {
        let mut state = self.state.lock();
        state.shares.resize(usize::from(engines).clamp(1, self.count));
        self.hand_out(&mut state);
    }

    /// Waits for an engine. `bytes` were moved with the last one.
    pub fn acquire(&self, queue: usize, bytes: u64, weight: u64) -> Engine<'_> {
        let mut state = self.state.lock();
        state.shares.want(queue, bytes, weight);
        self.hand_out(&mut state);
        while !std::mem::take(&mut state.granted[queue]) {
            self.granted[queue].wait(&mut state);
        }
        Engine(self)
    }

    fn hand_out(&self, state: &mut State) {
        while let Some(queue) = state.shares.give() {
            state.granted[queue] = true;
            self.granted[queue].notify_one();
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.shares.take_back();
        self.0.hand_out(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes moved by queues that always want more, after so many pieces.
    fn moved(weights: &[u64], piece: u64, pieces: usize) -> Vec<u64> {
        let mut shares = Shares::new(1);
        let mut moved = vec![0; weights.len()];
        for (queue, weight) in weights.iter().enumerate() {
            shares.want(queue, 0, *weight);
        }
        for _ in 0..pieces {
            let queue = shares.give().unwrap();
            assert_eq!(shares.give(), None, "one engine");
            moved[queue] += piece;
            shares.take_back();
            shares.want(queue, piece, weights[queue]);
        }
        moved
    }

    #[test]
    fn shares_are_in_proportion_to_weights() {
        let rows: [(&[u64], usize, &[u64]); 4] = [
            (&[1, 1], 1000, &[500, 500]),
            (&[3, 1], 1000, &[750, 250]),
            (&[16, 1], 1700, &[1600, 100]),
            (&[1, 2, 3, 4], 1000, &[100, 200, 300, 400]),
        ];
        for (weights, pieces, expected) in rows {
            for (moved, expected) in moved(weights, 1, pieces).iter().zip(expected) {
                assert!(moved.abs_diff(*expected) <= 2, "{weights:?}: {moved} pieces, {expected} due");
            }
        }
    }

    #[test]
    fn a_queue_that_rested_has_no_claim_for_the_past() {
        let mut shares = Shares::new(1);
        for _ in 0..100 {
            shares.want(0, 1 << 18, 1);
            assert_eq!(shares.give(), Some(0));
            shares.take_back();
        }
        let mut turns = [0_u32; 2];
        shares.want(0, 1 << 18, 1);
        shares.want(1, 0, 1);
        for _ in 0..100 {
            let queue = shares.give().unwrap();
            turns[queue] += 1;
            shares.take_back();
            shares.want(queue, 1 << 18, 1);
        }
        assert!(turns[0].abs_diff(turns[1]) <= 2, "{turns:?}");
    }

    proptest! {
        /// A naive count of turns: nobody waits for longer than the others' weights say.
        #[test]
        fn nobody_starves(weights in prop::collection::vec(1_u64..=16, 2..=16), sizes in prop::collection::vec(0_u64..=1 << 18, 400)) {
            let mut shares = Shares::new(1);
            let mut since = vec![0_u64; weights.len()];
            for (queue, weight) in weights.iter().enumerate() {
                shares.want(queue, 0, *weight);
            }
            // The dearest piece of a queue of weight 1, in the cheapest pieces of the others.
            let dearest = (1 << 18) / PIECE_BYTES + 1;
            let limit = 2 * weights.iter().map(|weight| weight * dearest + 1).sum::<u64>();
            for size in sizes {
                let queue = shares.give().unwrap();
                since.iter_mut().for_each(|turns| *turns += 1);
                since[queue] = 0;
                prop_assert!(since.iter().all(|turns| *turns <= limit));
                shares.take_back();
                shares.want(queue, size, weights[queue]);
            }
        }

        #[test]
        fn no_more_engines_are_given_than_there_are(engines in 1_usize..=4, steps in prop::collection::vec((0_usize..16, any::<bool>()), 0..200)) {
            let mut shares = Shares::new(engines);
            let mut busy = Vec::new();
            for (queue, back) in steps {
                if back && !busy.is_empty() {
                    busy.remove(0);
                    shares.take_back();
                } else if !busy.contains(&queue) && shares.waiting & 1 << queue == 0 {
                    shares.want(queue, 100, 1);
                }
                busy.extend(std::iter::from_fn(|| shares.give()));
                prop_assert!(busy.len() <= engines);
                let idle = shares.waiting != 0 && busy.len() < engines;
                prop_assert!(!idle, "an engine stands still while a queue wants one");
            }
        }
    }
}
