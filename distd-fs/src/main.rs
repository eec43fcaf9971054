//! distd-fs
fn main() {}
