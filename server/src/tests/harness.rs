//! A tiny model on disk and a server over it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix_web::web;
use serde_json::{Map, Value, json};
use shimmy_runtime::engine::testing::TestExecutor;
use shimmy_runtime::engine::{EngineOptions, EngineStats};
use shimmy_runtime::exec::{ExecOptions, Executor};
use shimmy_runtime::models::load::load_with;
use shimmy_runtime::models::{Discovered, LoadOptions, LoadedModel, Models};
use shimmy_runtime::plan::Plan;
use shimmy_runtime::text::{AddSpecial, ParseSpecial, Tokenizer};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::app::{AppState, Limits, serve};
use crate::listen::Listeners;

/// The end of an answer: the first id after the bytes and `<|im_start|>`.
pub(super) const END: u32 = 257;
/// Ids of the tiny vocabulary.
pub(super) const VOCAB: usize = 258;
/// How long the test servers bear a client that takes nothing.
const STALL: Duration = Duration::from_millis(300);
/// Largest body that the test servers take.
pub(super) const MAX_BODY: usize = 10_000;

/// GPT-2's printable stand-in for a byte.
fn byte_char(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printable(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|byte| !is_printable(*byte)).count();
    char::from_u32(256 + u32::try_from(hidden_before).unwrap()).unwrap()
}

/// Writes a llama of one layer with zeros for weights: tokenizer, template and numbers are what matters.
pub(super) fn write_model(folder: &Path) {
    let (hidden, inner, heads) = (8, 16, 2);
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "bos_token_id": 256, "eos_token_id": END, "torch_dtype": "float32",
        "attention_bias": false, "mlp_bias": false,
    });
    let mut vocab: Map<String, Value> = (0..=255u8).map(|byte| (byte_char(byte).to_string(), byte.into())).collect();
    vocab.insert("<|im_start|>".into(), 256.into());
    vocab.insert("<|im_end|>".into(), END.into());
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<|im_start|>"), special(END, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let template = "{% for message in messages %}{% if message['role'] == 'king' %}{{ raise_exception('no kings') }}\
                    {% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\
                    {% if loud is defined and loud %}{{ 'LOUD' }}{% endif %}";
    let tokenizer_config = json!({
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template,
        "tokenizer_class": "GPT2Tokenizer",
    });
    fs::create_dir_all(folder).unwrap();
    for (name, value) in
        [("config.json", &config), ("tokenizer.json", &tokenizer), ("tokenizer_config.json", &tokenizer_config)]
    {
        fs::write(folder.join(name), value.to_string()).unwrap();
    }
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        (layer("input_layernorm"), vec![hidden]),
        (layer("post_attention_layernorm"), vec![hidden]),
        (layer("self_attn.q_proj"), vec![hidden, hidden]),
        (layer("self_attn.k_proj"), vec![hidden, hidden]),
        (layer("self_attn.v_proj"), vec![hidden, hidden]),
        (layer("self_attn.o_proj"), vec![hidden, hidden]),
        (layer("mlp.gate_proj"), vec![inner, hidden]),
        (layer("mlp.up_proj"), vec![inner, hidden]),
        (layer("mlp.down_proj"), vec![hidden, inner]),
    ];
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let bytes = shape.iter().product::<usize>() * 4;
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + end, 0);
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// The tokens of a text in the tiny vocabulary: its bytes.
pub(super) fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// An executor that answers every prompt with this text and then ends.
pub(super) fn spelling(text: &str) -> TestExecutor {
    let mut script = tokens(text);
    script.push(END);
    TestExecutor::spelling_tokens(script, VOCAB, TestExecutor::LIMITS)
}

/// An executor that says `a` for ever, one step a millisecond.
pub(super) fn endless() -> TestExecutor {
    TestExecutor::continuing(|_| u32::from(b'a'), VOCAB, TestExecutor::LIMITS).with_hook(|_, _| {
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    })
}

/// Holds an executor's first step until it is let go.
#[derive(Default)]
pub(super) struct Brake {
    reached: AtomicBool,
    released: Mutex<bool>,
    changed: Condvar,
}

impl Brake {
    /// An executor whose steps wait for the release, and then answer with this text.
    pub(super) fn spelling(text: &str) -> (TestExecutor, Arc<Self>) {
        let brake = Arc::new(Self::default());
        let held = Arc::clone(&brake);
        let executor = spelling(text).with_hook(move |_, _| {
            held.reached.store(true, Ordering::SeqCst);
            drop(held.changed.wait_while(held.released.lock().unwrap(), |released| !*released).unwrap());
            Ok(())
        });
        (executor, brake)
    }

    /// Waits until the first step has begun.
    pub(super) fn wait_reached(&self) {
        wait_for("the first step begins", || self.reached.load(Ordering::SeqCst));
    }

    pub(super) fn release(&self) {
        *self.released.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// What the test servers refuse.
pub(super) fn test_limits() -> Limits {
    Limits { max_body_bytes: MAX_BODY, stall: STALL, ..Limits::default() }
}

/// A server on a free port; shut down when dropped.
pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    pub(super) state: web::Data<AppState>,
    shutdown: Arc<Notify>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    /// Kept as long as the server runs.
    _folder: TempDir,
}

/// The tiny model's name: its folder's.
pub(super) const MODEL: &str = "tiny-test";

impl TestServer {
    /// Serves the tiny model with this executor.
    pub(super) fn start(executor: TestExecutor) -> Self {
        Self::start_with(executor, EngineOptions::default())
    }

    pub(super) fn start_with(executor: TestExecutor, engine: EngineOptions) -> Self {
        let server = Self::start_loading(executor, engine);
        server.state.set_ready();
        server
    }

    /// With other limits than the other tests.
    pub(super) fn start_within(executor: TestExecutor, limits: Limits) -> Self {
        Self::start_as(executor, |state, _| state.limits = limits)
    }

    /// With rules, a log, or sockets of its own.
    pub(super) fn start_as(executor: TestExecutor, prepare: impl FnOnce(&mut AppState, &mut Listeners)) -> Self {
        let server = Self::start_prepared(vec![executor], EngineOptions::default(), prepare);
        server.state.set_ready();
        server
    }

    /// With another executor each time that the model is loaded.
    pub(super) fn start_each(executors: Vec<TestExecutor>) -> Self {
        let server = Self::start_all(executors, EngineOptions::default());
        server.state.set_ready();
        server
    }

    /// Like a server whose first model isn't there yet.
    pub(super) fn start_loading(executor: TestExecutor, engine: EngineOptions) -> Self {
        Self::start_all(vec![executor], engine)
    }

    fn start_all(executors: Vec<TestExecutor>, engine: EngineOptions) -> Self {
        Self::start_prepared(executors, engine, |_, _| {})
    }

    fn start_prepared(
        executors: Vec<TestExecutor>,
        engine: EngineOptions,
        prepare: impl FnOnce(&mut AppState, &mut Listeners),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Tiny_Test");
        write_model(&path);
        let executors = Mutex::new(executors.into_iter());
        let models = Models::new(vec![Discovered::at(&path).unwrap()], vec![], move |model| {
            let executor = executors.lock().unwrap().next().expect("the model isn't loaded more often");
            let options = LoadOptions { engine, name: Some(model.name.clone()), ..LoadOptions::default() };
            let executor = Mutex::new(Some(executor));
            let build = |_: &Plan, _: &ExecOptions| -> shimmy_runtime::Result<Box<dyn Executor>> {
                Ok(Box::new(executor.lock().unwrap().take().expect("there is no draft model")))
            };
            load_with(&model.path, &options, &build)
        });
        let mut state = AppState::new(models, test_limits());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut listeners = Listeners::from(listener);
        prepare(&mut state, &mut listeners);
        let state = web::Data::new(state);
        let shutdown = Arc::new(Notify::new());
        let (shared, stop) = (state.clone(), Arc::clone(&shutdown));
        let (started, is_started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                started.send(()).unwrap();
                serve(listeners, shared, Duration::from_secs(30), async move { stop.notified().await }).await
            })
        });
        is_started.recv().unwrap();
        Self { address, state, shutdown, thread: Some(thread), _folder: folder }
    }

    /// The model, loaded.
    pub(super) fn model(&self) -> Arc<LoadedModel> {
        self.state.models.get(MODEL).unwrap()
    }

    pub(super) fn stats(&self) -> EngineStats {
        self.model().engine.stats()
    }

    /// Tells it to drain.
    pub(super) fn begin_shutdown(&self) {
        self.shutdown.notify_one();
    }

    /// Waits until it has ended.
    pub(super) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shutdown.notify_one();
            // A test that fails must not wait for the drain's deadline.
            if !std::thread::panicking() {
                thread.join().unwrap().unwrap();
            }
        }
    }
}

/// Waits until `is_true`, up to ten seconds.
pub(super) fn wait_for(what: &str, is_true: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_tiny_model_spells_and_ends() {
    let server = TestServer::start(spelling("hi"));
    let model = server.model();
    assert_eq!(model.name, MODEL);
    let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, AddSpecial::No, ParseSpecial::Yes).unwrap();
    assert_eq!(encode(&model.tokenizer, "é \n"), tokens("é \n"));
    assert_eq!(encode(&model.tokenizer, "<|im_end|>"), [END]);
    assert_eq!(model.tokenizer.end_of_generation(), [END]);
    assert_eq!(model.tokenizer.vocab_size(), VOCAB);
}
