//! Tests of the endpoint, from the operations up to the whole function as a driver sees it.

mod disable;
mod engine;
mod misbehaviour;
mod operations;
mod page_requests;
mod random;
mod registers;
mod rig;
mod storm;
mod translation;
