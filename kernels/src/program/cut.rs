//! Where a program can be cut, and the programs of its stages.
//!
//! A stage is a run of instructions as a program of its own, for a machine of its own: with the weights, buffers and KV caches
//! that its instructions name and no others. What crosses a cut are rows of buffers that were written before it and are read
//! after it: in a decoder that is the residual stream, but it is found by looking, not assumed.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use super::instr::Number;
use super::{ActId, BufId, CacheId, Instr, ProgramBuilder, ProgramError, ProgramSize, Rows, Span, VecId, WeightId};

/// A place between two layers. Layers are counted by their KV caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Layers before it. Before the first cut, which has none, are the embeddings.
    pub layer: usize,
    /// Instructions before it.
    instr: usize,
    /// Buffers whose rows cross it.
    pub(super) live: Vec<BufId>,
}

/// A part of a program between two cuts, as a program of its own.
pub struct Stage {
    /// Its instructions and all that they name.
    pub program: ProgramBuilder,
    /// What a step returns, if it is the last.
    pub output: Option<Span>,
    /// Its caches' numbers in the whole program.
    pub caches: Vec<CacheId>,
    /// Rows that come from stages before it: the buffer's number in the whole program, and here.
    pub(super) takes: Vec<(BufId, BufId)>,
    /// Rows for stages after it.
    pub(super) gives: Vec<(BufId, BufId)>,
}

impl ProgramBuilder {
    /// Where this program can be cut, at most once before each layer, in order. Between two layers it is the place where the
    /// fewest columns are alive, the last of several. There is none where the layers share a cache.
    ///
    /// # Errors
    /// When the program is wrong: see [`ProgramError::Instr`].
    pub fn cuts(&self, output: &Span, size: &ProgramSize) -> Result<Vec<Cut>, ProgramError> {
        self.check_all(Some(output), size)?;
        let living = self.living(output);
        let cut = |(layer, places): (usize, RangeInclusive<usize>)| {
            let places = places.filter(|&place| living[place].acts.is_empty() && !living[place].columns.is_empty());
            let instr = places.min_by_key(|&place| (living[place].width(), Reverse(place)))?;
            let mut live: Vec<BufId> = living[instr].columns.iter().map(|span| span.buf).collect();
            live.sort_unstable_by_key(|buf| buf.0);
            live.dedup();
            Some(Cut { layer, instr, live })
        };
        Ok(self.between_layers().into_iter().enumerate().filter_map(cut).collect())
    }

    /// The instructions from one cut (`None`: the beginning) to another (the end) as a program. The cuts are of this program and
    /// in order.
    pub fn stage(&self, output: &Span, from: Option<&Cut>, to: Option<&Cut>) -> Stage {
        let start = from.map_or(0, |cut| cut.instr);
        let end = to.map_or(self.instrs.len(), |cut| cut.instr).max(start);
        let mut instrs = self.instrs[start..end].to_vec();
        let [mut buffers, mut acts, mut caches, mut weights, mut vectors] = [const { Kept(Vec::new()) }; 5];
        for instr in &mut instrs {
            instr.for_each_number(|number| match number {
                Number::Buffer(id) => *id = BufId(buffers.number(id.0)),
                Number::Act(id) => *id = ActId(acts.number(id.0)),
                Number::Cache(id) => *id = CacheId(caches.number(id.0)),
                Number::Weight(id) => *id = WeightId(weights.number(id.0)),
                Number::Vector(id) => *id = VecId(vectors.number(id.0)),
            });
        }
        let written: Vec<BufId> = instrs.iter().flat_map(Instr::writes).map(|span| span.buf).collect();
        let living = |cut: Option<&Cut>| -> Vec<(BufId, BufId)> {
            let live = cut.map_or(&[][..], |cut| &cut.live).iter();
            // What isn't named here stays where it is.
            live.filter_map(|&buf| Some((buf, BufId(buffers.find(buf.0)?)))).collect()
        };
        let (takes, mut gives) = (living(from), living(to));
        gives.retain(|(_, own)| written.contains(own));
        let is_last = to.is_none();
        let mut named = |span: &Span| Span { buf: BufId(buffers.number(span.buf.0)), ..*span };
        let output = is_last.then(|| named(output));
        let hidden = self.hidden.as_ref().filter(|_| is_last).map(named);
        let crossing = takes.iter().chain(&gives).map(|(_, own)| *own).collect();
        let program = ProgramBuilder {
            buffers: buffers.of(&self.buffers),
            acts: acts.of(&self.acts),
            caches: caches.of(&self.caches),
            weights: weights.of(&self.weights),
            vectors: vectors.of(&self.vectors),
            // All of them, so that a step's input serves every stage.
            rope_halves: self.rope_halves.clone(),
            instrs,
            hidden,
            crossing,
        };
        Stage { program, output, caches: caches.0.into_iter().map(CacheId).collect(), takes, gives }
    }

    /// For each layer the places where it could begin: none inside an attention, none behind rows that only the outputs have.
    fn between_layers(&self) -> Vec<RangeInclusive<usize>> {
        let touches = |cache: usize| {
            self.instrs.iter().enumerate().filter(move |(_, instr)| {
                matches!(instr, Instr::StoreKv { cache: CacheId(id), .. } | Instr::Attend { cache: CacheId(id), .. } if *id == cache)
            })
        };
        let mut layers: Vec<(usize, usize)> = (0..self.caches.len())
            .filter_map(|cache| Some((touches(cache).next()?.0, touches(cache).next_back()?.0)))
            .collect();
        layers.sort_unstable();
        let of_outputs = |instr: &Instr| instr.writes().iter().any(|span| self.rows_of(span) != Rows::Tokens);
        let outputs = self.instrs.iter().position(of_outputs).unwrap_or(self.instrs.len());
        let first = layers.first().map_or(0, |layer| layer.0);
        let is_embed = |instr: &Instr| matches!(instr, Instr::Embed { .. });
        // Behind the embeddings, and behind all layers so far.
        let mut behind = self.instrs[..first].iter().rposition(is_embed).map_or(0, |embed| embed + 1);
        let mut places = Vec::with_capacity(layers.len());
        for (first, last) in layers {
            places.push(behind..=first.min(outputs));
            behind = behind.max(last + 1);
        }
        places
    }

    /// What is alive before each instruction, and at the end.
    fn living(&self, output: &Span) -> Vec<Living> {
        let mut now = Living::default();
        [Some(*output), self.hidden].into_iter().flatten().for_each(|span| now.read(span));
        let mut living = vec![now.clone()];
        for instr in self.instrs.iter().rev() {
            instr.writes().iter().for_each(|span| now.write(span));
            if let Instr::Quantize { act, .. } = instr {
                now.acts.retain(|live| live != act);
            }
            instr.reads().into_iter().for_each(|span| now.read(span));
            if let Instr::MatMul { x: super::MatMulX::Act(act), .. } = instr
                && !now.acts.contains(act)
            {
                now.acts.push(*act);
            }
            living.push(now.clone());
        }
        living.reverse();
        living
    }
}

/// What will be read before it is written.
#[derive(Debug, Clone, Default)]
struct Living {
    /// Disjoint.
    columns: Vec<Span>,
    acts: Vec<ActId>,
}

impl Living {
    /// Nobody before here is asked for these columns.
    fn write(&mut self, written: &Span) {
        let (start, end) = (written.start, written.start + written.width);
        let left = |span: &Span| {
            let before = Span { width: span.width.min(start.saturating_sub(span.start)), ..*span };
            let after = span.start.max(end);
            let after = Span { start: after, width: (span.start + span.width).saturating_sub(after), ..*span };
            [before, after].into_iter().filter(|span| span.width > 0)
        };
        let (hit, mut kept): (Vec<Span>, Vec<Span>) = self.columns.iter().partition(|span| span.overlaps(written));
        kept.extend(hit.iter().flat_map(left));
        self.columns = kept;
    }

    fn read(&mut self, span: Span) {
        self.write(&span);
        self.columns.push(span);
    }

    fn width(&self) -> usize {
        self.columns.iter().map(|span| span.width).sum()
    }
}

/// The things of a program that one of its stages keeps: their numbers there, in the order of those here.
struct Kept(Vec<usize>);

impl Kept {
    fn find(&self, whole: usize) -> Option<usize> {
        self.0.iter().position(|&kept| kept == whole)
    }

    fn number(&mut self, whole: usize) -> usize {
        self.find(whole).unwrap_or_else(|| {
            self.0.push(whole);
            self.0.len() - 1
        })
    }

    fn of<T: Clone>(&self, all: &[T]) -> Vec<T> {
        self.0.iter().map(|&kept| all[kept].clone()).collect()
    }
}
