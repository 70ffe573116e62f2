mod faults;
mod hostile;
mod line;
mod requests;
mod resets;
mod rig;
mod transport;
