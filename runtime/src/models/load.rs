//! From a file to a model that answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use shimmy_kernels::cpu::CpuKernels;
use shimmy_kernels::cpu::kv::KV_LAYOUT;

use crate::config::{ModelConfig, SamplingDefaults};
use crate::engine::{Companions, Engine, EngineOptions, SamplingParams, kept_bytes};
use crate::error::{Error, Result};
use crate::exec::{ExecOptions, Executor, KvTypes, PrefixReuse, kv_bytes};
use crate::kv::{BLOCK_TOKENS, KvPool};
use crate::loader::{Metadata, ModelFile};
use crate::models::draft::{DraftOptions, LoadedDraft};
use crate::models::names;
use crate::models::pooling::ModelPooling;
use crate::models::registry::Servable;
use crate::models::stores::KvStores;
use crate::plan::{OutputKind, Plan};
use crate::text::{AddSpecial, ChatTemplate, GenerationPrompt, ParseSpecial, Tokenizer};

/// Touched at a time while a file is read ahead.
const PAGE_BYTES: usize = 4096;
/// A report every so many bytes.
const REPORT_BYTES: usize = 16 << 20;

/// What a load is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the weights into the page cache.
    Reading,
    /// Building the executor: choosing kernels, laying weights out for them.
    Preparing,
}

impl Stage {
    /// For a progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Preparing => "preparing",
        }
    }
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is done now.
    pub stage: Stage,
    /// Bytes done of this stage.
    pub done: u64,
    /// Bytes to do.
    pub total: u64,
}

/// Called from the loading thread.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to load.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// For the executor.
    pub exec: ExecOptions,
    /// For the engine.
    pub engine: EngineOptions,
    /// The model's name; `None`: from the path.
    pub name: Option<String>,
    /// Where its computed prompts go when it leaves memory.
    pub stores: KvStores,
    /// A draft model for it.
    pub draft: Option<DraftOptions>,
    /// Watches the load. With a watcher the weights are read ahead, so that what it sees is the disk's progress;
    /// without one the pages come in as they are first needed.
    pub progress: Option<ProgressFn>,
}

impl std::fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("exec", &self.exec)
            .field("engine", &self.engine)
            .field("name", &self.name)
            .field("stores", &self.stores)
            .field("draft", &self.draft)
            .finish_non_exhaustive()
    }
}

/// A model that answers.
pub struct LoadedModel {
    /// What clients call it.
    pub name: String,
    /// File or folder.
    pub path: PathBuf,
    /// Its numbers.
    pub config: ModelConfig,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// `None`: the file has none, so it can complete but not chat.
    pub template: Option<ChatTemplate>,
    /// Its thread.
    pub engine: Engine,
    /// What the model's makers recommend, over [`SamplingParams::default`].
    pub defaults: SamplingParams,
    /// How its embeddings are made.
    pub pooling: ModelPooling,
    /// What the KV cache takes once all of it has been used.
    pub kv_bytes: usize,
    /// The draft model that its engine has beside it.
    pub draft: Option<LoadedDraft>,
    /// To what its keys and values are rounded.
    pub kv_types: KvTypes,
    /// What computes it.
    pub executor: &'static str,
    /// Which of its layers run where, if that isn't one place.
    pub placement: Option<String>,
    /// Worker threads that it was given.
    pub threads: usize,
    /// How long the load took.
    pub load_time: Duration,
    keeps_on_disk: bool,
    /// The last field: it is dropped when all others are. (The engine's thread may end before or after that, and does the same.)
    _freed: GivesBack,
}

/// Gives the system back what was freed before it is dropped.
struct GivesBack;

impl Drop for GivesBack {
    fn drop(&mut self) {
        shimmy_kernels::memory::give_back();
    }
}

impl LoadedModel {
    /// Renders a conversation with the model's own template and encodes it. The template says which special tokens
    /// there are, so none is added (this is what the template's authors test with).
    ///
    /// `messages` is the array of the chat API; `extra` are further template variables.
    ///
    /// # Errors
    /// [`Error::Template`] when there is no template or it refuses the messages; [`Error::Tokenizer`].
    pub fn encode_chat(&self, messages: &Value, extra: &Map<String, Value>) -> Result<Vec<u32>> {
        self.encode_chat_begun(messages, extra, "")
    }

    /// [`encode_chat`](Self::encode_chat) with the beginning of the answer, which the model goes on from.
    ///
    /// # Errors
    /// Those of [`encode_chat`](Self::encode_chat).
    pub fn encode_chat_begun(&self, messages: &Value, extra: &Map<String, Value>, begun: &str) -> Result<Vec<u32>> {
        let text = self.render_chat(messages, extra)? + begun;
        self.tokenizer.encode(&text, AddSpecial::No, ParseSpecial::Yes)
    }

    /// The text of a conversation as the model wants it, up to where its answer starts.
    ///
    /// # Errors
    /// [`Error::Template`].
    pub fn render_chat(&self, messages: &Value, extra: &Map<String, Value>) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::Template(format!("`{}` has no chat template; use plain completion instead", self.name))
        })?;
        template.render(messages, None, GenerationPrompt::Yes, extra)
    }

    /// Encodes a plain prompt, with the special tokens that the model's vocabulary adds to every text (BOS). Special
    /// tokens written out in the text are taken as such.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes)
    }
}

/// A failed engine drops its executor at once; longer than this is a thread that hangs.
const RELEASE_TIME: Duration = Duration::from_secs(10);

impl Servable for LoadedModel {
    fn has_failed(&self) -> bool {
        self.engine.stop_reason().is_some()
    }

    fn wait_released(&self) {
        if !self.engine.wait_stopped(RELEASE_TIME) {
            tracing::warn!(model = self.name, "its engine still holds memory");
        }
    }

    fn is_busy(&self) -> bool {
        let stats = self.engine.stats();
        stats.running + stats.queued > 0
    }
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        self.engine.shutdown();
        // The process may be about to end.
        if self.keeps_on_disk {
            self.wait_released();
        }
    }
}

/// The files that keys and values depend on: those with the weights and, in a folder, the numbers beside them.
fn content_files(file: &ModelFile) -> Vec<PathBuf> {
    let mut files = file.parts().to_vec();
    if let Metadata::Hf(metadata) = &file.metadata {
        files.push(metadata.folder.join("config.json"));
    }
    files
}

/// All that keys and values in a block depend on beside the model: blocks of another layout are of no use.
fn kv_layout(executor: &dyn Executor, exec: &ExecOptions) -> String {
    let ExecOptions { kv_types: KvTypes { k, v }, activations, .. } = exec;
    let isa = CpuKernels::detect().isa().name();
    // Layers with a window in a pool of their own lie elsewhere in a block.
    let pools = if executor.limits().window.is_some() { "two pools" } else { "one pool" };
    let layout = executor.kv_layout();
    format!("{KV_LAYOUT} {BLOCK_TOKENS} {layout} {isa} {} {} {activations:?} {pools}", k.name(), v.name())
}

/// Opens, checks and starts the model at `path`.
///
/// # Errors
/// What is wrong with the file, what in it isn't supported, or what doesn't fit into memory.
pub fn load(path: &Path, options: &LoadOptions) -> Result<LoadedModel> {
    load_with(path, options, &crate::exec::build)
}

/// Builds executors: [`crate::exec::build`] but in tests.
pub type Build<'a> = dyn Fn(&Plan, &ExecOptions) -> Result<Box<dyn Executor>> + 'a;

/// [`load`] with another way to build the executors, the model's first and then the draft model's: for tests of what is built on a loaded model.
///
/// # Errors
/// Those of [`load`] and of `build`.
pub fn load_with(path: &Path, options: &LoadOptions, build: &Build<'_>) -> Result<LoadedModel> {
    let start = Instant::now();
    let name = options.name.clone().unwrap_or_else(|| names::from_path(path));
    let file = ModelFile::open(path)?;
    let (config, plan) = crate::arch::load(&file, OutputKind::Logits)?;
    let tokenizer = Arc::new(Tokenizer::for_model(&file)?);
    let template = ChatTemplate::for_model(&file, &tokenizer)?;
    let pooling = ModelPooling::of(&file.metadata)?;
    if let Some(progress) = &options.progress {
        read_ahead(&file, progress.as_ref());
        progress(Progress { stage: Stage::Preparing, done: 0, total: file.tensor_bytes() });
    }
    let executor = build(&plan, &options.exec)?;
    let limits = executor.limits();
    let kv_bytes = kv_bytes(&plan, &limits, executor.kv_types());
    tracing::info!(
        model = name,
        architecture = plan.architecture,
        executor = executor.name(),
        placement = executor.placement(),
        context = limits.max_context,
        kv_blocks = limits.num_kv_blocks,
        kv_window_blocks = limits.num_blocks(KvPool::Window),
        kv_types = %options.exec.kv_types,
        kv_mib = kv_bytes >> 20,
        "loaded in {:.0} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    if limits.max_context < plan.max_context {
        tracing::warn!(
            "{name}: the context is limited to {} of the model's {} tokens; --ctx sets it",
            limits.max_context,
            plan.max_context
        );
    }
    let layout = kv_layout(&*executor, &options.exec);
    let (executor_name, placement) = (executor.name(), executor.placement().map(str::to_owned));
    let threads = options.exec.threads.unwrap_or_else(shimmy_kernels::cpu::topology::default_workers);
    let store = options.stores.for_model(&name, &content_files(&file), &layout, kept_bytes(&*executor));
    let (draft, loaded_draft) = match &options.draft {
        None => (None, None),
        Some(draft) => {
            if executor.prefix_reuse() == PrefixReuse::DependsOnLength {
                tracing::warn!("{name}: its keys depend on the length of the text, so nothing is guessed");
            }
            let (draft, loaded) = super::draft::load(draft, &options.exec, &tokenizer, &limits, build)?;
            (Some(draft), Some(loaded))
        }
    };
    let companions = Companions { draft, store };
    let engine = Engine::start_with(&name, executor, companions, tokenizer.clone(), options.engine)?;
    let defaults = recommended(&config.defaults);
    let path = path.to_path_buf();
    let load_time = start.elapsed();
    let (kv_types, keeps_on_disk) = (options.exec.kv_types, options.stores.are_files());
    Ok(LoadedModel {
        name,
        path,
        config,
        tokenizer,
        template,
        engine,
        defaults,
        pooling,
        kv_bytes,
        draft: loaded_draft,
        kv_types,
        executor: executor_name,
        placement,
        threads,
        load_time,
        keeps_on_disk,
        _freed: GivesBack,
    })
}

/// The model's recommendations over the general defaults.
fn recommended(model: &SamplingDefaults) -> SamplingParams {
    let general = SamplingParams::default();
    SamplingParams {
        temperature: model.temperature.unwrap_or(general.temperature),
        top_k: model.top_k.unwrap_or(general.top_k),
        top_p: model.top_p.unwrap_or(general.top_p),
        min_p: model.min_p.unwrap_or(general.min_p),
        repeat_penalty: model.repeat_penalty.unwrap_or(general.repeat_penalty),
        ..general
    }
}

/// Touches every page of the weights once, in the order of the file.
fn read_ahead(file: &ModelFile, progress: &(dyn Fn(Progress) + Send + Sync)) {
    let total = file.tensor_bytes();
    let mut views: Vec<&[u8]> = file.tensors().map(|(_, view)| &*view.data).collect();
    views.sort_by_key(|bytes| bytes.as_ptr());
    let (mut done, mut sum) = (0u64, 0u8);
    for chunk in views.into_iter().flat_map(|bytes| bytes.chunks(REPORT_BYTES)) {
        sum = chunk.iter().step_by(PAGE_BYTES).fold(sum, |sum, byte| sum.wrapping_add(*byte));
        done += chunk.len() as u64;
        progress(Progress { stage: Stage::Reading, done, total });
    }
    std::hint::black_box(sum);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::loader::HfMetadata;

    #[test]
    fn a_folders_config_is_part_of_the_model() {
        let metadata = HfMetadata {
            folder: "/model".into(),
            config: json!({}),
            generation: None,
            tokenizer_config: None,
            chat_template: None,
        };
        let no_tensors = [&2_u64.to_le_bytes()[..], b"{}"].concat();
        let file = ModelFile::from_safetensors_bytes(no_tensors, metadata).unwrap();
        assert_eq!(content_files(&file), [Path::new("/model/config.json")]);
    }
}
