//! The erofs view: the kernel itself mounts the log.
//!
//! ```text
//!   user's directory          EROFS, mounted by a helper process that holds no descriptor of /dev/fuse
//!        │  image   │ log
//!   hidden superblock         FUSE, in no mount table: the release's metadata image, and the log, as files
//!        │
//!   blocks of the node        the same reads as in the tree view
//! ```
//!
//! Lookups, listings, attributes and the page cache are the kernel's; only blocks that it lacks come to
//! the node. `hidden` is what the superblock holds, `reads` how its files are read, `superblock` makes it
//! known to the kernel, `checked` is what must hold of an image before it is mounted, `attach` is the helper, `site`
//! how a mount takes the place of another, `probe` finds out whether this kernel can be trusted with
//! it, `view` is a mount of a release and its switch to another one, `record` what a killed node leaves for the next.

mod adapter;
pub(crate) mod attach;
mod checked;
mod hidden;
mod mixed;
pub(crate) mod probe;
mod reads;
pub(crate) mod record;
pub(crate) mod site;
mod streams;
mod superblock;
mod view;

pub(crate) use hidden::Hidden;
pub(crate) use superblock::Superblock;
pub(crate) use view::{ErofsView, Exchange, Flags, Refusal, Showing};
