//! Tiny models of every family with exact outputs: each executor must give them, from safetensors and from GGUF, in any
//! chunking and whoever else is in the batch. A family that this build doesn't know prints SKIP; anything else fails.

#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(d <= bound)` also catches NaN, which is the point")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::support;
use safetensors::{Dtype, SafeTensors};
use shimmy_runtime::Error;
use shimmy_runtime::exec::{
    self, Activations, Backend, Device, ExecOptions, Executor, GpuOptions, KvSize, KvType, OutputRows, StepBatch,
    WeightMemory, WindowKv,
};
use shimmy_runtime::kv::BLOCK_TOKENS;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::plan::{OutputKind, Plan};

/// Against the golden: what float32 arithmetic reaches on these models with an order of magnitude to spare.
pub(super) const GOLDEN_TOLERANCE: f32 = 1e-3;
/// Against another way of feeding the same tokens: only the order of summation may differ.
const CHUNKING_TOLERANCE: f32 = 1e-4;
/// Rows of the KV pool: room for two sequences of the longest golden and its continuation.
const KV_TOKENS: usize = 512;

/// The executors under test, in the mode that computes in f32.
pub(super) fn executors() -> Vec<(&'static str, ExecOptions)> {
    let exact = |backend| ExecOptions {
        backend,
        gpu: GpuOptions::default(),
        threads: Some(2),
        max_context: Some(KV_TOKENS),
        kv_size: KvSize::Tokens(KV_TOKENS),
        window_kv: WindowKv::All,
        max_step_tokens: 256,
        activations: Activations::F32,
        kv_types: KvType::F32.into(),
        weight_memory: WeightMemory::Mapped,
    };
    let on_threads = |threads| ExecOptions { threads: Some(threads), ..exact(Backend::Cpu) };
    let on_device = |device: Device| ExecOptions { gpu: device.into(), ..exact(Backend::Cuda) };
    let mut all = vec![
        ("candle", exact(Backend::Candle)),
        ("cpu", on_threads(2)),
        ("cpu on 1 thread", on_threads(1)),
        ("cpu, weights copied", ExecOptions { weight_memory: WeightMemory::Copied, ..on_threads(2) }),
        ("cuda, emulated", on_device(Device::Emulated)),
    ];
    static HAS_GPU: LazyLock<bool> = LazyLock::new(support::has_gpu);
    if *HAS_GPU {
        all.push(("cuda", on_device(Device::Index(0))));
    }
    all
}

/// The golden's tensors.
pub(crate) struct Golden {
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
}

impl Golden {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut ids) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let data = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    floats.insert(name, (view.shape().to_vec(), data));
                }
                Dtype::I64 => {
                    let ids_of = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
                    ids.insert(name, ids_of.collect());
                }
                other => panic!("{}: {name} is {other:?}", path.display()),
            }
        }
        let mut ids_of = |name: &str| -> Vec<u32> { ids.remove(name).unwrap_or_default() };
        let (tokens, greedy) = (ids_of("tokens"), ids_of("greedy"));
        assert!(!tokens.is_empty(), "{}: no tokens", path.display());
        Self { floats, tokens, greedy }
    }

    pub(super) fn rows(&self, name: &str) -> Option<&[f32]> {
        self.floats.get(name).map(|(_, data)| data.as_slice())
    }
}

/// max |a − b|; NaN anywhere counts as infinite.
pub(super) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| {
        if d <= most {
            most
        } else if d.is_nan() {
            f32::INFINITY
        } else {
            d
        }
    })
}

/// Index of the largest element.
fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

/// A block table of scattered blocks: `which` of 2 sequences gets every other block, from the pool's end.
pub(super) fn scattered_blocks(which: usize, num_tokens: usize) -> Vec<u32> {
    let pool = KV_TOKENS / BLOCK_TOKENS;
    (0..num_tokens.div_ceil(BLOCK_TOKENS)).map(|block| (pool - 1 - 2 * block - which) as u32).collect()
}

/// All rows of a prompt fed in pieces of `chunk`.
pub(super) fn prefill(executor: &mut dyn Executor, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let blocks = scattered_blocks(0, tokens.len());
    let mut rows = Vec::new();
    for (index, piece) in tokens.chunks(chunk).enumerate() {
        let mut batch = StepBatch::default();
        batch.push(piece, index * chunk, tokens.len(), &blocks, OutputRows::All);
        rows.extend_from_slice(executor.step(&batch).unwrap().data);
    }
    rows
}

/// Greedy continuation after a prompt: tokens, and the rows they were chosen from.
pub(super) fn greedy(executor: &mut dyn Executor, prompt: &[u32], num_tokens: usize) -> (Vec<u32>, Vec<f32>) {
    let blocks = scattered_blocks(0, prompt.len() + num_tokens);
    let mut known = prompt.to_vec();
    let (mut chosen, mut rows) = (Vec::new(), Vec::new());
    let mut start = 0;
    while chosen.len() < num_tokens {
        let mut batch = StepBatch::default();
        batch.push(&known[start..], start, known.len(), &blocks, OutputRows::Last);
        start = known.len();
        let output = executor.step(&batch).unwrap();
        rows.extend_from_slice(output.row(0));
        let token = argmax(output.row(0));
        chosen.push(token);
        known.push(token);
    }
    (chosen, rows)
}

/// Two sequences that share steps at different places: `a` in three pieces while `b` comes whole and then waits.
pub(super) fn batched(executor: &mut dyn Executor, a: &[u32], b: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let (blocks_a, blocks_b) = (scattered_blocks(0, a.len()), scattered_blocks(1, b.len()));
    let width = |rows: usize, data: &[f32]| data.len() / rows;
    let (first, second) = (a.len() / 3, a.len() / 2);
    let (mut rows_a, mut rows_b) = (Vec::new(), Vec::new());

    let mut step = |pieces: &[(bool, std::ops::Range<usize>)]| {
        let mut batch = StepBatch::default();
        for (is_a, range) in pieces {
            let (tokens, blocks) = if *is_a { (a, &blocks_a) } else { (b, &blocks_b) };
            batch.push(&tokens[range.clone()], range.start, tokens.len(), blocks, OutputRows::All);
        }
        let output = executor.step(&batch).unwrap();
        let width = width(output.num_rows, output.data);
        let mut at = 0;
        for (is_a, range) in pieces {
            let rows = if *is_a { &mut rows_a } else { &mut rows_b };
            rows.extend_from_slice(&output.data[at * width..(at + range.len()) * width]);
            at += range.len();
        }
    };
    step(&[(true, 0..first), (false, 0..b.len() - 1)]);
    step(&[(false, b.len() - 1..b.len()), (true, first..second)]);
    step(&[(true, second..a.len())]);
    (rows_a, rows_b)
}

/// What one model with one executor got wrong, and the largest difference from the golden.
#[derive(Default)]
struct Report {
    failures: Vec<String>,
    worst: f32,
}

impl Report {
    fn close(&mut self, what: &str, got: &[f32], want: &[f32], tolerance: f32) {
        if got.len() != want.len() {
            self.failures.push(format!("{what}: {} numbers instead of {}", got.len(), want.len()));
            return;
        }
        let difference = max_difference(got, want);
        if tolerance == GOLDEN_TOLERANCE {
            self.worst = self.worst.max(difference);
        }
        if !(difference <= tolerance) {
            self.failures.push(format!("{what}: off by {difference}, allowed {tolerance}"));
        }
    }

    /// What holds for every kind of model: independence of chunking and of the batch.
    fn feeding(&mut self, executor: &mut dyn Executor, tokens: &[u32], whole: &[f32]) {
        for chunk in [1, 7, 32] {
            let rows = prefill(executor, tokens, chunk);
            self.close(&format!("prefill in pieces of {chunk}"), &rows, whole, CHUNKING_TOLERANCE);
        }
        let short = &tokens[..tokens.len() * 2 / 3];
        let short_whole = prefill(executor, short, short.len());
        let (rows, short_rows) = batched(executor, tokens, short);
        self.close("the long sequence of a batch", &rows, whole, CHUNKING_TOLERANCE);
        self.close("the short sequence of a batch", &short_rows, &short_whole, CHUNKING_TOLERANCE);
    }

    fn logits(&mut self, plan: &Plan, options: &ExecOptions, golden: &Golden) {
        let mut executor = exec::build(plan, options).unwrap();
        let executor = executor.as_mut();
        let whole = prefill(executor, &golden.tokens, golden.tokens.len());
        self.close("logits", &whole, golden.rows("logits").unwrap(), GOLDEN_TOLERANCE);
        let (chosen, rows) = greedy(executor, &golden.tokens, golden.greedy.len());
        if chosen != golden.greedy {
            self.failures.push(format!("greedy: {chosen:?} instead of {:?}", golden.greedy));
        }
        self.close("greedy logits", &rows, golden.rows("greedy_logits").unwrap(), GOLDEN_TOLERANCE);
        self.feeding(executor, &golden.tokens, &whole);
    }

    fn hidden(&mut self, plan: &Plan, options: &ExecOptions, golden: &Golden) {
        let mut executor = exec::build(plan, options).unwrap();
        let executor = executor.as_mut();
        let hidden = prefill(executor, &golden.tokens, golden.tokens.len());
        let mut compared = 0;
        for name in ["hidden", "hidden_last"] {
            if let Some(want) = golden.rows(name) {
                self.close(name, &hidden, want, GOLDEN_TOLERANCE);
                compared += 1;
            }
        }
        assert!(compared > 0, "a golden without hidden states");
        let num_rows = golden.tokens.len();
        let width = hidden.len() / num_rows;
        let last = hidden[(num_rows - 1) * width..].to_vec();
        let mean: Vec<f32> =
            (0..width).map(|column| hidden.iter().skip(column).step_by(width).sum::<f32>() / num_rows as f32).collect();
        let norm = last.iter().map(|x| x * x).sum::<f32>().sqrt();
        let embedding: Vec<f32> = last.iter().map(|x| x / norm).collect();
        for (name, got) in [("last", &last), ("mean", &mean), ("embedding", &embedding)] {
            if let Some(want) = golden.rows(name) {
                self.close(name, got, want, GOLDEN_TOLERANCE);
            }
        }
        self.feeding(executor, &golden.tokens, &hidden);
    }
}

/// The same model in its formats: the folder, and the GGUF files in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "gguf")).collect();
    files.sort();
    files.insert(0, folder.to_owned());
    files
}

/// Runs one file of one model on these executors. `None`: run; `Some`: why it can't be.
fn check(
    path: &Path,
    kind: &str,
    golden: &Golden,
    executors: &[(&str, ExecOptions)],
    failures: &mut Vec<String>,
) -> Option<String> {
    let file = match ModelFile::open(path) {
        Ok(file) => file,
        Err(error) => {
            failures.push(format!("{}: {error}", path.display()));
            return None;
        }
    };
    let kinds: &[OutputKind] = match kind {
        "lm" => &[OutputKind::Logits, OutputKind::Hidden],
        _ => &[OutputKind::Hidden],
    };
    for &kind in kinds {
        let plan = match shimmy_runtime::arch::load(&file, kind) {
            Ok((_, plan)) => plan,
            Err(Error::Unsupported(why)) if why.starts_with("architecture ") => return Some(why),
            Err(error) => {
                failures.push(format!("{}: {error}", path.display()));
                return None;
            }
        };
        for (name, options) in executors {
            // The layers are the same ones, and the emulated device takes its time.
            let is_emulated = options.gpu.devices.contains(&Device::Emulated);
            if is_emulated && options.backend == Backend::Cuda && kind != kinds[0] {
                continue;
            }
            let mut report = Report::default();
            match kind {
                OutputKind::Logits => report.logits(&plan, options, golden),
                OutputKind::Hidden => report.hidden(&plan, options, golden),
            }
            println!("{} {kind:?} on {name}: max difference {:.1e}", path.display(), report.worst);
            failures.extend(report.failures.into_iter().map(|f| format!("{} {kind:?} on {name}: {f}", path.display())));
        }
    }
    None
}

/// A folder for each model.
pub(super) fn folders(goldens: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(goldens.join("models")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// Every golden language model of a supported family: its folder, plan and golden.
pub(super) fn language_models(goldens: &Path) -> impl Iterator<Item = (PathBuf, Plan, Golden)> {
    folders(goldens).into_iter().filter_map(|folder| {
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap();
        if meta["kind"] != "lm" {
            return None;
        }
        let file = ModelFile::open(&folder).unwrap();
        let plan = match shimmy_runtime::arch::load(&file, OutputKind::Logits) {
            Ok((_, plan)) => plan,
            Err(Error::Unsupported(why)) if why.starts_with("architecture ") => return None,
            Err(error) => panic!("{}: {error}", folder.display()),
        };
        let golden = Golden::read(&folder.join("golden.safetensors"));
        Some((folder, plan, golden))
    })
}

/// Runs `check` on both executors with every golden language model of a supported family whose plan is `wanted`.
pub(super) fn on_language_models(
    wanted: impl Fn(&Plan) -> bool,
    check: impl Fn(&Plan, Backend, &Golden) -> Result<(), String>,
) {
    let Some(goldens) = crate::support::goldens() else { return };
    let (mut failures, mut num_run) = (Vec::new(), 0);
    for (folder, plan, golden) in language_models(&goldens).filter(|(_, plan, _)| wanted(plan)) {
        for backend in [Backend::Cpu, Backend::Candle] {
            if let Err(what) = check(&plan, backend, &golden) {
                failures.push(format!("{} on {backend:?}: {what}", folder.display()));
            }
            num_run += 1;
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(num_run >= 2, "no such language model in {} could be run", goldens.display());
    println!("{num_run} models and executors");
}

#[test]
fn every_supported_family_matches_its_goldens() {
    match_goldens(|backend| backend != Backend::Cuda);
}

/// A test of its own, beside the other: the emulated device takes its time.
#[test]
fn every_supported_family_matches_its_goldens_on_a_gpu() {
    match_goldens(|backend| backend == Backend::Cuda);
}

/// Every model on the executors of the wanted backends.
fn match_goldens(wanted: impl Fn(Backend) -> bool) {
    let Some(goldens) = crate::support::goldens() else { return };
    let executors: Vec<_> = executors().into_iter().filter(|(_, options)| wanted(options.backend)).collect();
    let (mut failures, mut num_run) = (Vec::new(), 0);
    for folder in &folders(&goldens) {
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap();
        let kind = meta["kind"].as_str().unwrap();
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let mut skipped = None;
        for path in files(folder) {
            match check(&path, kind, &golden, &executors, &mut failures) {
                None => num_run += 1,
                Some(why) => skipped = Some(why),
            }
        }
        if let Some(why) = skipped {
            println!("SKIP {}: {why}", folder.display());
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(num_run >= 1, "no model in {} could be run", goldens.display());
}
