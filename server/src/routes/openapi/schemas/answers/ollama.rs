//! Ollama's answers: whole, and line by line. Durations are nanoseconds.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::OllamaError;
use super::native::NativeAnswer;

/// Whose shapes are spoken.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaVersion)]
pub(in crate::routes::openapi) struct Version {
    version: String,
}

/// What a model's file says.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ModelDetails {
    /// Always empty.
    parent_model: String,
    /// `gguf` or `safetensors`; empty if the file can't be read.
    format: String,
    family: String,
    families: Vec<String>,
    /// Such as `134.52M`.
    parameter_size: String,
    quantization_level: String,
}

/// A model on the server's machine.
#[derive(Serialize, ToSchema)]
#[schema(as = TaggedModel)]
pub(in crate::routes::openapi) struct Tag {
    name: String,
    model: String,
    #[schema(required = true)]
    modified_at: Option<String>,
    /// Bytes of its files.
    size: u64,
    digest: String,
    details: ModelDetails,
}

/// Models on the server's machine.
#[derive(Serialize, ToSchema)]
#[schema(as = TaggedModels)]
pub(in crate::routes::openapi) struct Tags {
    models: Vec<Tag>,
}

/// A model in memory.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct RunningModel {
    name: String,
    model: String,
    #[schema(required = true)]
    modified_at: Option<String>,
    /// Bytes of its files.
    size: u64,
    digest: String,
    details: ModelDetails,
    /// When it goes if nobody asks for it.
    expires_at: String,
    /// 0: it is in the memory of the CPU.
    size_vram: u64,
    context_length: u64,
}

/// Models in memory.
#[derive(Serialize, ToSchema)]
#[schema(as = RunningModels)]
pub(in crate::routes::openapi) struct Running {
    models: Vec<RunningModel>,
}

/// Everything about a model.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ModelCard {
    modelfile: String,
    parameters: String,
    /// The chat template; empty if there is none.
    template: String,
    details: ModelDetails,
    /// The file's metadata.
    model_info: Map<String, Value>,
    /// What it can be asked for here: `completion` and `embedding`; nothing if it can't be loaded.
    capabilities: Vec<String>,
    #[schema(required = true)]
    modified_at: Option<String>,
}

/// What the model said.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaAnswerMessage {
    /// `assistant`.
    role: String,
    content: String,
}

/// An answer to a conversation, or a piece of one: the counts and times are where `done` is.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaChatAnswer {
    model: String,
    created_at: String,
    message: OllamaAnswerMessage,
    done: bool,
    /// `stop` or `length`; `load` or `unload` where nothing was asked.
    #[schema(nullable = false)]
    done_reason: Option<String>,
    #[schema(nullable = false)]
    total_duration: Option<u64>,
    #[schema(nullable = false)]
    load_duration: Option<u64>,
    #[schema(nullable = false)]
    prompt_eval_count: Option<u64>,
    #[schema(nullable = false)]
    prompt_eval_duration: Option<u64>,
    #[schema(nullable = false)]
    eval_count: Option<u64>,
    #[schema(nullable = false)]
    eval_duration: Option<u64>,
}

/// A line of a stream.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum ChatLine {
    Piece(OllamaChatAnswer),
    Failure(OllamaError),
}

/// An answer to a prompt, or a piece of one: the counts and times are where `done` is.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OllamaGenerateAnswer {
    model: String,
    created_at: String,
    response: String,
    done: bool,
    /// `stop` or `length`; `load` or `unload` where nothing was asked.
    #[schema(nullable = false)]
    done_reason: Option<String>,
    #[schema(nullable = false)]
    total_duration: Option<u64>,
    #[schema(nullable = false)]
    load_duration: Option<u64>,
    #[schema(nullable = false)]
    prompt_eval_count: Option<u64>,
    #[schema(nullable = false)]
    prompt_eval_duration: Option<u64>,
    #[schema(nullable = false)]
    eval_count: Option<u64>,
    #[schema(nullable = false)]
    eval_duration: Option<u64>,
}

/// A line of a stream.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum GenerateLine {
    Piece(OllamaGenerateAnswer),
    Failure(OllamaError),
}

/// An answer to a prompt in Ollama's shape or in Shimmy's own, as the request is.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::routes::openapi) enum GenerateAnswer {
    Ollama(OllamaGenerateAnswer),
    Native(NativeAnswer),
}

/// Vectors of texts.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct EmbedAnswer {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
}

/// The vector of a text.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OldEmbeddingsAnswer {
    embedding: Vec<f32>,
}
