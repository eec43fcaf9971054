//! What the command line may say.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use distd_core::manifest::PeerAddress;
use distd_core::size::parse_rate;

use crate::publish::{LEVEL_DEFAULT, LEVEL_MAX};

/// Publishes trees of files as releases that machines mount, fetching only what they read.
#[derive(Debug, Parser)]
#[command(name = "distd-origin", version, arg_required_else_help = true, propagate_version = true)]
pub(super) struct Arguments {
    /// The repository's directory
    #[arg(
        long, global = true, value_name = "DIR", env = "DISTD_REPO",
        default_value = "/var/lib/distd/origin", value_hint = ValueHint::DirPath
    )]
    pub(super) repo: PathBuf,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print only errors and what was asked for
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Print more (twice: even more)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a repository: a key and an empty log
    Init {
        /// Where nodes will find this origin (default: this machine's name); may be repeated
        #[arg(long, value_name = "HOST:PORT")]
        address: Vec<PeerAddress>,
        /// Where the recovery key goes, to be kept offline (default: beside the repository)
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        recovery_key: Option<PathBuf>,
    },
    /// Publish a directory tree, or one file, as a release
    Publish {
        /// The tree, or the file
        #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
        source: PathBuf,
        /// The track that moves to the new release
        #[arg(long, value_name = "TRACK")]
        track: String,
        /// The new release's version
        #[arg(long, value_name = "VERSION")]
        release: String,
        /// What to say about it
        #[arg(short, long, value_name = "TEXT")]
        message: Option<String>,
        /// How hard to compress (more costs time here, saves bytes on every machine)
        #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT,
              value_parser = clap::value_parser!(i32).range(1..=i64::from(LEVEL_MAX)))]
        level: i32,
        /// Find out what it would come to, and write nothing
        #[arg(long)]
        dry_run: bool,
        /// What the release is first used for, as `distd-fs trace` printed it: nodes may fetch that first
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        profile: Option<PathBuf>,
    },
    /// Serve what was published, and announce what is published meanwhile
    Serve {
        /// UDP address and port (default: all addresses, port 7574; port 0: any free one)
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,
        /// Send at most so many bytes of data a second, such as 10M (default: no limit)
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        upload: Option<NonZeroU64>,
    },
    /// List tracks and releases
    List,
    /// Show one release
    Show {
        /// VERSION, TRACK@VERSION, or TRACK for its current release
        #[arg(value_name = "RELEASE")]
        release: String,
    },
    /// Name the files that differ between two releases, and the bytes
    Diff {
        /// The older release
        #[arg(value_name = "A")]
        from: String,
        /// The newer release
        #[arg(value_name = "B")]
        to: String,
        /// Say, too, what a machine on A fetches for B
        #[arg(long)]
        cost: bool,
    },
    /// Write a release as one EROFS image that needs nothing else
    ExportErofs {
        /// VERSION, TRACK@VERSION, or TRACK for its current release
        #[arg(value_name = "RELEASE")]
        release: String,
        /// The image
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Check every byte, hash and signature of the log, and every release
    Verify,
    /// Let a track stand at an older release again
    Rollback {
        #[command(flatten)]
        track: TrackArgument,
        #[command(flatten)]
        release: ReleaseArgument,
    },
    /// Let old releases go, and give back the disk space that no other release needs
    Prune {
        /// Releases of each track that stay, the newest ones; the one at which a track stands stays
        /// always (default with --keep-track: 1)
        #[arg(long, value_name = "N", required_unless_present = "keep_track",
              value_parser = clap::value_parser!(u64).range(1..))]
        keep: Option<u64>,
        /// A track of which every release stays; may be repeated
        #[arg(long, value_name = "TRACK")]
        keep_track: Vec<String>,
        /// Find out what it would come to, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Write the file by which nodes join: what a .torrent is to BitTorrent
    Metainfo {
        #[command(flatten)]
        track: TrackArgument,
        /// Where nodes will find peers (default: as `init` was told); may be repeated
        #[arg(long, value_name = "HOST:PORT")]
        address: Vec<PeerAddress>,
        /// The file (default: TRACK.distd; - for standard output)
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// A track, by position or by name.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct TrackArgument {
    /// The track
    #[arg(value_name = "TRACK")]
    track: Option<String>,
    /// The track, by name
    #[arg(long = "track", value_name = "TRACK", hide = true)]
    track_option: Option<String>,
}

impl TrackArgument {
    pub(super) fn name(&self) -> &str {
        self.track.as_deref().or(self.track_option.as_deref()).unwrap_or_default()
    }
}

/// The release to go back to, by position or by name.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct ReleaseArgument {
    /// The version that it shall stand at
    #[arg(value_name = "VERSION")]
    release: Option<String>,
    /// The version, by name
    #[arg(long = "to", alias = "release", value_name = "VERSION", hide = true)]
    release_option: Option<String>,
}

impl ReleaseArgument {
    pub(super) fn name(&self) -> &str {
        self.release.as_deref().or(self.release_option.as_deref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn rollback_takes_positions_and_names() {
        for words in [
            ["distd-origin", "rollback", "stable", "1"].as_slice(),
            &["distd-origin", "rollback", "--track", "stable", "--to", "1"],
        ] {
            let arguments = Arguments::try_parse_from(words).expect("well-formed");
            let Command::Rollback { track, release } = arguments.command else {
                panic!("rollback")
            };
            assert_eq!((track.name(), release.name()), ("stable", "1"));
        }
    }
}
