//! Runs a step.

use super::ops::Run;
use super::*;
use crate::cpu::team::Worker;
use crate::program::Machine;

impl Machine for Program {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError> {
        self.memory.check.check(input).map_err(ProgramError::Step)?;
        let (code, memory) = (&self.code, &self.memory);
        self.team.run(&|worker: &Worker<'_>| {
            // SAFETY: each worker has its own scratch and never touches another's.
            let scratch = unsafe { memory.scratch[worker.index].get() };
            let mut run = Run { code, memory, input, worker, scratch };
            for step in &code.instrs {
                if step.barrier && !worker.barrier() {
                    return;
                }
                // SAFETY: `build` has checked the shapes and placed the barriers, `InputCheck` the step: the three
                // points of the module's documentation hold.
                unsafe {
                    match &step.work {
                        Work::Instr(instr) => run.execute(instr),
                        Work::PackFloats(x) => run.pack_floats(x),
                        Work::GluQuantize(instr, act) => run.glu_quantize(instr, *act),
                        Work::QuantizeFew(x, act) => run.quantize_few(x, *act),
                    }
                }
            }
        })?;
        Ok(self.outputs(input.outputs.len()))
    }

    fn outputs(&self, num_rows: usize) -> &[f32] {
        let Some(output) = &self.code.output else { return &[] };
        let slot = &self.code.buffers[output.buf.0];
        let num_rows = num_rows.min(self.code.size.max_outputs);
        // SAFETY: the team is done, and the next step needs the program exclusively.
        unsafe { self.memory.arena.slice(slot.offset..slot.offset + num_rows * slot.width) }
    }

    fn read_output(&self, row: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        self.code.size.check_output(row)?;
        let width = self.code.output.as_ref().map_or(0, |output| output.width);
        into.clear();
        into.extend_from_slice(&self.outputs(row + 1)[row * width..]);
        Ok(())
    }

    fn read_rows(&mut self, buf: BufId, num_rows: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        let slot = self.slot(buf)?;
        let range = self.rows_range(slot, num_rows * slot.width)?;
        into.clear();
        into.extend_from_slice(self.memory.arena.get_mut(range));
        Ok(())
    }

    fn write_rows(&mut self, buf: BufId, rows: &[f32]) -> Result<(), ProgramError> {
        let range = self.rows_range(self.slot(buf)?, rows.len())?;
        self.memory.arena.get_mut(range).copy_from_slice(rows);
        Ok(())
    }

    fn hidden(&self, num_rows: usize) -> &[f32] {
        let Some(span) = &self.code.hidden else { return &[] };
        let slot = &self.code.buffers[span.buf.0];
        let num_rows = num_rows.min(self.code.size.max_tokens);
        // SAFETY: the team is done, and the next step needs the program exclusively.
        unsafe { self.memory.arena.slice(slot.offset..slot.offset + num_rows * slot.width) }
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<(), ProgramError> {
        self.code.size.check_block(pool, from.max(to))?;
        for (from, to) in self.code.block_ranges(pool, from).zip(self.code.block_ranges(pool, to)) {
            self.memory.kv.copy_within(from, to.start);
        }
        Ok(())
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.code.block_ranges(pool, 0).map(|range| range.len()).sum()
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<(), ProgramError> {
        self.code.size.check_block(pool, block)?;
        for range in self.code.block_ranges(pool, block) {
            into.extend_from_slice(self.memory.kv.get_mut(range));
        }
        Ok(())
    }

    fn write_block(&mut self, pool: KvPool, block: u32, mut bytes: &[u8]) -> Result<(), ProgramError> {
        self.code.size.check_write(pool, block, bytes, self.block_bytes(pool))?;
        for range in self.code.block_ranges(pool, block) {
            let (part, rest) = bytes.split_at(range.len());
            self.memory.kv.get_mut(range).copy_from_slice(part);
            bytes = rest;
        }
        Ok(())
    }

    fn rest(&self) {
        self.team.rest();
    }
}

impl Program {
    /// A buffer, or that there is none.
    fn slot(&self, buf: BufId) -> Result<&BufferSlot, ProgramError> {
        self.code.buffers.get(buf.0).ok_or_else(|| ProgramError::Step("unknown buffer".into()))
    }

    /// Where the first elements of a buffer lie in the arena: whole rows.
    fn rows_range(&self, slot: &BufferSlot, num_elements: usize) -> Result<Range<usize>, ProgramError> {
        self.code.size.check_rows(slot.rows, slot.width, num_elements)?;
        Ok(slot.offset..slot.offset + num_elements)
    }
}
