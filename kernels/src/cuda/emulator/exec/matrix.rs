//! Matrices spread over a warp: `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.
//!
//! With `g = lane / 4` and `t = lane % 4`, and `e` elements in a register, every shape of `mma` is laid out alike:
//! - A (rows x k): register r has row `g + 8 (r % 2)` and columns `e t + j + 4 e (r / 2)`, or row `g` and columns
//!   `e t + j` if A has 8 rows and one register;
//! - B (k x 8): register r has rows `e t + j + 4 e r` and column `g`;
//! - C and D: register r has row `g + 8 (r / 2)` and column `2 t + r % 2`; as halves, row `g + 8 r` and columns `2 t` and
//!   `2 t + 1`.

use std::ops::{Add, Mul};

use super::super::error::Trap;
use super::super::ir::{Address, Index, LANES, Mma, Space, Type};
use super::super::ops::convert::{from_e4m3, from_e5m2};
use super::super::ops::half::{from_bf16, from_f16};
use super::super::ops::rounding::{F16, Mode, round, two_sum};
use super::lanes::{first, lanes};
use super::launch::Env;
use super::memory::resolve;
use super::shared::Touching;
use super::warp::Warp;

/// Rows of the largest A, columns of B, and the largest k.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const MAX_K: usize = 32;

impl Warp {
    /// All lanes have to run a matrix instruction together.
    fn whole_warp(&self, mask: u32) -> Result<(), Trap> {
        if mask == u32::MAX {
            return Ok(());
        }
        Err(Trap::new(first(mask) as u32, format!("a matrix instruction of a part of a warp: {mask:#010x}")))
    }

    /// Row addresses: lane `8 i + r` gives row `r` of matrix `i`.
    fn rows(&self, address: &Address, matrices: usize) -> Result<[u64; LANES], Trap> {
        let mut rows = self.addresses(address);
        for (lane, row) in rows.iter_mut().enumerate().take(8 * matrices) {
            let (space, at) = resolve(address.space, *row);
            if space != Space::Shared {
                return Err(Trap::at(lane as u32, *row, "a matrix outside of shared memory"));
            }
            *row = at;
        }
        Ok(rows)
    }

    pub(super) fn load_matrices(
        &mut self,
        env: &mut Env<'_>,
        address: &Address,
        transpose: bool,
        d: &[Index],
        mask: u32,
    ) -> Result<(), Trap> {
        self.whole_warp(mask)?;
        let rows = self.rows(address, d.len())?;
        for (matrix, &d) in d.iter().enumerate() {
            let mut elements = [[0u16; 8]; 8];
            for (row, elements) in elements.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                let touching = Touching::Read { strong: false };
                let bytes = env.shared.touch(rows[lane], 16, self.index, lane, touching)?;
                for (element, bytes) in elements.iter_mut().zip(bytes.chunks_exact(2)) {
                    *element = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
            }
            self.words[d as usize] = spread(&elements, transpose);
        }
        Ok(())
    }

    pub(super) fn store_matrices(
        &mut self,
        env: &mut Env<'_>,
        address: &Address,
        transpose: bool,
        a: &[Index],
        mask: u32,
    ) -> Result<(), Trap> {
        self.whole_warp(mask)?;
        let rows = self.rows(address, a.len())?;
        for (matrix, &a) in a.iter().enumerate() {
            let elements = collect(self.word(a), transpose);
            for (row, elements) in elements.iter().enumerate() {
                let lane = 8 * matrix + row;
                let touching = Touching::Write { strong: false };
                let bytes = env.shared.touch(rows[lane], 16, self.index, lane, touching)?;
                for (element, bytes) in elements.iter().zip(bytes.chunks_exact_mut(2)) {
                    bytes.copy_from_slice(&element.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    pub(super) fn transpose(&mut self, d: Index, a: Index, mask: u32) -> Result<(), Trap> {
        self.whole_warp(mask)?;
        let elements = collect(self.word(a), false);
        self.words[d as usize] = spread(&elements, true);
        Ok(())
    }

    pub(super) fn mma(&mut self, mma: &Mma, mask: u32) -> Result<(), Trap> {
        self.whole_warp(mask)?;
        match mma.accumulator {
            Type::Signed(_) => self.mma_integer(mma),
            _ => self.mma_float(mma),
        }
        Ok(())
    }

    fn mma_integer(&mut self, mma: &Mma) {
        // Sums of 32 products of bytes stay below 2^22, so that singles hold them exactly.
        let product = match (mma.a_type, mma.b_type) {
            (Type::Signed(_), Type::Signed(_)) => self.product::<_, 4>(mma, signed, signed),
            (Type::Signed(_), _) => self.product::<_, 4>(mma, signed, unsigned),
            (_, Type::Signed(_)) => self.product::<_, 4>(mma, unsigned, signed),
            (_, _) => self.product::<_, 4>(mma, unsigned, unsigned),
        };
        for (r, (&d, &c)) in mma.d.iter().zip(&mma.c).enumerate() {
            let c = *self.word(c);
            self.words[d as usize] = std::array::from_fn(|lane| {
                let sum = product[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2] as i32;
                let c = c[lane] as i32;
                if mma.saturate { c.saturating_add(sum) as u32 } else { c.wrapping_add(sum) as u32 }
            });
        }
    }

    fn mma_float(&mut self, mma: &Mma) {
        // Products of these types are exact in a double. Their sum may be rounded in it, and is rounded again to the
        // accumulator's type: closer to the exact sum than any device comes.
        let product: [[f64; COLUMNS]; ROWS] = match (mma.a_type, mma.b_type) {
            (Type::F16, _) => self.product::<_, 2>(mma, |x| from_f16(x).into(), |x| from_f16(x).into()),
            (Type::Bf16, _) => self.product::<_, 2>(mma, |x| from_bf16(x).into(), |x| from_bf16(x).into()),
            (Type::Tf32, _) => self.product::<_, 1>(mma, tf32, tf32),
            (Type::E4m3, Type::E4m3) => self.product::<_, 4>(mma, |x| from_e4m3(x).into(), |x| from_e4m3(x).into()),
            (Type::E4m3, _) => self.product::<_, 4>(mma, |x| from_e4m3(x).into(), |x| from_e5m2(x).into()),
            (_, Type::E4m3) => self.product::<_, 4>(mma, |x| from_e5m2(x).into(), |x| from_e4m3(x).into()),
            (_, _) => self.product::<_, 4>(mma, |x| from_e5m2(x).into(), |x| from_e5m2(x).into()),
        };
        // All of C is read before any of D is written: they may be the same registers in another order.
        let c: Vec<_> = mma.c.iter().map(|&c| *self.word(c)).collect();
        for (r, (&d, c)) in mma.d.iter().zip(&c).enumerate() {
            self.words[d as usize] = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                if mma.accumulator == Type::F16 {
                    let one = |j: usize| {
                        let c = f64::from(from_f16(c[lane] >> (16 * j) & 0xffff));
                        let (value, residual) = two_sum(product[g + 8 * r][2 * t + j], c);
                        round(value, residual, F16, Mode::Nearest)
                    };
                    return one(0) | one(1) << 16;
                }
                let value = (product[g + 8 * (r / 2)][2 * t + r % 2] + f64::from(f32::from_bits(c[lane]))) as f32;
                if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
            });
        }
    }

    /// A B, of fragments with `E` elements in a register, decoded to numbers in which the products are exact.
    #[inline(always)]
    fn product<T, const E: usize>(
        &self,
        mma: &Mma,
        decode_a: impl Fn(u32) -> T,
        decode_b: impl Fn(u32) -> T,
    ) -> [[T; COLUMNS]; ROWS]
    where
        T: Copy + Default + Add<Output = T> + Mul<Output = T>,
    {
        let zero = T::default();
        let mut a = [[zero; MAX_K]; ROWS];
        let mut b = [[zero; COLUMNS]; MAX_K];
        let k = usize::from(mma.k);
        let bits = 32 / E as u32;
        let ones = u32::MAX >> (32 - bits);
        let row_groups = if mma.a.len() == 1 { 1 } else { 2 };
        for (r, &register) in mma.a.iter().enumerate() {
            let word = self.word(register);
            let first = 4 * E * (r / row_groups);
            for (g, row) in a[8 * (r % row_groups)..][..8].iter_mut().enumerate() {
                for (t, elements) in row[first..first + 4 * E].chunks_exact_mut(E).enumerate() {
                    for (j, element) in elements.iter_mut().enumerate() {
                        *element = decode_a((word[4 * g + t] >> (bits * j as u32)) & ones);
                    }
                }
            }
        }
        for (r, &register) in mma.b.iter().enumerate() {
            let word = self.word(register);
            for (n, row) in b[4 * E * r..][..4 * E].iter_mut().enumerate() {
                let (t, j) = (n / E, n % E);
                for (g, element) in row.iter_mut().enumerate() {
                    *element = decode_b((word[4 * g + t] >> (bits * j as u32)) & ones);
                }
            }
        }
        let mut out = [[zero; COLUMNS]; ROWS];
        for (out, a) in out.iter_mut().zip(&a) {
            let mut sums = [zero; COLUMNS];
            for (a, b) in a[..k].iter().zip(&b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = *sum + *a * *b;
                }
            }
            *out = sums;
        }
        out
    }
}

fn signed(bits: u32) -> f32 {
    f32::from(bits as u8 as i8)
}

fn unsigned(bits: u32) -> f32 {
    f32::from(bits as u8)
}

/// The tensor cores ignore what a tf32 hasn't got.
fn tf32(bits: u32) -> f64 {
    f32::from_bits(bits & !0x1fff).into()
}

/// An 8 x 8 matrix as a register: lane `l` has row `l / 4` and columns `2 (l % 4)` and the next; transposed, column and
/// rows.
fn spread(elements: &[[u16; 8]; 8], transpose: bool) -> [u32; LANES] {
    std::array::from_fn(|lane| {
        let (g, t) = (lane / 4, lane % 4);
        let at = |j: usize| u32::from(if transpose { elements[2 * t + j][g] } else { elements[g][2 * t + j] });
        at(0) | at(1) << 16
    })
}

/// The matrix that a register holds.
fn collect(register: &[u32; LANES], transpose: bool) -> [[u16; 8]; 8] {
    let mut elements = [[0; 8]; 8];
    for lane in lanes(u32::MAX) {
        let (g, t) = (lane / 4, lane % 4);
        for j in 0..2 {
            let value = (register[lane] >> (16 * j)) as u16;
            match transpose {
                true => elements[2 * t + j][g] = value,
                false => elements[g][2 * t + j] = value,
            }
        }
    }
    elements
}
