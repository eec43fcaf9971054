//! `distd-origin`: publishes and serves releases.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Buffers of a hundred KiB come and go with every read: the C library gives their pages back each
/// time and faults them in again, which took an eighth of a transfer's CPU time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    distd_origin::cli::main()
}
