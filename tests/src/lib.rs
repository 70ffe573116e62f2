//! Library half of the black-box tests.
