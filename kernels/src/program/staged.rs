//! A machine of machines: each runs a stage of the program, one after the other, with its own memory and its own KV caches.
//!
//! All of them see the same step with the same block tables. Rows that cross a cut go over the host: in a decoder the residual
//! stream, a few KiB a token. Outputs and hidden states are the last stage's.

use super::cut::Stage;
use super::input::InputCheck;
use super::{BufId, Cut, Machine, ProgramBuilder, ProgramError, ProgramSize, ReducedRow, Span, StepInput};
use crate::cpu::kv::KvPool;

/// Runs the stages of a program in turn.
pub struct Staged {
    before: Vec<Running>,
    last: Running,
    /// Of the whole program, so that nothing is written before all is known to be right. `None`: the only stage does that.
    check: Option<InputCheck>,
    /// Columns of an output.
    width: usize,
    size: ProgramSize,
    /// Rows that cross a cut, by the number of their buffer in the whole program.
    crossing: Vec<(BufId, Vec<f32>)>,
}

/// A stage and what runs it.
struct Running {
    machine: Box<dyn Machine>,
    num_caches: usize,
    /// Index in [`Staged::crossing`], and the stage's own buffer.
    takes: Vec<(usize, BufId)>,
    gives: Vec<(usize, BufId)>,
}

impl Running {
    /// Runs a step on the rows that came so far, and leaves those that others need.
    fn run(&mut self, input: &StepInput<'_>, crossing: &mut [(BufId, Vec<f32>)]) -> Result<(), ProgramError> {
        for (rows, own) in &self.takes {
            self.machine.write_rows(*own, &crossing[*rows].1)?;
        }
        self.machine.run(input)?;
        for (rows, own) in &self.gives {
            self.machine.read_rows(*own, input.tokens.len(), &mut crossing[*rows].1)?;
        }
        Ok(())
    }
}

impl Staged {
    /// Cuts a program at some of its [cuts](ProgramBuilder::cuts), in order, and has a machine built for each stage: `build` is
    /// told which one it is, from 0.
    ///
    /// # Errors
    /// Those of `build`, and a program that is wrong.
    pub fn build<E: From<ProgramError>>(
        program: &ProgramBuilder,
        output: &Span,
        size: &ProgramSize,
        cuts: &[Cut],
        mut build: impl FnMut(usize, Stage) -> Result<Box<dyn Machine>, E>,
    ) -> Result<Self, E> {
        program.check_all(Some(output), size)?;
        let mut crossing: Vec<(BufId, Vec<f32>)> = Vec::new();
        let mut number = |(whole, own): &(BufId, BufId)| {
            let known = crossing.iter().position(|(buf, _)| buf == whole);
            let rows = known.unwrap_or_else(|| {
                let (width, rows) = program.buffers[whole.0];
                crossing.push((*whole, Vec::with_capacity(width * size.max_rows(rows))));
                crossing.len() - 1
            });
            (rows, *own)
        };
        let mut run = |index: usize, from: Option<&Cut>, to: Option<&Cut>| {
            let stage = program.stage(output, from, to);
            let num_caches = stage.caches.len();
            let [takes, gives] = [&stage.takes, &stage.gives].map(|rows| rows.iter().map(&mut number).collect());
            Ok::<_, E>(Running { machine: build(index, stage)?, num_caches, takes, gives })
        };
        let mut before = Vec::with_capacity(cuts.len());
        let mut from = None;
        for (index, cut) in cuts.iter().enumerate() {
            before.push(run(index, from, Some(cut))?);
            from = Some(cut);
        }
        let last = run(cuts.len(), from, None)?;
        let check = (!before.is_empty()).then(|| InputCheck::new(program, size));
        Ok(Self { before, last, check, width: output.width, size: *size, crossing })
    }

    fn machines(&self) -> impl Iterator<Item = &Running> {
        self.before.iter().chain([&self.last])
    }

    fn machines_mut(&mut self) -> impl Iterator<Item = &mut Running> {
        self.before.iter_mut().chain([&mut self.last])
    }
}

impl Machine for Staged {
    /// That of the last stage's machine.
    fn name(&self) -> &'static str {
        self.last.machine.name()
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError> {
        if let Some(check) = &mut self.check {
            check.check(input).map_err(ProgramError::Step)?;
            if let Some(reduce) = &input.reduce {
                reduce.check(input.outputs.len(), self.width).map_err(ProgramError::Step)?;
            }
        }
        let inner = StepInput { outputs: &[], hidden: &[], reduce: None, ..*input };
        for stage in &mut self.before {
            stage.run(&inner, &mut self.crossing)?;
        }
        self.last.run(input, &mut self.crossing)?;
        Ok(self.last.machine.outputs(input.outputs.len()))
    }

    fn outputs(&self, num_rows: usize) -> &[f32] {
        self.last.machine.outputs(num_rows)
    }

    fn reduces(&self) -> bool {
        self.last.machine.reduces()
    }

    fn reduced(&self, row: usize) -> Option<ReducedRow<'_>> {
        self.last.machine.reduced(row)
    }

    fn read_output(&self, row: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        self.last.machine.read_output(row, into)
    }

    fn hidden(&self, num_rows: usize) -> &[f32] {
        self.last.machine.hidden(num_rows)
    }

    /// Buffers are known by their numbers in a stage: those of the only one, if there is one.
    fn read_rows(&mut self, buf: BufId, num_rows: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        self.only()?.read_rows(buf, num_rows, into)
    }

    fn write_rows(&mut self, buf: BufId, rows: &[f32]) -> Result<(), ProgramError> {
        self.only()?.write_rows(buf, rows)
    }

    /// A block is cache by cache, whichever machine has it: what counts is which of them lie on which kind.
    fn kv_layout(&self) -> String {
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for Running { machine, num_caches, .. } in self.machines().filter(|stage| stage.num_caches > 0) {
            let kind = machine.kv_layout();
            match kinds.last_mut() {
                Some((last, caches)) if *last == kind => *caches += num_caches,
                _ => kinds.push((kind, *num_caches)),
            }
        }
        match &kinds[..] {
            [] => self.name().to_owned(),
            [(kind, _)] => kind.clone(),
            kinds => kinds.iter().map(|(kind, caches)| format!("{caches} {kind}")).collect::<Vec<_>>().join(" "),
        }
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<(), ProgramError> {
        self.machines_mut().try_for_each(|stage| stage.machine.copy_block(pool, from, to))
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.machines().map(|stage| stage.machine.block_bytes(pool)).sum()
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<(), ProgramError> {
        self.machines_mut().try_for_each(|stage| stage.machine.read_block(pool, block, into))
    }

    fn write_block(&mut self, pool: KvPool, block: u32, mut bytes: &[u8]) -> Result<(), ProgramError> {
        self.size.check_write(pool, block, bytes, self.block_bytes(pool))?;
        for stage in self.machines_mut() {
            let (part, rest) = bytes.split_at(stage.machine.block_bytes(pool));
            stage.machine.write_block(pool, block, part)?;
            bytes = rest;
        }
        Ok(())
    }

    fn rest(&self) {
        self.machines().for_each(|stage| stage.machine.rest());
    }
}

impl Staged {
    fn only(&mut self) -> Result<&mut dyn Machine, ProgramError> {
        if self.before.is_empty() {
            return Ok(&mut *self.last.machine);
        }
        Err(ProgramError::Step("rows of a program in stages lie in its stages".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuKernels;
    use crate::cpu::kv::KvType;
    use crate::cpu::program::Program;
    use crate::program::testing::{HEAD_DIM, HEADS, Input, KV_HEADS, Kit, size};
    use crate::program::{Instr, Rows};
    use crate::quant::tests::Rng;

    const LAYERS: usize = 4;

    /// A random program with a cache for each of its layers, in which more than one buffer may live from layer to layer.
    fn layers(seed: u64) -> (ProgramBuilder, Span) {
        let mut kit = Kit::new(seed);
        for span in kit.spans {
            let table = kit.weight(crate::program::testing::VOCAB, span.width);
            kit.program.push(Instr::Embed { table, scale: 3.0, out: span });
        }
        for layer in 0..LAYERS {
            if layer > 0 {
                kit.cache = kit.program.cache(KvPool::Full, KV_HEADS, HEAD_DIM, HEAD_DIM);
            }
            let (cache, [k, v, q, out, ..]) = (kit.cache, kit.spans);
            kit.program.push(Instr::StoreKv { k, v, cache });
            let (scale, softcap, window, sinks) = (0.2, None, None, None);
            let attend = Instr::Attend { q, out, cache, num_heads: HEADS, scale, softcap, window, causal: true, sinks };
            kit.program.push(attend);
            for _ in 0..8 {
                let instr = kit.instr();
                // Quantised rows are there when they are asked for, and are no part of what crosses a cut.
                if let Instr::MatMul { x: crate::program::MatMulX::Act(act), .. } = instr {
                    let width = kit.acts.iter().position(|known| *known == act).unwrap();
                    kit.program.push(Instr::Quantize { x: kit.spans[2 * width], act });
                }
                kit.program.push(instr);
            }
        }
        let buf = kit.program.buffer(kit.spans[0].width, Rows::Outputs);
        let out = kit.program.span(buf);
        kit.program.push(Instr::Gather { x: kit.spans[0], out });
        (kit.program, out)
    }

    fn staged(program: &ProgramBuilder, output: &Span, size: &ProgramSize, cuts: &[Cut]) -> Staged {
        let machine = |_, Stage { program, output, .. }: Stage| -> Result<Box<dyn Machine>, ProgramError> {
            Ok(Box::new(Program::new(CpuKernels::detect(), 1, program, output, *size)?))
        };
        Staged::build(program, output, size, cuts, machine).unwrap()
    }

    #[test]
    fn stages_give_the_bits_of_the_whole_program_and_share_nothing_but_rows() {
        let size = size(KvType::F16.into());
        let (mut num_cuts, mut most_live) = (0, 0);
        for seed in 0..30 {
            let (program, output) = layers(seed);
            let cuts = program.cuts(&output, &size).unwrap();
            assert!(cuts.is_sorted_by_key(|cut| cut.layer), "seed {seed}");
            num_cuts += cuts.len();
            most_live = most_live.max(cuts.iter().map(|cut| cut.live.len()).max().unwrap_or(0));
            let mut whole = staged(&program, &output, &size, &[]);
            let every_other: Vec<Cut> = cuts.iter().step_by(2).cloned().collect();
            let mut split: Vec<Staged> =
                [&cuts[..], &every_other].map(|cuts| staged(&program, &output, &size, cuts)).into();
            let mut rng = Rng(seed);
            for pieces in [[(5, 0), (33, 0)], [(1, 5), (1, 33)]] {
                let input = Input::new(&mut rng, pieces);
                let expected = whole.run(&input.as_step()).unwrap().to_vec();
                for split in &mut split {
                    assert_eq!(split.run(&input.as_step()).unwrap(), expected, "seed {seed}, {} cuts", cuts.len());
                }
            }
            let bytes = whole.block_bytes(KvPool::Full);
            let mut block = Vec::new();
            whole.read_block(KvPool::Full, 1, &mut block).unwrap();
            for split in &mut split {
                let mut same = Vec::new();
                split.read_block(KvPool::Full, 1, &mut same).unwrap();
                assert!(same.len() == bytes && same == block, "seed {seed}: a block of all caches");
                split.write_block(KvPool::Full, 2, &block).unwrap();
                assert!(split.write_block(KvPool::Full, 2, &block[1..]).is_err());
                same.clear();
                split.read_block(KvPool::Full, 2, &mut same).unwrap();
                assert!(same == block, "seed {seed}: a block that was written");
                split.copy_block(KvPool::Full, 3, 1).unwrap();
                // A step that is wrong for the last stage alone runs nowhere.
                let mut input = Input::new(&mut rng, [(1, 5), (1, 33)]);
                input.outputs = vec![2];
                assert!(matches!(split.run(&input.as_step()), Err(ProgramError::Step(_))));
            }
            assert_eq!(split[0].kv_layout(), "cpu");
        }
        assert!(num_cuts > 60 && most_live > 1, "{num_cuts} cuts, at most {most_live} buffers across");
    }
}
