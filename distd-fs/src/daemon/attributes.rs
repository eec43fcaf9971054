//! What distd knows of a file: what the tree view answers as `user.distd.*`, for every view.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::Answer;
use crate::errno::Failure;
use crate::exit::{Complaint, Exit};
use crate::inode::ROOT;

use super::Daemon;
use super::mounted::Mounted;

/// What there is of it.
const NAMES: [&str; 7] = ["origin", "track", "version", "release", "blake3", "uids", "local"];
/// What an operation may take beyond its deadline.
const SLACK: Duration = Duration::from_secs(5);

impl Daemon {
    /// The attributes of the entry at a path on a mount.
    pub fn attributes(&self, path: &Path) -> Answer {
        let (mounted, below) = self.mount_of(path)?;
        let mut found = Found { mounted: &mounted, numbers: Vec::new() };
        let values = found.values(&below).map_err(|failure| {
            let exit = match failure {
                Failure::NoEntry | Failure::NotADirectory => Exit::NoSuch,
                _ => Exit::Unreachable,
            };
            Complaint::new(exit, format_args!("{}: {failure}", path.display()))
        })?;
        Ok(json!({ "path": path.display().to_string(), "attributes": values }))
    }
}

/// Inodes on the way to an entry, given back at the end.
struct Found<'a> {
    mounted: &'a Mounted,
    numbers: Vec<u64>,
}

impl Found<'_> {
    fn values(&mut self, below: &Path) -> Result<Value, Failure> {
        let fs = &self.mounted.fs;
        let mut number = ROOT;
        for part in below.components() {
            let Component::Normal(name) = part else { continue };
            let found = self.wait(|then| fs.lookup(number, name.as_bytes(), then))?;
            number = found.ok_or(Failure::NoEntry)?.number;
            self.numbers.push(number);
        }
        let mut values = serde_json::Map::new();
        for name in NAMES {
            let attribute = format!("user.distd.{name}");
            match self.wait(|then| fs.xattr(number, attribute.as_bytes(), then)) {
                Ok(value) => {
                    let text = String::from_utf8_lossy(&value).into_owned();
                    values.insert(name.to_owned(), json!(text));
                }
                Err(Failure::NoAttribute) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(Value::Object(values))
    }

    fn wait<T: Send + 'static>(
        &self,
        ask: impl FnOnce(Box<dyn FnOnce(Result<T, Failure>) + Send>),
    ) -> Result<T, Failure> {
        let (sender, receiver) = mpsc::sync_channel(1);
        ask(Box::new(move |outcome| {
            // Nobody listens any more only after the slack.
            let _ = sender.send(outcome);
        }));
        let patience = self.mounted.timeout + SLACK;
        receiver.recv_timeout(patience).unwrap_or(Err(Failure::Interrupted))
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        for number in self.numbers.drain(..).rev() {
            self.mounted.fs.forget(number, 1);
        }
    }
}
