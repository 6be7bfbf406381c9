//! Loads, stores and atomics of a warp.

use super::super::error::Trap;
use super::super::ir::{
    Access, Address, AtomicKind, Base, Double, GLOBAL_START, LANES, LOCAL_WINDOW, PARAM_WINDOW, Register,
    SHARED_WINDOW, Space, Type,
};
use super::super::memory::Denied;
use super::super::ops::half::{from_bf16, from_f16, to_bf16, to_f16};
use super::lanes::{first, lanes};
use super::launch::Env;
use super::shared::Touching;
use super::warp::Warp;

/// Bytes of the widest access: a vector of eight words or four doubles.
const WIDEST: usize = 32;

/// The start of a space's window in the generic address space.
fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global => 0,
    }
}

/// The space that a generic address is in.
fn space_of(address: u64) -> Space {
    match address {
        GLOBAL_START.. => Space::Global,
        PARAM_WINDOW.. => Space::Param,
        LOCAL_WINDOW.. => Space::Local,
        SHARED_WINDOW.. => Space::Shared,
        // Nothing is mapped there: null pointers and their neighbours.
        _ => Space::Global,
    }
}

/// An address in its own space.
#[inline]
pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic => {
            let space = space_of(address);
            (space, address - window(space))
        }
        space => (space, address),
    }
}

pub(super) fn denied(lane: usize, address: u64, denied: &Denied) -> Trap {
    Trap::at(lane as u32, address, denied.what())
}

impl Warp {
    /// Each lane's address, in the instruction's space.
    #[inline]
    pub(super) fn addresses(&self, address: &Address) -> Double {
        let offset = address.offset as u64;
        match address.base {
            Base::None => [offset; LANES],
            // A 32-bit address wraps in its 32 bits.
            Base::W(index) => self.word(index).map(|base| u64::from(base.wrapping_add(offset as u32))),
            Base::D(index) => self.double(index).map(|base| base.wrapping_add(offset)),
        }
    }

    /// The bytes that a lane reads.
    #[inline]
    fn bytes<'e>(
        &'e self,
        env: &'e mut Env<'_>,
        space: Space,
        address: u64,
        bytes: usize,
        lane: usize,
        strong: bool,
    ) -> Result<&'e [u8], Trap> {
        let (space, address) = resolve(space, address);
        match space {
            Space::Shared => {
                let touching = Touching::Read { strong };
                env.shared.touch(address, bytes, self.index, lane, touching).map(|bytes| &*bytes)
            }
            Space::Local => {
                let at = self.local_range(env, address, bytes, lane)?;
                Ok(&self.local[at..at + bytes])
            }
            Space::Param => {
                let at = usize::try_from(address).unwrap_or(usize::MAX);
                let params: &[u8] = env.params;
                let found = at.checked_add(bytes).and_then(|end| params.get(at..end));
                found.ok_or_else(|| Trap::at(lane as u32, address, "access outside of the parameters"))
            }
            Space::Generic | Space::Global => {
                env.memory.load(address, bytes).map_err(|why| denied(lane, address, &why))
            }
        }
    }

    /// The bytes that a lane writes.
    #[inline]
    fn bytes_mut<'e>(
        &'e mut self,
        env: &'e mut Env<'_>,
        space: Space,
        address: u64,
        bytes: usize,
        lane: usize,
        strong: bool,
    ) -> Result<&'e mut [u8], Trap> {
        let (space, address) = resolve(space, address);
        match space {
            Space::Shared => env.shared.touch(address, bytes, self.index, lane, Touching::Write { strong }),
            Space::Local => {
                let at = self.local_range(env, address, bytes, lane)?;
                Ok(&mut self.local[at..at + bytes])
            }
            Space::Param => Err(Trap::at(lane as u32, address, "write to the parameters")),
            Space::Generic | Space::Global => {
                env.memory.store(address, bytes).map_err(|why| denied(lane, address, &why))
            }
        }
    }

    fn local_range(&self, env: &Env<'_>, address: u64, bytes: usize, lane: usize) -> Result<usize, Trap> {
        let all = env.program.local_bytes as usize;
        let at = usize::try_from(address).unwrap_or(usize::MAX);
        if at >= all || all - at < bytes {
            let what = format!("access outside of the thread's {all} bytes of local memory");
            return Err(Trap::at(lane as u32, address, what));
        }
        if at & (bytes - 1) != 0 {
            return Err(Trap::at(lane as u32, address, "misaligned access to local memory"));
        }
        Ok(lane * all + at)
    }

    pub(super) fn load(&mut self, env: &mut Env<'_>, access: &Access, mask: u32) -> Result<(), Trap> {
        let width = usize::from(access.width);
        if let (Space::Param, Base::None) = (access.address.space, access.address.base) {
            return self.load_uniform(env, access, mask);
        }
        let words = access.registers[..usize::from(access.count)].iter();
        if width == 4 && words.clone().all(|register| matches!(register, Register::W(_, 32))) {
            match access.count {
                1 => return self.load_words::<1, 4>(env, access, mask),
                2 => return self.load_words::<2, 8>(env, access, mask),
                4 => return self.load_words::<4, 16>(env, access, mask),
                _ => {}
            }
        }
        let addresses = self.addresses(&access.address);
        let mut rows = [[0u8; WIDEST]; LANES];
        match width * usize::from(access.count) {
            1 => self.fetch::<1>(env, access, &addresses, mask, &mut rows)?,
            2 => self.fetch::<2>(env, access, &addresses, mask, &mut rows)?,
            4 => self.fetch::<4>(env, access, &addresses, mask, &mut rows)?,
            8 => self.fetch::<8>(env, access, &addresses, mask, &mut rows)?,
            16 => self.fetch::<16>(env, access, &addresses, mask, &mut rows)?,
            _ => self.fetch::<WIDEST>(env, access, &addresses, mask, &mut rows)?,
        }
        for (element, register) in access.registers[..usize::from(access.count)].iter().enumerate() {
            let at = element * width;
            for lane in lanes(mask) {
                self.set(*register, lane, extend(&rows[lane][at..at + width], access.signed));
            }
        }
        Ok(())
    }

    /// The common load: one, two or four words a lane, mostly from one allocation.
    fn load_words<const COUNT: usize, const BYTES: usize>(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        mask: u32,
    ) -> Result<(), Trap> {
        let addresses = self.addresses(&access.address);
        let mut out = [[0; LANES]; COUNT];
        let mut slow = mask;
        let window = match access.address.space {
            Space::Global => env.memory.window(addresses[first(mask)]),
            Space::Shared => env.shared.window(),
            _ => None,
        };
        if let Some(window) = window {
            for lane in lanes(mask) {
                let Some(bytes) = window.read::<BYTES>(addresses[lane]) else { continue };
                slow &= !(1 << lane);
                for (out, word) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    out[lane] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
            }
        }
        for lane in lanes(slow) {
            let bytes = self.bytes(env, access.address.space, addresses[lane], BYTES, lane, access.strong)?;
            for (out, word) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                out[lane] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            }
        }
        for (value, register) in out.iter().zip(access.registers) {
            self.set_word(register, value, mask);
        }
        Ok(())
    }

    /// Reads each lane's bytes into its row.
    fn fetch<const N: usize>(
        &self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &Double,
        mask: u32,
        rows: &mut [[u8; WIDEST]; LANES],
    ) -> Result<(), Trap> {
        for lane in lanes(mask) {
            let bytes = self.bytes(env, access.address.space, addresses[lane], N, lane, access.strong)?;
            rows[lane][..N].copy_from_slice(&bytes[..N]);
        }
        Ok(())
    }

    /// A load of a parameter at a fixed place: the same for all lanes.
    fn load_uniform(&mut self, env: &mut Env<'_>, access: &Access, mask: u32) -> Result<(), Trap> {
        let width = usize::from(access.width);
        let whole = width * usize::from(access.count);
        let lane = first(mask);
        let mut data = [0u8; WIDEST];
        let bytes = self.bytes(env, Space::Param, access.address.offset as u64, whole, lane, false)?;
        data[..whole].copy_from_slice(bytes);
        for (element, register) in data[..whole].chunks_exact(width).zip(access.registers) {
            let value = extend(element, access.signed);
            match register {
                Register::D(index) => self.put_double(index, &[value; LANES], mask),
                register => self.set_word(register, &[value as u32; LANES], mask),
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, env: &mut Env<'_>, access: &Access, mask: u32) -> Result<(), Trap> {
        let width = usize::from(access.width);
        let addresses = self.addresses(&access.address);
        let mut rows = [[0u8; WIDEST]; LANES];
        for (element, register) in access.registers[..usize::from(access.count)].iter().enumerate() {
            let at = element * width;
            match (width, *register) {
                (4, Register::W(index, _)) => {
                    for (row, value) in rows.iter_mut().zip(self.word(index)) {
                        row[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    }
                }
                (_, register) => {
                    for lane in lanes(mask) {
                        let value = self.get(register, lane).to_le_bytes();
                        rows[lane][at..at + width].copy_from_slice(&value[..width]);
                    }
                }
            }
        }
        match width * usize::from(access.count) {
            1 => self.put::<1>(env, access, &addresses, mask, &rows),
            2 => self.put::<2>(env, access, &addresses, mask, &rows),
            4 => self.put::<4>(env, access, &addresses, mask, &rows),
            8 => self.put::<8>(env, access, &addresses, mask, &rows),
            16 => self.put::<16>(env, access, &addresses, mask, &rows),
            _ => self.put::<WIDEST>(env, access, &addresses, mask, &rows),
        }
    }

    /// Writes each lane's row to its address, mostly in one allocation.
    fn put<const N: usize>(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &Double,
        mask: u32,
        rows: &[[u8; WIDEST]; LANES],
    ) -> Result<(), Trap> {
        let window = match access.address.space {
            Space::Global => env.memory.window_mut(addresses[first(mask)]),
            Space::Shared => env.shared.window_mut(),
            _ => None,
        };
        let mut slow = mask;
        if let Some(mut window) = window {
            for lane in lanes(mask) {
                let Some(row) = rows[lane].first_chunk::<N>() else { continue };
                slow &= !(u32::from(window.write(addresses[lane], row)) << lane);
            }
        }
        for lane in lanes(slow) {
            let bytes = self.bytes_mut(env, access.address.space, addresses[lane], N, lane, access.strong)?;
            bytes.copy_from_slice(&rows[lane][..N]);
        }
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        env: &mut Env<'_>,
        kind: AtomicKind,
        ty: Type,
        address: &Address,
        [d, b, c]: [Register; 3],
        mask: u32,
    ) -> Result<(), Trap> {
        let addresses = self.addresses(address);
        let width = usize::from(ty.bytes());
        for lane in lanes(mask) {
            let (space, address) = resolve(address.space, addresses[lane]);
            let (b, c) = (self.get(b, lane), self.get(c, lane));
            let index = self.index;
            let bytes = match space {
                Space::Shared => env.shared.touch(address, width, index, lane, Touching::Atomic)?,
                Space::Global | Space::Generic => {
                    env.memory.load(address, width).map_err(|why| denied(lane, address, &why))?;
                    env.memory.store(address, width).map_err(|why| denied(lane, address, &why))?
                }
                Space::Local | Space::Param => {
                    return Err(Trap::at(lane as u32, address, "atomic access to memory that isn't shared"));
                }
            };
            let old = extend(bytes, false);
            let new = update(kind, ty, old, b, c);
            bytes.copy_from_slice(&new.to_le_bytes()[..width]);
            self.set(d, lane, old);
        }
        Ok(())
    }

    /// `cvta`: into the generic address space or out of it.
    pub(super) fn window(&mut self, space: Space, to_generic: bool, d: Register, a: Register, mask: u32) {
        let start = window(space);
        for lane in lanes(mask) {
            let address = self.get(a, lane);
            let value = if to_generic { address.wrapping_add(start) } else { address.wrapping_sub(start) };
            self.set(d, lane, value);
        }
    }

    pub(super) fn is_space(&mut self, space: Space, d: u32, a: u32, mask: u32) {
        let mut holds = 0;
        for (lane, &address) in self.double(a).iter().enumerate() {
            holds |= u32::from(space_of(address) == space) << lane;
        }
        self.set_predicate(Register::P(d), holds, mask);
    }
}

/// A little-endian value of up to eight bytes.
#[inline]
fn extend(bytes: &[u8], signed: bool) -> u64 {
    let mut value = [0; 8];
    let length = bytes.len().min(8);
    value[..length].copy_from_slice(&bytes[..length]);
    let value = u64::from_le_bytes(value);
    let unused = 64 - 8 * length as u32;
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}

/// What an atomic instruction leaves in memory.
fn update(kind: AtomicKind, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let halves = |f: fn(u32, u32) -> u32| {
        let (old, b) = (old as u32, b as u32);
        u64::from(f(old & 0xffff, b & 0xffff) | f(old >> 16, b >> 16) << 16)
    };
    let half = |a: u32, b: u32| to_f16(from_f16(a) + from_f16(b));
    let brain = |a: u32, b: u32| to_bf16(from_bf16(a) + from_bf16(b));
    let wide = ty.bytes() == 8;
    let signed = |value: u64| if wide { value as i64 } else { i64::from(value as u32 as i32) };
    let smaller = match ty {
        Type::Signed(_) => signed(b) < signed(old),
        _ => b < old,
    };
    match kind {
        AtomicKind::Add => match ty {
            Type::F32 => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
            Type::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            Type::F16x2 => halves(half),
            Type::Bf16x2 => halves(brain),
            Type::F16 => half(old as u32, b as u32).into(),
            Type::Bf16 => brain(old as u32, b as u32).into(),
            _ => old.wrapping_add(b),
        },
        AtomicKind::Min => {
            if smaller {
                b
            } else {
                old
            }
        }
        AtomicKind::Max => {
            if smaller {
                old
            } else {
                b
            }
        }
        AtomicKind::And => old & b,
        AtomicKind::Or => old | b,
        AtomicKind::Xor => old ^ b,
        AtomicKind::Exchange => b,
        AtomicKind::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomicKind::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
