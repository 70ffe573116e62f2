//! Tests of the endpoint, from the operations up to the whole function as a driver sees it.

mod batches;
mod commands;
mod disable;
mod engine;
mod groups;
mod misbehaviour;
mod operations;
mod page_requests;
mod random;
mod registers;
mod rig;
mod shared;
mod sizes;
mod storm;
mod translation;
