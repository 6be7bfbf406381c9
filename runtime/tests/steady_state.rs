//! A step of the cpu executor allocates nothing once its memory is there: prompts, decodes and mixed batches, on two
//! threads, counted by the process's allocator. Alone in its binary: other tests would be counted too.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says SKIP on stdout")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use shimmy_runtime::exec::cpu::CpuExecutor;
use shimmy_runtime::exec::{ExecOptions, Executor, KvSize, OutputRows, StepBatch};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::plan::OutputKind;

/// Calls of any thread that take memory.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to `System` with the caller's own arguments; counting neither allocates nor unwinds.
#[allow(unsafe_code, reason = "an allocator can't be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised for this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised for this call.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised for this call.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

fn goldens() -> Option<PathBuf> {
    let path = std::env::var_os("SHIMMY_GOLDENS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/goldens"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "no goldens at {}", path.display());
    println!("SKIP no goldens at {} (set SHIMMY_GOLDENS)", path.display());
    None
}

#[test]
fn a_step_allocates_nothing() {
    let Some(goldens) = goldens() else { return };
    // Plain, with windows and softcaps and norms after, with biases and heads that no vector width divides.
    for name in ["llama-h256", "gemma2-swa", "llama-tied-mha-bias"] {
        let file = ModelFile::open(&goldens.join("models").join(name)).unwrap();
        let (_, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits).unwrap();
        let options = ExecOptions {
            threads: Some(2),
            max_context: Some(128),
            kv_size: KvSize::Tokens(256),
            max_step_tokens: 64,
            ..ExecOptions::default()
        };
        let mut executor = CpuExecutor::new(&plan, &options).unwrap();
        // Two sequences: prompts whole and in pieces, then token by token, together and alone.
        let tokens: Vec<u32> = (0..128).map(|i| 3 + i * 7 % 500).collect();
        let tables = [[0, 2, 4, 6], [1, 3, 5, 7]];
        let pieces = [[Some((0, 33)), None], [Some((33, 20)), Some((0, 40))], [Some((53, 1)), None]];
        let decodes = (0..40).map(|i| [Some((54 + i, 1)), (i % 3 > 0).then_some((40 + i, 1))]);
        let batches: Vec<StepBatch> = pieces
            .into_iter()
            .chain(decodes)
            .map(|step| {
                let mut batch = StepBatch::default();
                for ((start, len), table) in
                    step.iter().zip(&tables).filter_map(|(piece, table)| Some(((*piece)?, table)))
                {
                    batch.push(&tokens[start..start + len], start, 128, table, OutputRows::Last);
                }
                batch
            })
            .collect();
        // The first step may still touch what the system makes lazily (thread-locals of the workers).
        executor.step(&batches[0]).unwrap();
        for (index, batch) in batches.iter().enumerate() {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let num_rows = executor.step(batch).unwrap().num_rows;
            let taken = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(num_rows, batch.seqs.len());
            assert_eq!(taken, 0, "{name}: step {index} allocated");
        }
    }
    // The counter counts.
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    std::hint::black_box(vec![0_u8; 100]);
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
}
