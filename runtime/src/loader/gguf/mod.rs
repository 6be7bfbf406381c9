//! GGUF v2 and v3, little endian.
//!
//! | module | what lives there |
//! |---|---|
//! | `scan` | the bounds-checked walk over a header: where everything lies, nothing believed |
//! | `splice` | the reader that feeds a scanned header to the `gguf-rs` crate without its arrays |
//! | `metadata` | [`GgufMetadata`]: typed getters over the key-value pairs |
//! | `strings` | [`StringArray`]: a vocabulary served from the mapping |
//! | `open` | files and split sets to metadata and tensor views |

mod metadata;
mod open;
mod scan;
mod splice;
mod strings;

pub use metadata::GgufMetadata;
pub(super) use open::{GgufFile, open, open_bytes, split_name};
pub use strings::StringArray;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
