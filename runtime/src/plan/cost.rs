//! Bytes and FLOPs of an op.
