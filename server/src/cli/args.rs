//! Arguments that several commands share: which model, how to run it, how to draw.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use shimmy_runtime::engine::{EngineOptions, SamplingParams, Speculation};
use shimmy_runtime::exec::{
    Activations, Backend, Device, ExecOptions, GpuLayers, GpuMemory, GpuOptions, KvSize, KvType, KvTypes, WeightMemory,
};
use shimmy_runtime::kv::store::folder::KvFolder;
use shimmy_runtime::models::{
    self, Catalog, Discovered, DraftOptions, KvStores, LoadOptions, LoadedModel, default_roots,
};

use super::failure::usage;
use super::progress::Bar;

/// Where to look for models.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct RootArgs {
    /// More folders with models, searched first; `:` or `;` between them. SHIMMY_MODEL_PATHS does the same.
    #[arg(long, value_name = "FOLDERS")]
    pub(super) model_dirs: Option<String>,
}

impl RootArgs {
    /// All roots, in the order of their search.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        let extra = self.model_dirs.as_deref().map(models::discover::split_paths).unwrap_or_default();
        default_roots(&extra, |name| std::env::var_os(name))
    }
}

/// Which executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum BackendArg {
    /// The fastest that can run the model.
    #[default]
    Auto,
    /// The fast one on the CPU.
    Cpu,
    /// The portable one that the fast ones are checked against.
    Candle,
    /// The one for NVIDIA GPUs. It has been checked on an emulated device only so far, and `auto` doesn't choose it.
    Cuda,
}

/// Arithmetic of quantised matmuls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ActivationsArg {
    /// Activations in blocks of int8: fast.
    #[default]
    Q8,
    /// f32: exact and slower.
    F32,
}

/// A size or a share of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GpuMemoryArg(GpuMemory);

impl FromStr for GpuMemoryArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            let size: ByteSize =
                text.parse().map_err(|error| format!("{error}; a size is written like 6GiB, a share like 80%"))?;
            return Ok(Self(GpuMemory::Bytes(usize::try_from(size.as_u64()).unwrap_or(usize::MAX))));
        };
        let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
        percent.map(|percent| Self(GpuMemory::Percent(percent))).ok_or_else(|| "a share is from 1% to 100%".to_owned())
    }
}

/// How to run a model.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "How to run the model")]
pub(super) struct ExecArgs {
    /// Which executor.
    #[arg(long, value_enum, default_value_t)]
    pub(super) backend: BackendArg,
    /// Which GPU, by its number in `shimmy gpu-info`; of several, such as 0,1, each gets layers in proportion to its free
    /// memory. `emulated` runs the GPU's code on the CPU, very slowly, to look for mistakes in it.
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', default_value = "0")]
    pub(super) device: Vec<Device>,
    /// How many of the last layers run on the GPU, with the output; the first ones run on the CPU, in the same step. `all`,
    /// or as many as fit into its memory: `auto`. llama.cpp's -ngl works, too.
    #[arg(long, visible_aliases = ["ngl", "n-gpu-layers"], value_name = "N|all|auto", default_value_t)]
    pub(super) gpu_layers: GpuLayers,
    /// Most of each GPU's memory that this process takes, weights, buffers and KV cache together, such as 6GiB or, of all
    /// that it has, 80% [default: what is free, but for 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub(super) gpu_memory: Option<GpuMemoryArg>,
    /// Worker threads [default: the physical cores this process may use].
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<NonZeroUsize>,
    /// Most tokens of one conversation [default: what the model was made for, as far as memory allows].
    #[arg(long, value_name = "TOKENS")]
    pub(super) ctx: Option<NonZeroUsize>,
    /// Arithmetic of matmuls with quantised weights.
    #[arg(long, value_enum, default_value_t)]
    pub(super) activations: ActivationsArg,
    /// Element type of the KV cache: f32, f16, q8_0 (int8 with a scale for 32 elements) or q4_0 (four bits, and it shows);
    /// two of them, such as q8_0,q4_0, are for keys and values.
    #[arg(long, visible_alias = "kv-quant", value_name = "TYPE[,TYPE]", default_value_t)]
    pub(super) kv: KvTypes,
    /// Of keys alone.
    #[arg(long, value_name = "TYPE", conflicts_with = "kv")]
    pub(super) cache_type_k: Option<KvType>,
    /// Of values alone.
    #[arg(long, value_name = "TYPE", conflicts_with = "kv")]
    pub(super) cache_type_v: Option<KvType>,
    /// Memory for the KV cache of all conversations, such as 2GiB [default: several full contexts, if they fit into a
    /// quarter of the memory].
    #[arg(long, value_name = "SIZE")]
    pub(super) kv_memory: Option<ByteSize>,
    /// The same in tokens.
    #[arg(long, value_name = "TOKENS", conflicts_with = "kv_memory")]
    pub(super) kv_tokens: Option<NonZeroUsize>,
    /// On the CPU: copy the weights into memory of their own, whose pages are huge: decoding is up to a quarter faster. As much memory is
    /// taken as the weights have, by each process [default: if they have at most a third of the memory that is free].
    #[arg(long, conflicts_with = "mmap")]
    pub(super) no_mmap: bool,
    /// Leave the weights in the mapped file, whose pages other processes share.
    #[arg(long)]
    pub(super) mmap: bool,
    /// Most tokens in one step of the engine: how long a long prompt can hold up the answers of others.
    #[arg(long, visible_alias = "step-budget", value_name = "TOKENS", default_value = "512")]
    pub(super) batch_tokens: Option<NonZeroUsize>,
}

impl ExecArgs {
    /// For the executor.
    pub(super) fn options(&self) -> ExecOptions {
        let defaults = ExecOptions::default();
        ExecOptions {
            backend: match self.backend {
                BackendArg::Auto => Backend::Auto,
                BackendArg::Cpu => Backend::Cpu,
                BackendArg::Candle => Backend::Candle,
                BackendArg::Cuda => Backend::Cuda,
            },
            gpu: GpuOptions {
                devices: if self.device.is_empty() { defaults.gpu.devices } else { self.device.clone() },
                layers: self.gpu_layers,
                memory: self.gpu_memory.map_or(GpuMemory::Free, |GpuMemoryArg(memory)| memory),
            },
            threads: self.threads.map(NonZeroUsize::get),
            max_context: self.ctx.map(NonZeroUsize::get),
            kv_size: match (self.kv_memory, self.kv_tokens) {
                (Some(size), _) => KvSize::Bytes(usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
                (None, Some(tokens)) => KvSize::Tokens(tokens.get()),
                (None, None) => KvSize::Auto,
            },
            window_kv: defaults.window_kv,
            max_step_tokens: self.batch_tokens.map_or(defaults.max_step_tokens, NonZeroUsize::get),
            activations: match self.activations {
                ActivationsArg::Q8 => Activations::Q8,
                ActivationsArg::F32 => Activations::F32,
            },
            weight_memory: match (self.no_mmap, self.mmap) {
                (true, _) => WeightMemory::Copied,
                (_, true) => WeightMemory::Mapped,
                _ => WeightMemory::Auto,
            },
            kv_types: KvTypes { k: self.cache_type_k.unwrap_or(self.kv.k), v: self.cache_type_v.unwrap_or(self.kv.v) },
        }
    }
}

/// What is computed once and for all.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "How to run the model")]
pub(super) struct KeepArgs {
    /// Keep computed prompts in this folder, so that they need not be computed again after a restart. Whoever can read
    /// its files can read the prompts; they are made for their owner only.
    #[arg(long, value_name = "FOLDER", env = "SHIMMY_KV_CACHE_DIR")]
    pub(super) kv_cache_dir: Option<PathBuf>,
    /// Most that all files in it take; those of models that were not used for longest go first [default: 8GiB].
    #[arg(long, value_name = "SIZE", requires = "kv_cache_dir")]
    pub(super) kv_cache_size: Option<ByteSize>,
}

impl KeepArgs {
    /// For the models.
    ///
    /// # Errors
    /// When there is no such folder and it can't be made.
    pub(super) fn stores(&self) -> anyhow::Result<KvStores> {
        let Some(path) = self.kv_cache_dir.clone() else { return Ok(KvStores::memory()) };
        let max_bytes = self.kv_cache_size.unwrap_or(ByteSize::gib(8)).as_u64();
        let folder = KvFolder { path, max_bytes };
        folder.create().map_err(|error| usage(format!("--kv-cache-dir: {error}")))?;
        Ok(KvStores::folder(folder))
    }
}

/// How the next tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SpeculateArg {
    /// Not at all.
    Off,
    /// What followed the last tokens when they occurred before.
    Ngram,
    /// What the draft model finds likeliest.
    Draft,
}

/// Several tokens of an answer in one step.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "How to guess tokens (it changes how fast answers come, not which)")]
pub(super) struct SpeculateArgs {
    /// How the next tokens are guessed, where it pays [default: draft with a draft model, else off].
    #[arg(long, value_enum, value_name = "HOW")]
    speculate: Option<SpeculateArg>,
    /// A smaller model with the same vocabulary, which guesses: a path or a name that `shimmy list` shows.
    #[arg(long, value_name = "MODEL")]
    draft_model: Option<String>,
    /// Most tokens that the draft model guesses at a time; fewer where they don't pay [default: 8].
    #[arg(long, value_name = "N", requires = "draft_model")]
    draft_tokens: Option<NonZeroUsize>,
}

impl SpeculateArgs {
    /// The engine's options with these.
    ///
    /// # Errors
    /// For `--speculate draft` without a draft model.
    pub(super) fn over(&self, engine: EngineOptions) -> anyhow::Result<EngineOptions> {
        let speculation = match (self.speculate, &self.draft_model) {
            (Some(SpeculateArg::Draft), None) => {
                return Err(usage("--speculate draft needs --draft-model: a smaller model with the same vocabulary"));
            }
            (Some(SpeculateArg::Draft) | None, Some(_)) => Speculation::Draft,
            (Some(SpeculateArg::Ngram), _) => Speculation::Ngram,
            (Some(SpeculateArg::Off), _) | (None, None) => Speculation::Off,
        };
        let draft_tokens = self.draft_tokens.map_or(engine.draft_tokens, NonZeroUsize::get);
        Ok(EngineOptions { speculation, draft_tokens, ..engine })
    }

    /// The draft model, if there is to be one.
    ///
    /// # Errors
    /// When it isn't found.
    pub(super) fn draft(&self, roots: &RootArgs) -> anyhow::Result<Option<DraftOptions>> {
        let Some(draft) = &self.draft_model else { return Ok(None) };
        let Discovered { path, name, .. } = find(draft, roots)?;
        Ok(Some(DraftOptions { path, name }))
    }
}

/// How to draw tokens. What isn't given comes from the model, else from the defaults.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "How to draw tokens (default: what the model recommends)")]
pub(super) struct SamplingArgs {
    /// Most tokens of an answer [default: to the end of the context].
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) max_tokens: Option<NonZeroUsize>,
    /// 0 always takes the most probable token.
    #[arg(short, long, value_name = "T")]
    pub(super) temperature: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    pub(super) top_k: Option<usize>,
    /// Keep the smallest set of tokens with this probability; 1 keeps all.
    #[arg(long, value_name = "P")]
    pub(super) top_p: Option<f32>,
    /// Drop tokens below this share of the best one's probability; 0 keeps all.
    #[arg(long, value_name = "P")]
    pub(super) min_p: Option<f32>,
    /// Penalty on repeated tokens; 1 is none.
    #[arg(long, value_name = "X")]
    pub(super) repeat_penalty: Option<f32>,
    /// How many tokens the repeat penalty looks back.
    #[arg(long, value_name = "N")]
    pub(super) repeat_last_n: Option<usize>,
    /// Penalty on tokens that occurred.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(super) presence_penalty: Option<f32>,
    /// Penalty on each occurrence of a token.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(super) frequency_penalty: Option<f32>,
    /// The same seed gives the same answer [default: random].
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// A text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(super) stop: Vec<String>,
}

impl SamplingArgs {
    /// What was given over what the model recommends.
    pub(super) fn over(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            logit_bias: defaults.logit_bias.clone(),
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(defaults.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            seed: self.seed.or(defaults.seed),
        }
    }
}

/// Finds the model that a person means by a path or a name.
///
/// # Errors
/// When there is none.
pub(super) fn find(model: &str, roots: &RootArgs) -> anyhow::Result<Discovered> {
    if model.is_empty() {
        return Err(usage("the model's name is empty; give a path or a name that `shimmy list` shows"));
    }
    Ok(Catalog::resolve(model, &roots.roots())?)
}

/// Loads it, with a progress bar if it is large.
///
/// # Errors
/// What is wrong with the file, or what doesn't fit.
pub(super) fn load(
    found: &Discovered,
    exec: &ExecArgs,
    keep: &KeepArgs,
    speculate: &SpeculateArgs,
    roots: &RootArgs,
) -> anyhow::Result<Arc<LoadedModel>> {
    let (engine, draft) = (speculate.over(EngineOptions::default())?, speculate.draft(roots)?);
    let bar = Bar::new(found.bytes);
    let options = LoadOptions {
        exec: exec.options(),
        engine,
        name: Some(found.name.clone()),
        stores: keep.stores()?,
        draft,
        progress: bar.watcher(),
    };
    Ok(Arc::new(models::load(&found.path, &options)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        exec: ExecArgs,
    }

    /// The types of the KV cache that these arguments ask for.
    fn kv_types(args: &[&str]) -> Result<String, String> {
        let command = Command::try_parse_from([&["shimmy"], args].concat()).map_err(|error| error.to_string())?;
        Ok(command.exec.options().kv_types.to_string())
    }

    #[test]
    fn gpus_get_layers_and_memory() {
        let gpu = |args: &[&str]| {
            let command = Command::try_parse_from([&["shimmy"], args].concat()).map_err(|error| error.to_string())?;
            Ok::<_, String>(command.exec.options().gpu)
        };
        assert_eq!(gpu(&[]), Ok(GpuOptions::default()));
        let devices = vec![Device::Index(1), Device::Emulated];
        let (layers, memory) = (GpuLayers::Last(7), GpuMemory::Bytes(6 << 30));
        let all = GpuOptions { devices, layers, memory };
        assert_eq!(gpu(&["--device", "1,emulated", "--gpu-layers", "7", "--gpu-memory", "6GiB"]), Ok(all));
        assert_eq!(gpu(&["--ngl", "all"]).unwrap().layers, GpuLayers::All);
        assert_eq!(gpu(&["--n-gpu-layers", "auto"]).unwrap().layers, GpuLayers::Auto);
        assert_eq!(gpu(&["--gpu-memory", "80%"]).unwrap().memory, GpuMemory::Percent(80));
        for (wrong, what) in [
            (["--gpu-memory", "101%"], "1% to 100%"),
            (["--gpu-memory", "much"], "6GiB"),
            (["--gpu-layers", "some"], "neither a number of layers"),
            (["--device", "0,"], "neither the number of a GPU"),
        ] {
            let error = gpu(&wrong).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn weights_are_copied_when_asked() {
        let memory = |args: &[&str]| {
            let command = Command::try_parse_from([&["shimmy"], args].concat()).map_err(|error| error.to_string())?;
            Ok::<_, String>(command.exec.options().weight_memory)
        };
        assert_eq!(memory(&[]), Ok(WeightMemory::Auto));
        assert_eq!(memory(&["--no-mmap"]), Ok(WeightMemory::Copied));
        assert_eq!(memory(&["--mmap"]), Ok(WeightMemory::Mapped));
        assert!(memory(&["--mmap", "--no-mmap"]).is_err());
    }

    #[test]
    fn keys_and_values_have_types_of_their_own() {
        for (args, types) in [
            (&[][..], "f16"),
            (&["--kv", "f32"], "f32"),
            (&["--kv", "q8_0,q4_0"], "q8_0,q4_0"),
            (&["--kv-quant", "q4_0"], "q4_0"),
            (&["--cache-type-k", "q8_0"], "q8_0,f16"),
            (&["--cache-type-v", "q4_0", "--cache-type-k", "q8_0"], "q8_0,q4_0"),
        ] {
            assert_eq!(kv_types(args).as_deref(), Ok(types), "{args:?}");
        }
        for wrong in [&["--kv", "q5_0"][..], &["--kv", "f16,"], &["--cache-type-k", "q8_0,q4_0"]] {
            let error = kv_types(wrong).unwrap_err();
            assert!(error.contains("there are f32, f16, q8_0, q4_0"), "{error}");
        }
        assert!(kv_types(&["--kv", "f16", "--cache-type-v", "q4_0"]).is_err(), "which of them?");
    }
}
