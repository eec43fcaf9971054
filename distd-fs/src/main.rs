//! distd-fs: mounts releases; also the helper `mount.fuse.distd`, by the name that it is called by.

use std::process::ExitCode;

fn main() -> ExitCode {
    distd_fs::cli::run()
}
