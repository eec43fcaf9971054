//! How commands end: an exit code, and words that say what, where and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The exit codes of distd's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Something failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Bytes that are not what a signature or a checksum says.
    Unverified = 4,
    /// No source could be reached.
    Unreachable = 6,
    /// No such track, release, mount, file.
    NoSuch = 7,
    /// Somebody else has it.
    Busy = 8,
}

impl Exit {
    /// The exit code of a command.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit code of the mount helper, as mount(8) defines them.
    pub fn helper_code(self) -> u8 {
        match self {
            Self::Usage => 1,
            _ => 32,
        }
    }
}

/// Why a command fails: what a person is told, across processes. Modules below have structured errors;
/// this is where they become words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// The exit code.
    pub exit: Exit,
    /// One or several lines for people.
    pub message: String,
}

impl Complaint {
    /// A complaint with this code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// Something failed.
    pub fn failure(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failure, message)
    }

    /// The command line is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Complaint {}
