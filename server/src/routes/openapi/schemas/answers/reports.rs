//! What a bug report needs, and what this build supports.

use serde::Serialize;
use utoipa::ToSchema;

/// How the binary was built.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct BuildReport {
    cuda: bool,
    debug_assertions: bool,
    os: String,
    arch: String,
}

/// What computes.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CpuReport {
    #[schema(required = true)]
    name: Option<String>,
    features: Vec<String>,
    /// The kernels that were chosen.
    isa: String,
    #[schema(required = true)]
    available_threads: Option<u64>,
    default_workers: u64,
}

/// Bytes; null where the system doesn't tell.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct MemoryReport {
    #[schema(required = true)]
    total_bytes: Option<u64>,
    #[schema(required = true)]
    available_bytes: Option<u64>,
    #[schema(required = true)]
    resident_bytes: Option<u64>,
    #[schema(required = true)]
    peak_resident_bytes: Option<u64>,
}

/// How many.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ConnectionsReport {
    open: u64,
    total: u64,
}

/// Responses that ended alike.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct OutcomeCount {
    status: u16,
    /// The error's code.
    #[schema(required = true)]
    reason: Option<String>,
    count: u64,
}

/// What a socket may take.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct SocketReport {
    ping_seconds: f64,
    silence_seconds: f64,
    idle_seconds: f64,
    max_requests: u64,
    max_message_bytes: u64,
}

/// What is refused.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct LimitsReport {
    max_body_bytes: u64,
    stall_seconds: f64,
    head_seconds: f64,
    body_seconds: f64,
    websocket: SocketReport,
}

/// A model's KV cache.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct KvReport {
    types: String,
    bytes_when_full: u64,
    block_tokens: u64,
    blocks: u64,
    used_blocks: u64,
    cached_blocks: u64,
    window_blocks: u64,
    used_window_blocks: u64,
}

/// A model's requests.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct RequestsReport {
    running: u64,
    waiting: u64,
    completed: u64,
    cancelled: u64,
    failed: u64,
    preemptions: u64,
}

/// A model's tokens.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct TokensReport {
    prompt: u64,
    generated: u64,
    prefix_queries: u64,
    prefix_hits: u64,
}

/// A model in memory.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ModelReport {
    name: String,
    architecture: String,
    executor: String,
    /// Which layers run where; null: all in one place.
    #[schema(required = true)]
    placement: Option<String>,
    threads: u64,
    context_tokens: u64,
    max_step_tokens: u64,
    load_seconds: f64,
    /// Null: it stays.
    #[schema(required = true)]
    unloads_after_seconds: Option<f64>,
    chat_template: bool,
    #[schema(required = true)]
    draft_model: Option<String>,
    kv: KvReport,
    requests: RequestsReport,
    tokens: TokensReport,
    steps: u64,
    /// Why it stopped.
    #[schema(required = true)]
    failure: Option<String>,
}

/// What a bug report needs; no prompts, keys or paths.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Diagnosis {
    version: String,
    build: BuildReport,
    uptime_seconds: f64,
    /// `loading`, `ready` or `shutting down`.
    status: String,
    cpu: CpuReport,
    /// Whether there is a driver, and for which devices.
    cuda: String,
    memory: MemoryReport,
    #[schema(required = true)]
    open_files: Option<u64>,
    connections: ConnectionsReport,
    /// Those that run.
    generations: u64,
    responses: Vec<OutcomeCount>,
    limits: LimitsReport,
    /// Models on their way into memory.
    loading: Vec<String>,
    models: Vec<ModelReport>,
}

/// A device that computes.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct DeviceReport {
    kind: String,
    isa: String,
}

/// A field of requests, with its range if it has one.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct ParameterReport {
    name: String,
    #[schema(nullable = false)]
    min: Option<f64>,
    /// Null: there is no bound.
    max: Option<f64>,
}

/// How tokens can be drawn.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct SamplingReport {
    parameters: Vec<ParameterReport>,
    /// Those that other servers have; here they are errors.
    refused: Vec<String>,
}

/// A resource.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct EndpointReport {
    path: String,
    methods: Vec<String>,
}

/// What a request may take.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct CapabilityLimits {
    max_body_bytes: u64,
    max_answers: u64,
    max_stop_strings: u64,
    max_logit_biases: u64,
    websocket: SocketReport,
}

/// What this build supports.
#[derive(Serialize, ToSchema)]
pub(in crate::routes::openapi) struct Capabilities {
    version: String,
    formats: Vec<String>,
    architectures: Vec<String>,
    weight_types: Vec<String>,
    kv_types: Vec<String>,
    devices: Vec<DeviceReport>,
    sampling: SamplingReport,
    endpoints: Vec<EndpointReport>,
    limits: CapabilityLimits,
}
