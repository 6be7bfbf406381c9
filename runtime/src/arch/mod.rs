//! Architectures: metadata to plan, one record each.
