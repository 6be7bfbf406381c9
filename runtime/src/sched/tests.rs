//! Scheduler tests: cases by hand, and random traces against the promises of the module.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::exec::OutputRows;
use crate::kv::{BLOCK_TOKENS, KvPool, KvWindow, NO_BLOCK, PrefixMiss, PrefixSpace};

const SPACE: Option<PrefixSpace> = Some(PrefixSpace(0));

/// The tokens of each sequence, for tests that use the cache.
#[derive(Default)]
struct Texts(HashMap<SeqId, Vec<u32>>);

impl TokenSource for Texts {
    fn tokens(&self, id: SeqId) -> &[u32] {
        self.0.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// A sequence without cache, of the one client there is.
fn submit(state: &mut State, num_tokens: usize, max_total: usize) -> crate::Result<SeqId> {
    state.submit(num_tokens, max_total, Class::default(), None)
}

fn state(max_step_tokens: usize, max_running: usize, num_blocks: usize) -> State {
    windowed(max_step_tokens, max_running, num_blocks, None)
}

fn windowed(max_step_tokens: usize, max_running: usize, num_blocks: usize, window: Option<KvWindow>) -> State {
    State::new(Capacity {
        max_step_tokens,
        max_step_outputs: max_running + 5,
        max_running,
        num_blocks,
        window,
        max_context: 4096,
    })
}

fn step(state: &mut State) -> StepPlan {
    step_of(state, &mut Texts::default())
}

/// Every token that is sampled is a 7.
fn step_of(state: &mut State, texts: &mut Texts) -> StepPlan {
    let mut plan = StepPlan::default();
    state.schedule(&mut plan, texts);
    state.advance(&plan, texts);
    for piece in &plan.pieces {
        if piece.output == OutputRows::Last {
            texts.0.entry(piece.id).or_default().push(7);
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
    submit(&mut state, 3, 100).unwrap();
    submit(&mut state, 40, 100).unwrap();
    use OutputRows::{Last, None};
    assert_eq!(shape(&step(&mut state)), [(0, 0, 3, Last), (1, 0, 13, None)]);
    assert_eq!(shape(&step(&mut state)), [(0, 3, 1, Last), (1, 13, 15, None)]);
    submit(&mut state, 5, 100).unwrap();
    assert_eq!(shape(&step(&mut state)), [(0, 4, 1, Last), (1, 28, 12, Last), (2, 0, 3, None)]);
    assert_eq!(shape(&step(&mut state)), [(0, 5, 1, Last), (1, 40, 1, Last), (2, 3, 2, Last)]);
}

#[test]
fn admission_is_first_come_first_served_by_free_blocks() {
    let mut state = state(512, 8, 4);
    submit(&mut state, 2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS).unwrap();
    submit(&mut state, 2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS).unwrap();
    submit(&mut state, 1, 2).unwrap();
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
    submit(&mut state, BLOCK_TOKENS, 4 * BLOCK_TOKENS).unwrap();
    submit(&mut state, BLOCK_TOKENS, 4 * BLOCK_TOKENS).unwrap();
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
    let error = submit(&mut state, 10, 2 * BLOCK_TOKENS + 1).unwrap_err();
    assert!(
        matches!(error, Error::ContextLength { prompt_tokens: 10, max_tokens: 55, context_tokens: 64 }),
        "{error:?}"
    );
    assert!(matches!(submit(&mut state, 0, 1), Err(Error::InvalidRequest { param: "prompt", .. })));
    assert!(submit(&mut state, 10, 2 * BLOCK_TOKENS).is_ok());
}

#[test]
fn no_more_sequences_run_than_a_step_has_tokens() {
    let mut state = state(3, 100, 100);
    for _ in 0..5 {
        submit(&mut state, 1, 100).unwrap();
    }
    for _ in 0..4 {
        assert_eq!(step(&mut state).num_tokens(), 3);
    }
}

#[test]
fn a_prompt_before_them_leaves_every_running_sequence_its_token() {
    let mut state = state(8, 8, 100);
    let urgent = Class { priority: -1, client: 0 };
    for _ in 0..3 {
        submit(&mut state, 1, 100).unwrap();
    }
    step(&mut state);
    state.submit(40, 100, urgent, None).unwrap();
    step(&mut state);
    let (none, last) = (OutputRows::None, OutputRows::Last);
    assert_eq!(shape(&step(&mut state)), [(3, 5, 5, none), (0, 2, 1, last), (1, 2, 1, last), (2, 2, 1, last)]);
}

#[test]
fn of_unequal_ones_the_less_urgent_gives_way() {
    let mut state = state(512, 8, 4);
    let class = |priority| Class { priority, client: 0 };
    for priority in [1, 0] {
        state.submit(BLOCK_TOKENS, 4 * BLOCK_TOKENS, class(priority), None).unwrap();
    }
    let mut preempted = Vec::new();
    for _ in 0..2 * BLOCK_TOKENS + 1 {
        preempted.extend(step(&mut state).preempted);
    }
    assert_eq!(preempted, [SeqId(0)], "it came first, but is less urgent");
}

/// Admissions of a step: id, cached tokens, why not more.
fn admitted(plan: &StepPlan) -> Vec<(u64, usize, Option<PrefixMiss>)> {
    plan.admitted.iter().map(|admission| (admission.id.0, admission.cached_tokens, admission.miss)).collect()
}

#[test]
fn a_growing_chat_computes_only_its_new_turn() {
    let (mut state, mut texts) = (state(512, 8, 100), Texts::default());
    let mut history: Vec<u32> = (0..100).collect();
    let mut cached = Vec::new();
    for turn in 0..4 {
        let id = state.submit(history.len(), 3000, Class::default(), SPACE).unwrap();
        texts.0.insert(id, history.clone());
        let plan = step_of(&mut state, &mut texts);
        cached.push(plan.admitted[0].cached_tokens);
        for _ in 0..50 {
            step_of(&mut state, &mut texts);
        }
        // The last token was sampled but never computed.
        assert_eq!(plan.pieces[0].len, history.len() - cached[turn]);
        state.remove(id);
        history = texts.0.remove(&id).unwrap();
        history.extend([turn as u32; 9]);
    }
    // 100 + 51 tokens, of which 150 are computed; then 9 new ones and 51 answers a turn.
    assert_eq!(cached, [0, 128, 192, 256]);
    assert_eq!(state.num_free_blocks(), 100);
}

#[test]
fn a_lookup_says_why_it_found_no_more() {
    let (mut state, mut texts) = (state(512, 8, 5), Texts::default());
    let mut ask = |text: Vec<u32>, space: Option<PrefixSpace>| {
        let id = state.submit(text.len(), text.len() + 1, Class::default(), space).unwrap();
        texts.0.insert(id, text);
        let plan = step_of(&mut state, &mut texts);
        state.remove(id);
        let [(_, cached, miss)] = admitted(&plan)[..] else { panic!("{plan:?}") };
        (cached, miss)
    };
    let text: Vec<u32> = (0..128).collect();
    assert_eq!(ask(text[..32].to_vec(), SPACE), (0, Some(PrefixMiss::TooShort)), "the last token is always computed");
    assert_eq!(ask(text[..40].to_vec(), None), (0, Some(PrefixMiss::Disabled)));
    assert_eq!(ask(text.clone(), SPACE), (32, Some(PrefixMiss::NoMatch)));
    assert_eq!(ask(text.clone(), SPACE), (96, None));
    assert_eq!(ask(vec![5; 70], None), (0, Some(PrefixMiss::Disabled)), "it takes three blocks");
    assert_eq!(ask(text.clone(), SPACE), (64, Some(PrefixMiss::Evicted)));
}

#[test]
fn a_cached_prefix_lets_more_in() {
    let (mut state, mut texts) = (state(512, 8, 7), Texts::default());
    let text: Vec<u32> = (0..128).collect();
    let submit = |state: &mut State, texts: &mut Texts| {
        let id = state.submit(text.len(), 150, Class::default(), SPACE).unwrap();
        texts.0.insert(id, text.clone());
    };
    submit(&mut state, &mut texts);
    step_of(&mut state, &mut texts);
    submit(&mut state, &mut texts);
    let plan = step_of(&mut state, &mut texts);
    assert_eq!(admitted(&plan), [(1, 96, None)], "four blocks aren't free, but three are shared");
}

#[test]
fn a_fork_shares_full_blocks_and_copies_the_begun_one() {
    let (mut state, mut texts) = (state(512, 2, 100), Texts::default());
    let mut plan = StepPlan::default();
    let first = submit(&mut state, 70, 100).unwrap();
    state.schedule(&mut plan, &texts);
    state.advance(&plan, &texts);
    let fork = state.fork(first).unwrap();
    let (of_first, of_fork) = (state.blocks(first).to_vec(), state.blocks(fork.id).to_vec());
    assert_eq!(of_first[..2], of_fork[..2]);
    let copy = BlockCopy { pool: KvPool::Full, from: of_first[2], to: of_fork[2] };
    assert_eq!(fork.copies, [Some(copy), None]);
    assert_ne!(of_first[2], of_fork[2]);
    let waiting = state.fork(first).unwrap();
    assert_eq!((state.num_waiting(), waiting.copies), (1, [None; 2]), "no more than two run");
    for id in [first, fork.id, waiting.id] {
        state.append(id);
    }
    assert_eq!(shape(&step_of(&mut state, &mut texts)), [(0, 70, 1, OutputRows::Last), (1, 70, 1, OutputRows::Last)]);
    state.remove(first);
    assert_eq!(shape(&step_of(&mut state, &mut texts)), [(1, 71, 1, OutputRows::Last), (2, 0, 71, OutputRows::Last)]);
    assert!(state.fork(first).is_none());
}

/// A window of 40 tokens in a pool of so many blocks.
const fn window(num_blocks: usize) -> Option<KvWindow> {
    Some(KvWindow { num_tokens: 40, num_blocks })
}

#[test]
fn what_falls_out_of_the_window_is_given_back_however_long_the_text() {
    // 39 tokens and a step of 16, which may begin inside a block: three blocks.
    let mut state = windowed(16, 8, 100, window(3));
    let id = submit(&mut state, 100, 3000).unwrap();
    let mut most = 0;
    for _ in 0..2000 {
        step(&mut state);
        most = most.max(3 - state.num_free_window_blocks());
    }
    assert_eq!(most, 3);
    assert!(state.blocks(id).len() > 60, "the other layers keep all of it");
    let first = (state.blocks(id).len() - 1).saturating_sub(3);
    assert!(state.window_blocks(id)[..first].iter().all(|&block| block == NO_BLOCK));
    state.remove(id);
    assert_eq!((state.num_free_blocks(), state.num_free_window_blocks()), (100, 3));
}

#[test]
fn a_windows_pool_limits_admission_and_preempts_like_the_other_one() {
    let mut state = windowed(512, 8, 100, window(4));
    for _ in 0..3 {
        submit(&mut state, BLOCK_TOKENS, 100).unwrap();
    }
    assert_eq!(step(&mut state).pieces.len(), 2, "the third would leave none to spare");
    let preempted: Vec<_> = (0..20).flat_map(|_| step(&mut state).preempted).collect();
    assert_eq!(preempted, []);
    assert_eq!(state.num_free_window_blocks(), 0);
    let preempted: Vec<_> = (0..40).flat_map(|_| step(&mut state).preempted).collect();
    assert_eq!(preempted, [SeqId(1)]);
    let error = submit(&mut windowed(512, 8, 100, window(2)), 10, 65).unwrap_err();
    assert!(matches!(error, Error::ContextLength { context_tokens: 64, .. }), "too few blocks for a step: {error:?}");
}

#[test]
fn a_chain_is_used_up_to_where_its_window_is_there() {
    let (mut state, mut texts) = (windowed(64, 8, 100, window(8)), Texts::default());
    let text: Vec<u32> = (0..256).collect();
    let mut ask = |state: &mut State, text: &[u32]| {
        let id = state.submit(text.len(), text.len() + 1, Class::default(), SPACE).unwrap();
        texts.0.insert(id, text.to_vec());
        let first = step_of(state, &mut texts);
        while state.blocks(id).len() * BLOCK_TOKENS < text.len() || step_of(state, &mut texts).pieces[0].len > 1 {}
        state.remove(id);
        let [(_, cached, miss)] = admitted(&first)[..] else { panic!("{first:?}") };
        (cached, miss)
    };
    assert_eq!(ask(&mut state, &text), (0, Some(PrefixMiss::NoMatch)));
    assert_eq!(ask(&mut state, &text), (224, None));
    assert_eq!(ask(&mut state, &text[..100]), (96, None), "the whole text's windows are there");
    // Another text takes blocks of the windows, those that have been idle longest first, and hardly any of the others.
    let other: Vec<u32> = (1000..1100).collect();
    assert_eq!(ask(&mut state, &other), (0, Some(PrefixMiss::NoMatch)));
    let (cached, miss) = ask(&mut state, &text);
    assert!(cached < 224 && cached.is_multiple_of(BLOCK_TOKENS), "{cached}");
    assert_eq!(miss, Some(PrefixMiss::Evicted));
    assert_eq!(ask(&mut state, &text), (224, None), "what was computed again is there again");
}

#[test]
fn a_fork_copies_the_begun_block_of_both_pools() {
    let (mut state, texts) = (windowed(512, 2, 100, window(30)), Texts::default());
    let mut plan = StepPlan::default();
    let first = submit(&mut state, 70, 100).unwrap();
    state.schedule(&mut plan, &texts);
    state.advance(&plan, &texts);
    let fork = state.fork(first).unwrap();
    let [of_first, of_fork] = [first, fork.id].map(|id| state.window_blocks(id).to_vec());
    assert_eq!(of_first[..2], of_fork[..2]);
    let copy = BlockCopy { pool: KvPool::Window, from: of_first[2], to: of_fork[2] };
    assert_eq!((fork.copies[0].map(|copy| copy.pool), fork.copies[1]), (Some(KvPool::Full), Some(copy)));
    state.check().unwrap();
}

#[derive(Debug, Clone)]
struct Request {
    /// Steps before it is submitted.
    arrives: usize,
    /// Of a few texts that begin alike.
    text: u32,
    prompt: usize,
    generates: usize,
    /// Steps after its arrival at which its client goes away.
    leaves: Option<usize>,
    class: Class,
    space: Option<PrefixSpace>,
    /// Answers beside the first.
    forks: u32,
}

fn request() -> impl Strategy<Value = Request> {
    let class = (prop::sample::select(vec![0, 0, 0, 1]), 0..3_u64);
    let space = prop::sample::select(vec![SPACE, SPACE, SPACE, Some(PrefixSpace(1)), None]);
    let leaves = prop::option::weighted(0.2, 0..60_usize);
    let forks = prop::sample::select(vec![0, 0, 0, 1, 3]);
    (0..30_usize, 0..4_u32, 1..150_usize, 1..80_usize, leaves, class, space, forks).prop_map(
        |(arrives, text, prompt, generates, leaves, (priority, client), space, forks)| {
            let class = Class { priority, client };
            Request { arrives, text, prompt, generates, leaves, class, space, forks }
        },
    )
}

/// Token `position` of a text: all texts begin alike, text `n` goes its own way after `40 · n` tokens.
fn token(text: u32, position: usize) -> u32 {
    let common = 40 * text as usize;
    if position < common { position as u32 } else { 1000 * (text + 1) + position as u32 }
}

/// What a correct executor and engine would see of one sequence.
struct Seen {
    request: Request,
    /// 0 for the first answer; each goes its own way.
    answer: u32,
    generated: usize,
    computed: usize,
    leaves_at: Option<usize>,
    first_step: Option<usize>,
}

/// For each slot the whole text up to it, as a hash, and the space it was written in.
type Slots = Vec<Option<(u64, Option<PrefixSpace>)>>;

/// What an executor's caches hold.
struct Cache {
    full: Slots,
    window: Slots,
    size: Option<KvWindow>,
}

impl Cache {
    fn copy(&mut self, BlockCopy { pool, from, to }: BlockCopy) {
        let start = |block: u32| block as usize * BLOCK_TOKENS;
        let slots = match pool {
            KvPool::Full => &mut self.full,
            KvPool::Window => &mut self.window,
        };
        slots.copy_within(start(from)..start(from) + BLOCK_TOKENS, start(to));
    }

    /// Writes what the last token of a text leaves at its position.
    fn write(&mut self, state: &State, id: SeqId, text: &[u32], space: Option<PrefixSpace>) {
        let (position, written) = (text.len() - 1, Some((Self::hash(text), space)));
        self.full[Self::slot(state.blocks(id), position)] = written;
        if self.size.is_some() {
            self.window[Self::slot(state.window_blocks(id), position)] = written;
        }
    }

    fn hash(tokens: &[u32]) -> u64 {
        tokens
            .iter()
            .fold(1, |hash: u64, &token| (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }

    fn slot(blocks: &[u32], position: usize) -> usize {
        blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    /// Computes a piece: what lies before it must be this very text.
    fn compute(
        &mut self,
        piece: &Piece,
        state: &State,
        text: &[u32],
        space: Option<PrefixSpace>,
    ) -> Result<(), String> {
        let (blocks, window_blocks) = (state.blocks(piece.id), state.window_blocks(piece.id));
        for position in 0..piece.start {
            let expected = Some((Self::hash(&text[..=position]), space));
            let found = self.full[Self::slot(blocks, position)];
            // A hole is outside of the pool.
            let seen = self.size.is_some_and(|window| position + window.num_tokens > piece.start);
            let in_window = if seen { self.window[Self::slot(window_blocks, position)] } else { expected };
            if found != expected || in_window != expected {
                return Err(format!("{:?} finds something else at position {position} of {}", piece.id, piece.start));
            }
        }
        for position in piece.start..piece.start + piece.len {
            self.write(state, piece.id, &text[..=position], space);
        }
        if let Some(window) = self.size {
            let held = window_blocks.iter().filter(|&&block| block != NO_BLOCK).count();
            let most = KvWindow::blocks_each(window.num_tokens, state.capacity().max_step_tokens);
            if held > most {
                return Err(format!("{:?} holds {held} blocks of a window that needs {most}", piece.id));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_traces_keep_the_promises(
        max_step_tokens in 1..64_usize,
        max_running in 1..12_usize,
        num_blocks in 1..16_usize,
        window in prop::option::of((1..100_usize, 1..16_usize)),
        mut requests in prop::collection::vec(request(), 1..25),
    ) {
        let window = window.map(|(num_tokens, num_blocks)| KvWindow { num_tokens, num_blocks });
        let mut state = windowed(max_step_tokens, max_running, num_blocks, window);
        let num_window_blocks = window.map_or(0, |window| window.num_blocks);
        let longest = state.capacity().max_sequence_tokens();
        prop_assert!(window.is_some() || longest == num_blocks * BLOCK_TOKENS);
        let mut plan = StepPlan::default();
        let mut texts = Texts::default();
        let slots = |num_blocks: usize| vec![None; num_blocks * BLOCK_TOKENS];
        let mut cache = Cache { full: slots(num_blocks), window: slots(num_window_blocks), size: window };
        let mut seen: HashMap<SeqId, Seen> = HashMap::new();
        let mut first_steps: HashMap<(i32, u64), Vec<SeqId>> = HashMap::new();
        requests.sort_by_key(|request| request.arrives);
        let mut pending = requests.clone().into_iter().peekable();
        // Alone, one after the other, with every preemption recomputing everything, it would take less than this.
        let bound: usize = 60 + requests.iter().map(|r| (r.prompt + r.generates) * 16).sum::<usize>() * 4 * requests.len();
        let mut now = 0;
        while pending.peek().is_some() || !state.is_idle() {
            prop_assert!(now < bound, "no end after {now} steps");
            while let Some(request) = pending.next_if(|request| request.arrives <= now) {
                let total = request.prompt + request.generates;
                match state.submit(request.prompt, total, request.class, request.space) {
                    Ok(id) => {
                        prop_assert!(total <= longest);
                        texts.0.insert(id, (0..request.prompt).map(|i| token(request.text, i)).collect());
                        let leaves_at = request.leaves.map(|after| now + after);
                        seen.insert(id, Seen { request, answer: 0, generated: 0, computed: 0, leaves_at, first_step: None });
                    }
                    Err(_) => prop_assert!(total > longest),
                }
            }
            let gone: Vec<SeqId> = seen.iter().filter(|(_, s)| s.leaves_at == Some(now)).map(|(&id, _)| id).collect();
            for id in gone {
                seen.remove(&id);
                texts.0.remove(&id);
                state.remove(id);
            }
            prop_assert_eq!(state.check(), Ok(()));

            let first = state.running().next();
            state.guess(|id| if seen[&id].generated == 0 { 0 } else { (id.0 as usize + now) % 7 });
            state.schedule(&mut plan, &texts);
            prop_assert_eq!(state.check(), Ok(()));
            prop_assert!(plan.num_tokens() <= max_step_tokens);
            let num_guesses: usize = plan.pieces.iter().map(|piece| piece.num_guesses).sum();
            let spare_rows = 5 + max_running.saturating_sub(max_step_tokens);
            prop_assert!(num_guesses <= spare_rows, "{} guesses", num_guesses);
            prop_assert!(plan.pieces.len() <= max_running);
            prop_assert_eq!(plan.pieces.is_empty(), state.is_idle(), "a step without work while someone waits");
            prop_assert!(
                first.is_none() || plan.pieces.first().map(|piece| piece.id) == first,
                "the first of the running ones makes progress"
            );
            for id in &plan.preempted {
                prop_assert!(plan.pieces.iter().all(|piece| piece.id != *id));
                seen.get_mut(id).unwrap().computed = 0;
            }
            for admission in &plan.admitted {
                let s = seen.get_mut(&admission.id).unwrap();
                prop_assert_eq!(s.computed, 0);
                prop_assert!(admission.cached_tokens == 0 || s.request.space.is_some());
                s.computed = admission.cached_tokens;
            }
            for piece in &plan.pieces {
                let s = seen.get_mut(&piece.id).unwrap();
                prop_assert_eq!(piece.start, s.computed, "no token is skipped or computed twice");
                prop_assert_eq!(piece.num_tokens, s.request.prompt + s.generated);
                prop_assert!(piece.len >= 1 && piece.start + piece.len <= piece.num_tokens);
                if s.first_step.replace(now).is_none() && s.answer == 0 {
                    first_steps.entry((s.request.class.priority, s.request.class.client)).or_default().push(piece.id);
                }
                s.computed += piece.len;
                prop_assert_eq!(piece.output != OutputRows::None, s.computed == piece.num_tokens);
                prop_assert_eq!(piece.output == OutputRows::All, piece.num_guesses > 0);
                prop_assert!(piece.num_guesses == 0 || piece.len == 1);
                let room = state.blocks(piece.id).len() * BLOCK_TOKENS;
                prop_assert!(room >= piece.num_tokens.min(s.computed) + piece.num_guesses);
                let computed = cache.compute(piece, &state, texts.tokens(piece.id), s.request.space);
                prop_assert_eq!(computed, Ok(()));
            }
            state.advance(&plan, &texts);
            prop_assert_eq!(state.check(), Ok(()));
            for piece in &plan.pieces {
                if piece.output != OutputRows::None {
                    // Some guesses are right: their keys and values are there.
                    let s = seen.get_mut(&piece.id).unwrap();
                    let num_right = (now % (piece.num_guesses + 1)).min(s.request.generates - s.generated - 1);
                    for position in piece.num_tokens..piece.num_tokens + num_right {
                        let text = texts.0.get_mut(&piece.id).unwrap();
                        text.push(token(s.request.text, position) + 100_000 * s.answer);
                        cache.write(&state, piece.id, text, s.request.space);
                        state.append(piece.id);
                    }
                    state.accept(piece.id, num_right);
                    s.computed += num_right;
                    s.generated += num_right;
                    if s.generated == 0 && s.answer == 0 && s.request.generates > 1 {
                        for answer in 1..=s.request.forks {
                            let s = &seen[&piece.id];
                            let fork = state.fork(piece.id).unwrap();
                            let runs = state.running().any(|id| id == fork.id);
                            prop_assert!(runs || fork.copies == [None; 2]);
                            fork.copies.into_iter().flatten().for_each(|copy| cache.copy(copy));
                            let computed = if runs { s.computed } else { 0 };
                            let request = s.request.clone();
                            let mut text = texts.tokens(piece.id).to_vec();
                            text.push(token(request.text, piece.num_tokens) + 100_000 * answer);
                            texts.0.insert(fork.id, text);
                            state.append(fork.id);
                            prop_assert_eq!(state.check(), Ok(()));
                            let leaves_at = s.leaves_at;
                            seen.insert(fork.id, Seen {
                                request, answer, generated: 1, computed, leaves_at, first_step: Some(now),
                            });
                        }
                    }
                    let s = seen.get_mut(&piece.id).unwrap();
                    s.generated += 1;
                    if s.generated == s.request.generates {
                        seen.remove(&piece.id);
                        texts.0.remove(&piece.id);
                        state.remove(piece.id);
                    } else {
                        let next = token(s.request.text, piece.num_tokens + num_right) + 100_000 * s.answer;
                        texts.0.get_mut(&piece.id).unwrap().push(next);
                        state.append(piece.id);
                    }
                }
            }
            now += 1;
        }
        prop_assert!(seen.is_empty());
        prop_assert_eq!(state.num_free_blocks(), num_blocks);
        prop_assert_eq!(state.num_free_window_blocks(), num_window_blocks);
        for (client, order) in first_steps {
            prop_assert!(order.is_sorted(), "{:?}: first come, first served: {:?}", client, order);
        }
    }
}
