//! What an answer goes on from, in the protocols where it may be a conversation or a text.

use serde_json::{Map, Value, json};
use shimmy_runtime::models::LoadedModel;

use crate::error::ApiError;

/// What is to be gone on from.
#[derive(Debug, PartialEq)]
pub enum Prompt {
    /// A conversation as templates read it.
    Messages(Value),
    /// A text as it is.
    Raw(String),
    /// What the user says, and instructions before it: a conversation if the model has a template for one.
    Text {
        /// Instructions.
        system: Option<String>,
        /// What the user says.
        text: String,
    },
    /// Nothing: the model is to be loaded or unloaded.
    Empty,
}

impl Prompt {
    /// Its tokens; `variables` are further ones of the template.
    ///
    /// # Errors
    /// 400 when the template refuses it, or when it has instructions and the model no template.
    pub fn encode(&self, model: &LoadedModel, variables: &Map<String, Value>) -> Result<Vec<u32>, ApiError> {
        Ok(match self {
            Self::Messages(messages) => model.encode_chat(messages, variables)?,
            Self::Raw(text) => model.encode_text(text)?,
            Self::Text { system, text } if model.template.is_some() => {
                let system = system.iter().map(|text| json!({"role": "system", "content": text}));
                let messages: Value = system.chain([json!({"role": "user", "content": text})]).collect();
                model.encode_chat(&messages, variables)?
            }
            Self::Text { system: Some(_), .. } => {
                let message = "`system`: the model has no chat template, so it knows no instructions";
                return Err(ApiError::param("system", message));
            }
            Self::Text { system: None, text } => model.encode_text(text)?,
            Self::Empty => Vec::new(),
        })
    }
}
