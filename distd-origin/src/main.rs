//! distd-origin
fn main() {}
