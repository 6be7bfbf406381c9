//! Which models there are, what they are called, and which are loaded.
//!
//! | module | what lives there |
//! |---|---|
//! | [`draft`] | a draft model beside a model |
//! | [`names`] | from a path to a name, and from a wrong name to the nearest right ones |
//! | [`discover`] | walks the folders where models usually lie: plain, Hugging Face cache, Ollama store |
//! | [`summary`] | what a file says of itself, for `list` and `inspect`, without an architecture's help |
//! | [`pooling`] | how a model makes an embedding |
//! | [`load`](mod@load) | a file to a model that answers: tokenizer, template, executor, engine |
//! | [`registry`] | names to loaded models: loads on first use, each model once |
//! | [`stores`] | where computed prompts go when their model leaves memory |

pub mod discover;
pub mod draft;
pub mod load;
pub mod names;
pub mod pooling;
pub mod registry;
pub mod stores;
pub mod summary;

pub use discover::{Catalog, Discovered, Origin, default_roots};
pub use draft::{DraftOptions, LoadedDraft};
pub use load::{LoadOptions, LoadedModel, Progress, Stage, load};
pub use pooling::ModelPooling;
pub use registry::{KeepAlive, Life, Models, Servable};
pub use stores::KvStores;
pub use summary::Summary;
