//! GGUF v2 and v3.

/// The key-value pairs of a GGUF header.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {}
