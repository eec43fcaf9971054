//! distd core
