//! Which models there are, what they are called, and which are loaded.
