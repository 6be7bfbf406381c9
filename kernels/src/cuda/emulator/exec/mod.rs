//! Running programs: a launch's blocks one after the other, a block's warps in turns, a warp's lanes in lockstep.

mod block;
mod collective;
mod copy;
mod lanes;
mod launch;
mod matrix;
mod memory;
mod shared;
mod warp;

pub(super) use launch::launch;
