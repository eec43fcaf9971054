//! The engine's promises, kept through its public surface in virtual time.

mod audience;
mod conformance;
mod exchange;
mod hostile;
mod limited;
mod reports;
mod swarming;
mod transfer;
