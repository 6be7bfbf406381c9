//! The cpu executor.
