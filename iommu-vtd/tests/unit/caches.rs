//! What the unit and its ports remember, and which invalidation makes them forget what.
//!
//! All of it is seen from outside: an entry is cut off in memory, and a request that still goes ahead tells that it
//! was cached.

mod behaviour;
mod history;
mod legacy;
mod scalable;
mod world;
