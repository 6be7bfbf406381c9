//! Whether guesses pay: how long steps of so many rows took lately, how often guesses were right, and from both the number
//! of guesses that makes tokens come soonest. It reads no clock: the engine's thread tells it what it measured.

/// Steps of more rows aren't told apart, and none is made so wide by guesses: that many rows keep the arithmetic busy.
pub(super) const MAX_ROWS: usize = 64;
/// A time counts for so many steps. Contexts grow and machines get other work meanwhile, so it is measured again then.
const FRESH_STEPS: u64 = 256;
/// What a new time changes: more if it is shorter, as whatever disturbs a step makes it longer.
const WEIGHT_OF_SHORTER: f64 = 0.5;
const WEIGHT_OF_LONGER: f64 = 0.125;
/// A time counts at most for so much of the one known before: a single step that was held up says nothing.
const LONGEST_RATIO: f64 = 2.0;
/// Guesses that gain less than this part aren't worth the risk that the expectation is wrong.
const LEAST_GAIN: f64 = 0.02;

/// Smoothed times of steps, by their number of rows.
#[derive(Debug, Clone)]
pub(super) struct StepTimes {
    /// `[MAX_ROWS + 1]`
    entries: [Option<Entry>; MAX_ROWS + 1],
    num_steps: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    seconds: f64,
    /// The step that was last measured.
    step: u64,
}

impl Default for StepTimes {
    fn default() -> Self {
        Self { entries: [None; MAX_ROWS + 1], num_steps: 0 }
    }
}

impl StepTimes {
    /// A step of `num_rows` rows took so long. Wider ones than [`MAX_ROWS`] only pass the time.
    pub(super) fn note(&mut self, num_rows: usize, seconds: f64) {
        self.num_steps += 1;
        let is_fresh = self.measured(num_rows).is_some();
        let Some(entry) = self.entries.get_mut(num_rows) else { return };
        let seconds = match *entry {
            None => seconds,
            Some(Entry { seconds: before, .. }) => {
                let weight = if is_fresh && seconds > before { WEIGHT_OF_LONGER } else { WEIGHT_OF_SHORTER };
                before + weight * (seconds.min(LONGEST_RATIO * before) - before)
            }
        };
        *entry = Some(Entry { seconds, step: self.num_steps });
    }

    /// A step passed that isn't measured here: what is known gets older.
    pub(super) fn pass(&mut self) {
        self.num_steps += 1;
    }

    /// Seconds of a step of just so many rows, if there was one lately.
    pub(super) fn measured(&self, num_rows: usize) -> Option<f64> {
        let entry = (*self.entries.get(num_rows)?)?;
        (self.num_steps - entry.step < FRESH_STEPS).then_some(entry.seconds)
    }

    /// Seconds that a step of so many rows takes at least, as far as anybody knows: between those of narrower and wider
    /// ones, and beyond the widest as much as that one. What isn't known is tried that way, and then it is known. An old time
    /// counts for half as much, an older one for less: very wide steps are tried again less often than those that cost little.
    fn expected(&self, num_rows: usize) -> Option<f64> {
        let seconds = |rows: usize| {
            let Entry { seconds, step } = self.entries[rows]?;
            let age = (self.num_steps - step) / FRESH_STEPS;
            Some((rows, seconds * 0.5_f64.powi(i32::try_from(age).unwrap_or(i32::MAX))))
        };
        let below = (0..=num_rows.min(MAX_ROWS)).rev().find_map(seconds);
        let above = (num_rows..=MAX_ROWS).find_map(seconds);
        match (below, above) {
            (Some((low, less)), Some((high, more))) if low < high => {
                Some(less + (more - less) * (num_rows - low) as f64 / (high - low) as f64)
            }
            (Some((_, seconds)), _) | (None, Some((_, seconds))) => Some(seconds),
            (None, None) => None,
        }
    }
}

/// The chance that guesses of a sequence stand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Chances {
    /// Of the first.
    pub(super) first: f64,
    /// Of another one, if the one before it stands.
    pub(super) next: f64,
}

/// What guesses came to, the latest counting most.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Record {
    first: Rate,
    next: Rate,
}

impl Record {
    /// The first `num_right` guesses in a row were right, and the one after them was wrong, or nobody knows.
    pub(super) fn note(&mut self, num_right: usize, then: Then) {
        for index in 0..num_right {
            self.rate(index).note(true);
        }
        if then == Then::Wrong {
            self.rate(num_right).note(false);
        }
    }

    /// It counts a little less: so guesses that failed once are tried again some time.
    pub(super) fn fade(&mut self) {
        self.first.fade();
        self.next.fade();
    }

    fn rate(&mut self, index: usize) -> &mut Rate {
        if index == 0 { &mut self.first } else { &mut self.next }
    }

    /// What to expect, where nothing is known as in `prior`.
    pub(super) fn chances(&self, prior: Chances) -> Chances {
        Chances { first: self.first.estimate(prior.first), next: self.next.estimate(prior.next) }
    }
}

/// What came after right guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// A wrong one.
    Wrong,
    /// No guess that was put to the test.
    Untested,
}

/// A share of right ones.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    right: f64,
    tried: f64,
}

impl Rate {
    /// What an older outcome keeps of its weight with each newer one: about the last 20 count.
    const KEEP: f64 = 0.95;
    /// The prior counts as so many outcomes.
    const PRIOR_WEIGHT: f64 = 2.0;
    /// What a share keeps of its weight in a step in which nothing was tried: half of it for 70 steps.
    const KEEP_IDLE: f64 = 0.99;

    fn note(&mut self, is_right: bool) {
        self.right = self.right * Self::KEEP + f64::from(is_right);
        self.tried = self.tried * Self::KEEP + 1.0;
    }

    fn fade(&mut self) {
        self.right *= Self::KEEP_IDLE;
        self.tried *= Self::KEEP_IDLE;
    }

    fn estimate(&self, prior: f64) -> f64 {
        (self.right + Self::PRIOR_WEIGHT * prior) / (self.tried + Self::PRIOR_WEIGHT)
    }
}

/// What one sequence can guess in the next step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    /// Most guesses.
    pub(super) most: usize,
    /// That they stand.
    pub(super) chances: Chances,
    /// Where they come from.
    pub(super) source: Source,
}

/// Where guesses come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source {
    /// They are there.
    Found,
    /// A draft model computes them, if they are wanted.
    Drafted {
        /// What it takes, beside the time of its steps, to begin with the sequence: this step's part of it.
        entry_seconds: f64,
    },
}

/// How long steps take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs<'a> {
    /// The engine's, by rows.
    pub(super) steps: &'a StepTimes,
    /// The draft model's, by sequences. It makes one for each guess of the sequence with the most.
    pub(super) drafts: Option<&'a StepTimes>,
}

/// Writes into `counts` how many guesses of each offer to compute in a step of `num_rows` rows without them, so that the
/// expected tokens a second are the most: all 0 where that is without guesses, or where the time without isn't known.
pub(super) fn choose(costs: Costs<'_>, num_rows: usize, offers: &[Offer], counts: &mut Vec<usize>) {
    let Costs { steps: times, drafts } = costs;
    counts.clear();
    counts.resize(offers.len(), 0);
    let Some(plain) = times.measured(num_rows).filter(|&seconds| seconds > 0.0 && num_rows > 0) else { return };
    let mut best = num_rows as f64 / plain * (1.0 + LEAST_GAIN);
    let (mut taken, mut expected) = (counts.clone(), num_rows as f64);
    let (mut num_drafted, mut depth, mut entries) = (0, 0, 0.0);
    // The likeliest guess first, whosever it is: those of one sequence get less and less likely.
    let mut chances: Vec<f64> = offers.iter().map(|offer| offer.chances.first).collect();
    for width in num_rows + 1..=MAX_ROWS {
        let open = (0..offers.len()).filter(|&index| taken[index] < offers[index].most);
        let Some(index) = open.max_by(|&a, &b| chances[a].total_cmp(&chances[b])) else { return };
        expected += chances[index];
        chances[index] *= offers[index].chances.next;
        taken[index] += 1;
        if let Source::Drafted { entry_seconds } = offers[index].source {
            depth = depth.max(taken[index]);
            if taken[index] == 1 {
                num_drafted += 1;
                entries += entry_seconds;
            }
        }
        let Some(wide) = times.expected(width) else { return };
        let draft_step = drafts.filter(|_| depth > 0).and_then(|drafts| drafts.expected(num_drafted)).unwrap_or(0.0);
        let seconds = wide.max(plain) + depth as f64 * draft_step + entries;
        if expected / seconds > best {
            best = expected / seconds;
            counts.clone_from(&taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of 1 row took 10 ms and of `wide` rows `ratio` times as long.
    fn times(wide: usize, ratio: f64) -> StepTimes {
        let mut times = StepTimes::default();
        times.note(1, 0.010);
        times.note(wide, 0.010 * ratio);
        times
    }

    fn chosen(times: &StepTimes, num_rows: usize, offers: &[(usize, f64, f64)]) -> Vec<usize> {
        let offer = |&(most, first, next): &(usize, f64, f64)| Offer {
            most,
            chances: Chances { first, next },
            source: Source::Found,
        };
        let mut counts = vec![9; 9];
        let costs = Costs { steps: times, drafts: None };
        choose(costs, num_rows, &offers.iter().map(offer).collect::<Vec<_>>(), &mut counts);
        counts
    }

    /// One sequence's drafted guesses, of which `chance` stand each.
    fn drafted(steps: &StepTimes, drafts: &StepTimes, chance: f64, entry_seconds: f64) -> usize {
        let chances = Chances { first: chance, next: chance };
        let offer = Offer { most: 8, chances, source: Source::Drafted { entry_seconds } };
        let mut counts = Vec::new();
        choose(Costs { steps, drafts: Some(drafts) }, 1, &[offer], &mut counts);
        counts[0]
    }

    #[test]
    fn times_lie_between_those_that_were_measured() {
        let times = times(5, 2.0);
        let close = |rows, ms: f64| (times.expected(rows).unwrap() * 1e3 - ms).abs() < 1e-9;
        assert!(close(1, 10.0) && close(3, 15.0) && close(5, 20.0));
        assert!(close(8, 20.0), "beyond the widest nothing is known that speaks against it");
        assert_eq!((times.measured(3), StepTimes::default().expected(1)), (None, None));
    }

    #[test]
    fn a_disturbance_counts_little_and_relief_at_once() {
        let mut times = times(5, 2.0);
        times.note(1, 1.0);
        let after = times.measured(1).unwrap();
        assert!((0.010..0.012).contains(&after), "{after}");
        times.note(1, 0.004);
        assert!(times.measured(1).unwrap() < 0.008);
        for _ in 0..60 {
            times.note(1, 0.030);
        }
        assert!(times.measured(1).unwrap() > 0.029, "what stays is believed");
    }

    #[test]
    fn what_nobody_measured_lately_is_measured_again() {
        let mut times = times(8, 30.0);
        let sure = [(7, 1.0, 1.0)];
        let mut waited = 0;
        while chosen(&times, 1, &sure) == [0] {
            times.note(1, 0.010);
            waited += 1;
        }
        // 30 times a row's time for 8 tokens: it must have halved twice.
        assert!((2 * FRESH_STEPS - 1..=2 * FRESH_STEPS).contains(&waited), "{waited}");
        times.note(8, 0.020);
        let seconds = times.measured(8).unwrap();
        assert!(seconds < 0.17, "an old time weighs no more than the new one: {seconds}");
        for _ in 0..FRESH_STEPS {
            times.note(8, 0.020);
        }
        assert_eq!(times.measured(1), None);
        assert_eq!(chosen(&times, 1, &sure), [0], "a step without guesses comes first");
    }

    #[test]
    fn guesses_are_computed_as_far_as_they_pay() {
        // 8 rows cost 1.7 times one row: each further row a tenth.
        let times = times(8, 1.7);
        assert_eq!(chosen(&times, 1, &[(7, 0.95, 0.95)]), [7]);
        assert_eq!(chosen(&times, 1, &[(3, 0.95, 0.95)]), [3]);
        // Guess i brings 0.6^i: with three, 2.18 tokens in 1.3 of the time; with four, 2.31 in 1.4.
        assert_eq!(chosen(&times, 1, &[(7, 0.6, 0.6)]), [3]);
        assert_eq!(chosen(&times, 1, &[(7, 0.11, 0.9)]), [0], "a tenth more for a tenth of the time is no gain");
        assert_eq!(chosen(&times, 1, &[(0, 1.0, 1.0)]), [0]);
        assert_eq!(chosen(&StepTimes::default(), 1, &[(7, 1.0, 1.0)]), [0]);
    }

    #[test]
    fn the_likeliest_guesses_of_all_sequences_come_first() {
        let mut times = StepTimes::default();
        times.note(3, 0.010);
        times.note(5, 0.010);
        times.note(6, 0.090);
        let offers = [(7, 0.2, 0.9), (7, 0.9, 0.8), (7, 0.3, 0.5)];
        assert_eq!(chosen(&times, 3, &offers), [0, 2, 0]);
        let mut busy = StepTimes::default();
        (40..=MAX_ROWS).for_each(|rows| busy.note(rows, rows as f64));
        assert_eq!(chosen(&busy, 40, &vec![(7, 0.9, 0.9); 40]), vec![0; 40], "where a row costs a row's time, none");
        assert_eq!(chosen(&busy, MAX_ROWS, &[(7, 1.0, 1.0)]), [0]);
    }

    #[test]
    fn drafts_must_earn_their_own_steps_too() {
        let steps = times(9, 1.4);
        let mut drafts = StepTimes::default();
        assert_eq!(drafted(&steps, &drafts, 0.9, 0.0), 8, "what it costs is found out by trying");
        drafts.note(1, 0.010);
        assert_eq!(drafted(&steps, &drafts, 1.0, 0.0), 0, "a draft model that takes as long as the model");
        for _ in 0..9 {
            drafts.note(1, 0.001);
        }
        assert_eq!(drafted(&steps, &drafts, 0.9, 0.0), 8);
        // Each guess costs 1.5 ms: those that bring less than that part of a token aren't made.
        assert!((1..4).contains(&drafted(&steps, &drafts, 0.5, 0.0)));
        assert_eq!(drafted(&steps, &drafts, 0.1, 0.0), 0);
        assert_eq!(drafted(&steps, &drafts, 0.9, 1.0), 0, "a long prompt to compute first");
        // Times that nobody measures for long are taken for shorter, until somebody tries.
        let mut slow = StepTimes::default();
        slow.note(1, 0.020);
        assert_eq!(drafted(&steps, &slow, 0.9, 0.0), 0);
        (0..3 * FRESH_STEPS).for_each(|_| slow.pass());
        assert!(drafted(&steps, &slow, 0.9, 0.0) > 0);
    }

    #[test]
    fn a_record_fades_to_what_happens_lately() {
        let prior = Chances { first: 0.5, next: 0.8 };
        let mut record = Record::default();
        assert_eq!(record.chances(prior), prior);
        (0..50).for_each(|_| record.note(0, Then::Wrong));
        let Chances { first, next } = record.chances(prior);
        assert!(first < 0.06 && next == 0.8, "{first} {next}");
        (0..50).for_each(|_| record.note(3, Then::Wrong));
        let Chances { first, next } = record.chances(prior);
        assert!(first > 0.85 && (0.6..0.73).contains(&next), "{first} {next}");
        (0..50).for_each(|_| record.note(1, Then::Untested));
        assert_eq!(record.chances(prior).next, next, "what wasn't tried says nothing");
        let mut failed = Record::default();
        (0..50).for_each(|_| failed.note(0, Then::Wrong));
        let waited = (0..).take_while(|_| {
            failed.fade();
            failed.chances(prior).first < 0.3
        });
        assert!((100..400).contains(&waited.count()), "failure is forgotten, but not soon");
    }

    /// A run of an engine whose guesses are right in the share `right`, with steps that take `1 + cost · guesses`: how
    /// much faster than without guesses.
    fn speedup(right: f64, cost: f64) -> f64 {
        let (mut times, mut record) = (StepTimes::default(), Record::default());
        let (mut tokens, mut seconds, mut luck) = (0.0, 0.0, 0.5);
        for _ in 0..2000 {
            let chances = record.chances(Chances { first: 0.5, next: 0.8 });
            let offer = Offer { most: 7, chances, source: Source::Found };
            let mut counts = Vec::new();
            choose(Costs { steps: &times, drafts: None }, 1, &[offer], &mut counts);
            let stands = |_: &usize| {
                luck = (luck + 0.618_034) % 1.0;
                luck < right
            };
            // The first is looked at even if it wasn't computed.
            let num_right = (0..counts[0].max(1)).take_while(stands).count();
            let then = if num_right < counts[0].max(1) { Then::Wrong } else { Then::Untested };
            record.note(num_right, then);
            let took = 1.0 + cost * counts[0] as f64;
            times.note(1 + counts[0], took);
            tokens += 1.0 + num_right.min(counts[0]) as f64;
            seconds += took;
        }
        tokens / seconds
    }

    #[test]
    fn whole_runs_gain_where_there_is_something_to_gain_and_else_lose_nothing() {
        for (right, cost, least) in
            [(0.95, 0.1, 2.5), (0.7, 0.1, 1.5), (0.4, 0.15, 1.1), (0.2, 0.3, 0.98), (0.0, 0.1, 0.99), (0.9, 1.0, 0.98)]
        {
            let speedup = speedup(right, cost);
            assert!(speedup > least, "{right} right at {cost}: {speedup}");
        }
    }
}
