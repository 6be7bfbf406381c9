//! `cp.async`: copies that land as late as the program allows.
//!
//! A copy's bytes are fetched and stored only when its thread waits for its group. Until then the target counts as under
//! way, and whoever reads it is told so.

use super::super::error::Trap;
use super::super::ir::{Address, Index, LANES, Predicate};
use super::lanes::lanes;
use super::launch::Env;
use super::memory::{denied, resolve};
use super::shared::Touching;
use super::warp::Warp;

/// A copy that hasn't been waited for.
struct Copy {
    lane: usize,
    /// The lane's number of groups committed before this copy.
    group: u32,
    to: u64,
    from: u64,
    bytes: usize,
    /// The first so many come from the source, zeros follow.
    source_bytes: usize,
}

/// A warp's copies under way.
#[derive(Default)]
pub(super) struct Copies {
    waiting: Vec<Copy>,
    committed: [u32; LANES],
}

impl Copies {
    /// Forgets everything, for the next block.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.committed = [0; LANES];
    }

    /// Forgets the copies of lanes that exit.
    pub(super) fn forget(&mut self, mask: u32) {
        self.waiting.retain(|copy| mask >> copy.lane & 1 == 0);
    }

    /// Closes the current group of some lanes.
    pub(super) fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }
}

impl Warp {
    pub(super) fn copy_async(
        &mut self,
        env: &mut Env<'_>,
        [to, from]: [&Address; 2],
        bytes: u8,
        source_bytes: Option<Index>,
        ignore: Option<Predicate>,
        mask: u32,
    ) -> Result<(), Trap> {
        let targets = self.addresses(to);
        let sources = self.addresses(from);
        let ignored = ignore.map_or(0, |predicate| self.predicate(predicate));
        let bytes = usize::from(bytes);
        for lane in lanes(mask) {
            let source_bytes = match source_bytes {
                _ if ignored >> lane & 1 == 1 => 0,
                Some(index) => self.word(index)[lane] as usize,
                None => bytes,
            };
            if source_bytes > bytes {
                let what = format!("a copy of {bytes} bytes takes {source_bytes} from its source");
                return Err(Trap::at(lane as u32, sources[lane], what));
            }
            let (_, target) = resolve(to.space, targets[lane]);
            env.shared.touch(target, bytes, self.index, lane, Touching::CopyStart)?;
            if !sources[lane].is_multiple_of(bytes as u64) {
                return Err(Trap::at(lane as u32, sources[lane], "misaligned source of an asynchronous copy"));
            }
            let group = self.copies.committed[lane];
            self.copies.waiting.push(Copy { lane, group, to: target, from: sources[lane], bytes, source_bytes });
        }
        Ok(())
    }

    /// Lands the copies of all groups but the last `pending` ones; without a number, everything.
    pub(super) fn copy_wait(&mut self, env: &mut Env<'_>, pending: Option<u32>, mask: u32) -> Result<(), Trap> {
        let committed = self.copies.committed;
        let lands = |copy: &Copy| {
            mask >> copy.lane & 1 == 1
                && pending.is_none_or(|pending| copy.group < committed[copy.lane].saturating_sub(pending))
        };
        let (landing, waiting) = std::mem::take(&mut self.copies.waiting).into_iter().partition::<Vec<_>, _>(lands);
        self.copies.waiting = waiting;
        for copy in landing {
            let mut data = [0u8; 16];
            // A part that isn't a power of two is read byte by byte: the source is one allocation or it isn't.
            for (at, byte) in data[..copy.source_bytes].iter_mut().enumerate() {
                let address = copy.from + at as u64;
                let source = env.memory.load(address, 1).map_err(|why| denied(copy.lane, address, &why))?;
                *byte = source[0];
            }
            let target = env.shared.touch(copy.to, copy.bytes, self.index, copy.lane, Touching::CopyEnd)?;
            target.copy_from_slice(&data[..copy.bytes]);
        }
        Ok(())
    }
}
