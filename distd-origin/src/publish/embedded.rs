//! What a source says of itself that is an EROFS image.
//!
//! Its blocks are the log's, so that files in it which begin at blocks are shared with trees and with other
//! images. What does not is told: whoever made the image can have it otherwise.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use distd_erofs::{Image, Layout, ReadError};
use serde::Serialize;

use super::source::Source;

/// An image that is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EmbeddedImage {
    /// Regular files in it (names).
    pub files: u64,
    /// Those that are compressed.
    pub compressed_files: u64,
    /// Bytes of files that lie behind their inodes, at no block's beginning.
    pub inline_bytes: u64,
}

/// A file as the reader takes it.
struct Bytes {
    file: fs::File,
    len: u64,
}

impl distd_erofs::Source for Bytes {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// Looks into a source that is one file; `None` if it is no image that can be read. Nothing of what is
/// published depends on it.
pub(super) fn look(source: &Source) -> Option<EmbeddedImage> {
    source.only.as_ref()?;
    let file = fs::File::open(&source.path).ok()?;
    let len = file.metadata().ok()?.len();
    let bytes = Bytes { file, len };
    let image = Image::open(&bytes).ok()?;
    let mut found = EmbeddedImage::default();
    let walked = image.walk::<ReadError>(|_, inode| {
        if inode.is_file() {
            found.files += 1;
            found.compressed_files += u64::from(matches!(inode.layout, Layout::Compressed { .. }));
            found.inline_bytes += inode.inline_bytes();
        }
        Ok(())
    });
    walked.is_ok().then_some(found)
}

impl EmbeddedImage {
    /// In words.
    pub fn text(&self) -> String {
        let Self { files, compressed_files, inline_bytes } = self;
        let inside = format!("an EROFS image of {files} files, {compressed_files} compressed");
        match inline_bytes {
            0 => inside,
            _ => format!(
                "{inside}; {inline_bytes} bytes lie beside inodes and are shared with nothing: mkfs.erofs -Enoinline_data aligns them"
            ),
        }
    }
}
