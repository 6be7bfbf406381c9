//! A model as data: a flat list of operations over named buffers.
//!
//! An architecture (`crate::arch`) emits a [`Plan`]; an executor (`crate::exec`) runs it. The plan knows no device and
//! the executors know no architecture. What lives here: the vocabulary ([`op`]), rotary tables ([`rope`]), cost
//! (bytes and FLOPs of an op, [`cost`]) and the pretty printer ([`print`]).
//!
//! # How the families of the field map to it
//! | family | what it adds to the ops below |
//! |---|---|
//! | llama, mistral, qwen2, qwen3, gemma3 | nothing: these are the ops here |
//! | gemma, gemma2, granite, smollm3, exaone4, olmo2, cohere, glm4, phi, gpt2 … | nothing or an `Act`: scales, softcaps, windows a layer, norms elsewhere, parallel blocks (two branches read one buffer), partial rotary, biases are fields and op order |
//! | mixtral, qwen3_moe, olmoe, gpt_oss, deepseek | one op `Moe` (router, top-k, expert weights as one 3-D tensor) |
//! | deepseek MLA | `Linear` + `Norm` + `Rope` on column ranges of a buffer; [`KvSpec`] with `k_dim != v_dim` |
//! | mamba2, falcon_h1, lfm2, qwen3_next, minimax | ops `Conv1d`, `Ssm`/`LinearAttention` and a per-sequence state beside [`KvSpec`] |
//! | bert, modernbert, xlm_roberta | `Embed` of positions and types, [`Mask::Bidirectional`], op `Pool` |

pub mod cost;
pub mod op;
pub mod print;
pub mod rope;

pub use op::{
    Act, Buffer, BufferId, Columns, KvId, KvSpec, Mask, NormKind, Op, OutputKind, Plan, RopeId, Rows, Weight, WeightId,
};
pub use rope::{RopeScaling, RopeSpec, RopeStyle};
