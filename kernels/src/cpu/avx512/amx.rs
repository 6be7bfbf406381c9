//! AMX: tiles of 16 rows of 64 bytes, and the instructions that multiply them, as assembly: Rust 1.95 has no stable intrinsics.
//!
//! The operand that is broadcast elsewhere is the left tile, row-major as it lies in memory; the one whose lanes are in registers
//! elsewhere is the right tile, whose rows hold two bf16 of 16 lanes. Tiles of bytes aren't used but for the ceiling
//! (`rounded.rs` says why). Nobody else's tiles are disturbed: the
//! registers are configured for each piece of work, and released behind it.

use core::arch::asm;
use std::sync::OnceLock;

use super::{
    bf16::{self, Avx512Bf16, Bf16Isa, CHUNK, PANEL},
    rounded,
};
use crate::{
    cpu::{
        CpuKernels, Isa, Numerics,
        isa::amx_features,
        matrix::{ActBuffer, FloatActs, MatrixRef, Scratch},
        pack::{PACK_ROWS, RoundedBuffer},
        scalar,
    },
    error::Result,
    quant::QuantType,
};

/// What `ldtilecfg` loads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each register.
    row_bytes: [u16; 16],
    /// Rows of each register.
    rows: [u8; 16],
}

impl Config {
    /// # Safety
    /// The CPU must have AMX, and the process the permission to use it.
    unsafe fn load(&self) {
        // SAFETY: 64 readable bytes; the caller's promise.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self, options(nostack, preserves_flags, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

const _: () = assert!(size_of::<Config>() == 64);

/// Lets go of the tiles.
///
/// # Safety
/// The CPU must have AMX.
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilerelease", options(nostack, nomem, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// Whether CPU and system have AMX for bytes and bf16, let this process use it, and it computes what the scalar code does: most
/// machines that this was written on had none. Found out once; asks Linux for the permission, which all threads get. The CPU must
/// have AVX-512 with VNNI and BF16, else the answer is no.
pub(in crate::cpu) fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        let features = amx_features();
        ["amx-tile", "amx-int8", "amx-bf16"].iter().all(|name| features.contains(name))
            && Isa::Avx512Bf16.is_available()
            && is_permitted()
            && agrees_with_scalar(&super::AMX).unwrap_or(false)
    })
}

/// Small products whose every step is exact: any order of additions gives the same.
pub(in crate::cpu) fn agrees_with_scalar(kernels: &CpuKernels) -> Result<bool> {
    /// Rows of activations: a whole block and one more. Rows of weights: a tile, and one more.
    const SHAPE: [usize; 3] = [33, 33, 256];
    let [m, n, k] = SHAPE;
    let mut scratch = Scratch::for_shapes(k);
    // Every group has a 127, so that its scale is 1.
    let x: Vec<f32> = (0..m * k).map(|i| if i % 32 == 0 { 127.0 } else { (i * 37 % 255) as f32 - 127.0 }).collect();
    let (mut acts, mut rounded) = (ActBuffer::default(), RoundedBuffer::default());
    let acts = acts.quantize(kernels, &x, k)?;
    let mut agree = true;
    for (dtype, half_at) in [(QuantType::Q8_0, 0), (QuantType::Q6_K, 208)] {
        let mut weights: Vec<u8> =
            (0..dtype.checked_row_bytes("check", k)? * n).map(|i| ((i * 89) >> 3) as u8).collect();
        for block in weights.chunks_exact_mut(dtype.block_bytes()) {
            // One. Weights of Q6_K, 32 · 7 at most, are bf16, and sums of 256 products with 127 stay below 2^24.
            block[half_at..half_at + 2].copy_from_slice(&[0x00, 0x3c]);
            if dtype == QuantType::Q6_K {
                block[192..208].iter_mut().for_each(|scale| *scale &= 7);
            }
        }
        let matrix = MatrixRef::new(dtype, n, k, &weights)?;
        let mut out = [vec![0.0; m * n], vec![0.0; m * n]];
        scalar::KERNELS.matmul_q8_all(&matrix, &acts, &mut out[0], &mut scratch);
        if kernels.rounds_many() {
            let acts = rounded.round(kernels, &x, k)?;
            // SAFETY: `out` is [m, n], borrowed mutably.
            unsafe { kernels.matmul_on_rounded(&matrix, 0..n, &acts, out[1].as_mut_ptr(), n, &mut scratch) };
        } else {
            kernels.matmul_q8_all(&matrix, &acts, &mut out[1], &mut scratch);
        }
        agree &= out[0] == out[1];
    }
    // Numbers of at most 8 significant bits are bf16.
    let weights: Vec<u8> = (0..n * k)
        .flat_map(|i| (((i * 53 % 255) as f32 - 127.0).to_bits() >> 16).to_le_bytes()[..2].to_vec())
        .collect();
    let matrix = MatrixRef::new(QuantType::BF16, n, k, &weights)?;
    let mut out = [vec![0.0; m * n], vec![0.0; m * n]];
    scalar::KERNELS.matmul_f32_all(&matrix, &x, m, &mut out[0], &mut scratch);
    let acts = FloatActs { x: &x, stride: k, num_rows: m, numerics: Numerics::Fast, packed: None };
    // SAFETY: `out` is [m, n], borrowed mutably.
    unsafe { kernels.matmul_rounded(&matrix, 0..n, &acts, out[1].as_mut_ptr(), n, &mut scratch) };
    Ok(agree && out[0] == out[1])
}

/// A round of a ceiling: 16 rows by 16 lanes a multiplication, in four chains of sums.
macro_rules! round {
    ($name:ident, $instruction:literal, $elements:literal) => {
        /// # Safety
        /// [`is_usable`] must have said so.
        pub(in crate::cpu) unsafe fn $name() -> u64 {
            const STEPS: u64 = 5_000;
            // SAFETY: the caller's promise; registers are configured, and what they hold is zero.
            unsafe {
                FULL.load();
                asm!(
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "dec {steps}",
                    "jnz 2b",
                    steps = inout(reg) STEPS => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, nomem),
                );
                release();
            }
            STEPS * 4 * 16 * 16 * $elements
        }
    };
}
round!(dots, "tdpbssd", 64);
round!(dots_bf16, "tdpbf16ps", 32);

/// Eight registers of 16 rows of 64 bytes.
static FULL: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    /// `arch_prctl`, `ARCH_REQ_XCOMP_PERM` and the tiles' number (Linux, arch/x86/include/uapi/asm/prctl.h).
    const CALL: [u64; 3] = [158, 0x1023, 18];
    let mut result = CALL[0];
    // SAFETY: this system call reads its two numbers and touches no memory of ours; the kernel overwrites rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") CALL[1], in("rsi") CALL[2], out("rcx") _, out("r11") _,
            options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// AMX for bf16: 32 rows of activations × 32 of weights in four registers of sums.
pub(super) struct AmxBf16;

impl Bf16Isa for AmxBf16 {
    unsafe fn begin() {
        // SAFETY: the caller's promise.
        unsafe { FULL.load() };
    }

    unsafe fn round_row(x: &[f32], to: *mut u16) {
        // SAFETY: the caller's promises; AMX is offered only beside BF16.
        unsafe { Avx512Bf16::round_row(x, to) }
    }

    unsafe fn round_f16(from: *const u16, len: usize, to: *mut u16) {
        // SAFETY: as above.
        unsafe { Avx512Bf16::round_f16(from, len, to) }
    }

    unsafe fn tile(tile: &bf16::Tile) {
        /// Strides in bytes: of activations and of the panel and the sums.
        const X_STRIDE: usize = CHUNK * 2;
        const PANEL_STRIDE: usize = PANEL * 4;
        // SAFETY: the tile's shapes: 32 rows of x and 16 of the panel a unit, of which there is at least one; 32 rows of sums.
        // Registers are configured.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x} + {x_stride}*1]",
                "tileloadd tmm6, [{panel} + {panel_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x} + {x_stride}*1 + {x_half}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 64",
                "add {panel}, {panel_step}",
                "dec {units}",
                "jnz 2b",
                "tilestored [{sums} + {panel_stride}*1], tmm0",
                "tilestored [{sums} + {panel_stride}*1 + 64], tmm1",
                "tilestored [{sums} + {panel_stride}*1 + {sums_half}], tmm2",
                "tilestored [{sums} + {panel_stride}*1 + {sums_half} + 64], tmm3",
                x = inout(reg) tile.x => _,
                panel = inout(reg) tile.panel => _,
                units = inout(reg) tile.num_units => _,
                sums = in(reg) tile.sums,
                x_stride = in(reg) X_STRIDE,
                panel_stride = in(reg) PANEL_STRIDE,
                x_half = const 16 * X_STRIDE,
                panel_step = const 16 * PANEL_STRIDE,
                sums_half = const 16 * PANEL_STRIDE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    unsafe fn end() {
        // SAFETY: the caller's promise.
        unsafe { release() };
    }
}

/// AMX for bf16 on packed activations: 32 columns × 32 rows in four registers of sums, or half or a quarter of that.
pub(super) struct AmxPairs;

impl rounded::TileIsa for AmxPairs {
    unsafe fn begin() {
        // SAFETY: the caller's promise.
        unsafe { FULL.load() };
    }

    unsafe fn tile(tile: &rounded::Tile) {
        /// Bytes from row to row of weights, and of activations and sums.
        const W_STRIDE: usize = rounded::STRIDE * 2;
        const STRIDE: usize = PACK_ROWS * 4;
        /// Registers 0 to 3 are sums, 4 and 5 weights, 6 and 7 activations. Those of sums, each with its address; a unit's steps.
        macro_rules! tile {
            ($($sums:literal at $at:literal,)* { $($step:literal)* }) => {
                asm!(
                    $(concat!("tilezero ", $sums),)*
                    "test {accumulate}, {accumulate}",
                    "jz 2f",
                    $(concat!("tileloadd ", $sums, ", [{sums} + {stride}*1 + ", $at, "]"),)*
                    "2:",
                    $($step,)*
                    "add {weights}, 64",
                    "add {pairs}, {pairs_step}",
                    "dec {units}",
                    "jnz 2b",
                    $(concat!("tilestored [{sums} + {stride}*1 + ", $at, "], ", $sums),)*
                    "/* {half} */",
                    weights = inout(reg) tile.weights => _,
                    pairs = inout(reg) tile.pairs => _,
                    units = inout(reg) tile.num_units => _,
                    sums = in(reg) tile.sums,
                    accumulate = in(reg) usize::from(tile.accumulate),
                    w_stride = in(reg) W_STRIDE,
                    stride = in(reg) STRIDE,
                    half = const 16 * W_STRIDE,
                    pairs_step = const 16 * STRIDE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        const { assert!(16 * STRIDE == 2048) };
        // SAFETY: the tile's shapes: 16 columns and 16 lanes of a unit a register, and as many sums. Registers are configured.
        unsafe {
            match tile.registers {
                [1, 1] => tile!("tmm0" at "0", {
                    "tileloadd tmm6, [{pairs} + {stride}*1]"
                    "tileloaddt1 tmm4, [{weights} + {w_stride}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                }),
                [1, _] => tile!("tmm0" at "0", "tmm1" at "64", {
                    "tileloadd tmm6, [{pairs} + {stride}*1]"
                    "tileloaddt1 tmm4, [{weights} + {w_stride}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{pairs} + {stride}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                }),
                [_, 1] => tile!("tmm0" at "0", "tmm2" at "2048", {
                    "tileloadd tmm6, [{pairs} + {stride}*1]"
                    "tileloaddt1 tmm4, [{weights} + {w_stride}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm5, [{weights} + {w_stride}*1 + {half}]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                }),
                _ => tile!("tmm0" at "0", "tmm1" at "64", "tmm2" at "2048", "tmm3" at "2112", {
                    "tileloadd tmm6, [{pairs} + {stride}*1]"
                    "tileloaddt1 tmm4, [{weights} + {w_stride}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{pairs} + {stride}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloaddt1 tmm5, [{weights} + {w_stride}*1 + {half}]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                }),
            }
        }
    }

    unsafe fn end() {
        // SAFETY: the caller's promise.
        unsafe { release() };
    }
}
