//! What the origin's side promises, shown on real trees.

mod image;
mod metadata;
mod publishing;
mod support;
