//! svmm.
fn main() {}
