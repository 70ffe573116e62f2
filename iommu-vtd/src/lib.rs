//! Intel VT-d model.
#![forbid(unsafe_code)]
