//! Sets of lanes.

use super::super::ir::{Double, LANES, Word};

/// The lanes of a set, lowest first.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

/// The lowest lane of a set; 0 if it is empty.
pub(super) fn first(mask: u32) -> usize {
    mask.trailing_zeros() as usize % LANES
}

/// Stores a result in the lanes of a set.
#[inline(always)]
pub(super) fn blend_word(to: &mut Word, from: &Word, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..LANES {
        let keep = (mask >> lane & 1).wrapping_sub(1);
        to[lane] = to[lane] & keep | from[lane] & !keep;
    }
}

/// Stores a result in the lanes of a set.
#[inline(always)]
pub(super) fn blend_double(to: &mut Double, from: &Double, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..LANES {
        let keep = u64::from(mask >> lane & 1).wrapping_sub(1);
        to[lane] = to[lane] & keep | from[lane] & !keep;
    }
}
