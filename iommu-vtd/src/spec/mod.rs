//! The manual's tables as types: positions, names and constants, nothing else.

pub mod registers;
