//! Hugging Face folders.

/// `config.json` and its companions.
#[derive(Debug, Clone, Default)]
pub struct HfMetadata {
    /// `config.json`.
    pub config: serde_json::Value,
}
