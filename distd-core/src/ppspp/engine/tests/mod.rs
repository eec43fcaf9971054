//! The engine's promises, kept through its public surface in virtual time.

mod hostile;
mod net;
mod swarming;
mod transfer;
