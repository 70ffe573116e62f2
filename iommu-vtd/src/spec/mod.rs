//! The manual's tables as types: positions, names and constants, nothing else.

pub mod invalidation;
pub mod registers;
