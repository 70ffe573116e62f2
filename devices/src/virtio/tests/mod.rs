mod faults;
mod hostile;
mod requests;
mod resets;
mod rig;
mod transport;
