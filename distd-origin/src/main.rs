//! `distd-origin`: publishes and serves releases.

use std::process::ExitCode;

fn main() -> ExitCode {
    distd_origin::cli::main()
}
