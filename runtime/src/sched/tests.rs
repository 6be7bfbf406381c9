//! Scheduler tests: cases by hand, and random traces against the promises of the module.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::exec::OutputRows;
use crate::kv::BLOCK_TOKENS;

fn state(max_step_tokens: usize, max_running: usize, num_blocks: usize) -> State {
    State::new(Capacity { max_step_tokens, max_running, num_blocks, max_context: 4096 })
}

fn step(state: &mut State) -> StepPlan {
    let mut plan = StepPlan::default();
    state.schedule(&mut plan);
    state.advance(&plan);
    for piece in &plan.pieces {
        if piece.output == OutputRows::Last {
            state.append(piece.id);
        }
    }
    state.check().unwrap();
    plan
}

fn shape(plan: &StepPlan) -> Vec<(u64, usize, usize, OutputRows)> {
    plan.pieces.iter().map(|piece| (piece.id.0, piece.start, piece.len, piece.output)).collect()
}

#[test]
fn prompts_are_chunked_and_decodes_ride_along() {
    let mut state = state(16, 4, 100);
    state.submit(3, 100).unwrap();
    state.submit(40, 100).unwrap();
    use OutputRows::{Last, None};
    assert_eq!(shape(&step(&mut state)), [(0, 0, 3, Last), (1, 0, 13, None)]);
    assert_eq!(shape(&step(&mut state)), [(0, 3, 1, Last), (1, 13, 15, None)]);
    state.submit(5, 100).unwrap();
    assert_eq!(shape(&step(&mut state)), [(0, 4, 1, Last), (1, 28, 12, Last), (2, 0, 3, None)]);
    assert_eq!(shape(&step(&mut state)), [(0, 5, 1, Last), (1, 40, 1, Last), (2, 3, 2, Last)]);
}

#[test]
fn admission_is_first_come_first_served_by_free_blocks() {
    let mut state = state(512, 8, 4);
    state.submit(2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS).unwrap();
    state.submit(2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS).unwrap();
    state.submit(1, 2).unwrap();
    let plan = step(&mut state);
    assert_eq!(plan.pieces.len(), 1, "the second needs two blocks and one to spare; the third must not overtake it");
    state.remove(SeqId(0));
    let plan = step(&mut state);
    assert_eq!(plan.pieces.iter().map(|piece| piece.id.0).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn the_youngest_is_preempted_and_computed_again() {
    // Both prompts fill their blocks to the last token; one block to spare.
    let mut state = state(512, 8, 4);
    state.submit(BLOCK_TOKENS, 4 * BLOCK_TOKENS).unwrap();
    state.submit(BLOCK_TOKENS, 4 * BLOCK_TOKENS).unwrap();
    let mut preempted = Vec::new();
    for _ in 0..2 * BLOCK_TOKENS + 1 {
        preempted.extend(step(&mut state).preempted);
    }
    assert_eq!(preempted, [SeqId(1)]);
    assert_eq!((state.num_running(), state.num_waiting(), state.num_free_blocks()), (1, 1, 1));
    state.remove(SeqId(0));
    let plan = step(&mut state);
    let [piece] = plan.pieces[..] else { panic!("{plan:?}") };
    assert_eq!((piece.id, piece.start), (SeqId(1), 0));
    assert!(piece.len > BLOCK_TOKENS, "its generated tokens are computed again with the prompt");
    assert_eq!(piece.output, OutputRows::Last);
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut state = state(512, 8, 2);
    let error = state.submit(10, 2 * BLOCK_TOKENS + 1).unwrap_err();
    assert!(
        matches!(error, Error::ContextLength { prompt_tokens: 10, max_tokens: 55, context_tokens: 64 }),
        "{error:?}"
    );
    assert!(matches!(state.submit(0, 1), Err(Error::InvalidRequest { param: "prompt", .. })));
    assert!(state.submit(10, 2 * BLOCK_TOKENS).is_ok());
}

#[test]
fn no_more_sequences_run_than_a_step_has_tokens() {
    let mut state = state(3, 100, 100);
    for _ in 0..5 {
        state.submit(1, 100).unwrap();
    }
    for _ in 0..4 {
        assert_eq!(step(&mut state).num_tokens(), 3);
    }
}

#[derive(Debug, Clone)]
struct Request {
    /// Steps before it is submitted.
    arrives: usize,
    prompt: usize,
    generates: usize,
    /// Steps after its arrival at which its client goes away.
    leaves: Option<usize>,
}

fn request() -> impl Strategy<Value = Request> {
    (0..30_usize, 1..150_usize, 1..80_usize, prop::option::weighted(0.2, 0..60_usize))
        .prop_map(|(arrives, prompt, generates, leaves)| Request { arrives, prompt, generates, leaves })
}

/// What a correct executor and engine would see of one sequence.
struct Seen {
    prompt: usize,
    generates: usize,
    generated: usize,
    computed: usize,
    leaves_at: Option<usize>,
    first_step: Option<usize>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_traces_keep_the_promises(
        max_step_tokens in 1..64_usize,
        max_running in 1..12_usize,
        num_blocks in 1..16_usize,
        mut requests in prop::collection::vec(request(), 1..25),
    ) {
        let mut state = state(max_step_tokens, max_running, num_blocks);
        let mut plan = StepPlan::default();
        let mut seen: HashMap<SeqId, Seen> = HashMap::new();
        let mut first_steps: Vec<(SeqId, usize)> = Vec::new();
        requests.sort_by_key(|request| request.arrives);
        let mut pending = requests.clone().into_iter().peekable();
        // Alone, one after the other, with every preemption recomputing everything, it would take less than this.
        let bound: usize = 60 + requests.iter().map(|r| (r.prompt + r.generates) * 4 + r.generates * 4).sum::<usize>()
            * requests.len();
        let mut now = 0;
        while pending.peek().is_some() || !state.is_idle() {
            prop_assert!(now < bound, "no end after {now} steps");
            while let Some(request) = pending.next_if(|request| request.arrives <= now) {
                let total = request.prompt + request.generates;
                match state.submit(request.prompt, total) {
                    Ok(id) => {
                        prop_assert!(total <= num_blocks * BLOCK_TOKENS);
                        seen.insert(id, Seen {
                            prompt: request.prompt,
                            generates: request.generates,
                            generated: 0,
                            computed: 0,
                            leaves_at: request.leaves.map(|after| now + after),
                            first_step: None,
                        });
                    }
                    Err(_) => prop_assert!(total > num_blocks * BLOCK_TOKENS),
                }
            }
            let gone: Vec<SeqId> = seen.iter().filter(|(_, s)| s.leaves_at == Some(now)).map(|(&id, _)| id).collect();
            for id in gone {
                seen.remove(&id);
                state.remove(id);
            }
            prop_assert_eq!(state.check(), Ok(()));

            state.schedule(&mut plan);
            prop_assert_eq!(state.check(), Ok(()));
            prop_assert!(plan.num_tokens() <= max_step_tokens);
            prop_assert!(plan.pieces.len() <= max_running);
            prop_assert_eq!(plan.pieces.is_empty(), state.is_idle(), "a step without work while someone waits");
            let oldest = seen.keys().min().copied();
            prop_assert_eq!(plan.pieces.first().map(|piece| piece.id), oldest, "the oldest makes progress");
            for id in &plan.preempted {
                prop_assert!(Some(*id) != oldest);
                prop_assert!(plan.pieces.iter().all(|piece| piece.id < *id), "only the youngest are preempted");
                seen.get_mut(id).unwrap().computed = 0;
            }
            for piece in &plan.pieces {
                let s = seen.get_mut(&piece.id).unwrap();
                prop_assert_eq!(piece.start, s.computed, "no token is skipped or computed twice");
                prop_assert_eq!(piece.num_tokens, s.prompt + s.generated);
                prop_assert!(piece.len >= 1 && piece.start + piece.len <= piece.num_tokens);
                prop_assert!(state.blocks(piece.id).len() * BLOCK_TOKENS >= piece.start + piece.len);
                if s.first_step.replace(now).is_none() {
                    first_steps.push((piece.id, now));
                }
                s.computed += piece.len;
                prop_assert_eq!(piece.output == OutputRows::Last, s.computed == piece.num_tokens);
            }
            state.advance(&plan);
            for piece in &plan.pieces {
                if piece.output == OutputRows::Last {
                    let s = seen.get_mut(&piece.id).unwrap();
                    s.generated += 1;
                    if s.generated == s.generates {
                        seen.remove(&piece.id);
                        state.remove(piece.id);
                    } else {
                        state.append(piece.id);
                    }
                }
            }
            now += 1;
        }
        prop_assert!(seen.is_empty());
        prop_assert_eq!(state.num_free_blocks(), num_blocks);
        prop_assert!(first_steps.is_sorted(), "first come, first served: {:?}", first_steps);
    }
}
