//! The one error type of this crate.

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a kernel's wrapper can refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice has another length than the shapes ask for.
    #[error("{what}: expected {expected} elements, got {got}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// From the shapes.
        expected: usize,
        /// From the slice.
        got: usize,
    },
    /// A row of this type must be a multiple of its block.
    #[error("{what}: {dtype} rows must be a multiple of {block} elements, got {got}")]
    RowLength {
        /// Which argument.
        what: &'static str,
        /// Type's name.
        dtype: &'static str,
        /// Elements in a block.
        block: usize,
        /// Elements in the row.
        got: usize,
    },
    /// No kernel computes on this type.
    #[error("no kernel computes on {dtype}; convert the file to one of: {known}")]
    NoKernel {
        /// Type's name.
        dtype: &'static str,
        /// Types with kernels.
        known: String,
    },
    /// No KV cache has elements of this type.
    #[error("no KV cache has elements of type `{got}`; there are {known}")]
    KvType {
        /// What was asked for.
        got: String,
        /// Names of the types.
        known: String,
    },
}
