//! AMX: tiles of 16 rows of 64 bytes, and the instructions that multiply them, as assembly: Rust 1.95 has no stable intrinsics.
//!
//! The operand that is broadcast elsewhere is the left tile, row-major as it lies in memory; the one whose lanes are in registers
//! elsewhere is the right tile, whose rows hold four bytes or two bf16 of 16 lanes. Nobody else's tiles are disturbed: the
//! registers are configured for each piece of work, and released behind it.

use core::arch::{asm, x86_64::*};
use std::sync::OnceLock;

use super::{
    bf16::{self, Avx512Bf16, Bf16Isa, CHUNK, PANEL},
    dot::{Dot, Vnni},
    gemm::{Gemm, Lanes},
};
use crate::{
    cpu::{
        CpuKernels, Isa, Numerics,
        gemm::{GemmIsa, Source, Unpacked},
        isa::amx_features,
        matrix::{ACT_GROUP, ActBuffer, FloatActs, MatrixRef, SUM_GROUP, Scratch},
        pack::PACK_ROWS,
        scalar,
        tile::{self, Tile, TileLanes, lanes_of},
    },
    error::Result,
    quant::{Block, GroupKind, QuantType},
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
    /// Registers of these rows and bytes; those not named are not to be used.
    const fn new<const N: usize>(shapes: [(u8, u16); N]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < N {
            (config.rows[i], config.row_bytes[i]) = shapes[i];
            i += 1;
        }
        config
    }

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
    let mut acts = ActBuffer::default();
    let acts = acts.quantize(kernels, &x, k)?;
    let mut agree = true;
    for (dtype, half_at) in [(QuantType::Q8_0, 0), (QuantType::Q6_K, 208)] {
        let mut weights: Vec<u8> =
            (0..dtype.checked_row_bytes("check", k)? * n).map(|i| ((i * 89) >> 3) as u8).collect();
        for block in weights.chunks_exact_mut(dtype.block_bytes()) {
            // One. Sums of Q6_K, 256 products of at most 32 · 127 with scales up to 15, stay below 2^24.
            block[half_at..half_at + 2].copy_from_slice(&[0x00, 0x3c]);
            if dtype == QuantType::Q6_K {
                block[192..208].iter_mut().for_each(|scale| *scale &= 15);
            }
        }
        let matrix = MatrixRef::new(dtype, n, k, &weights)?;
        let mut out = [vec![0.0; m * n], vec![0.0; m * n]];
        scalar::KERNELS.matmul_q8_all(&matrix, &acts, &mut out[0], &mut scratch);
        kernels.matmul_q8_all(&matrix, &acts, &mut out[1], &mut scratch);
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
static FULL: Config = Config::new([(16, 64); 8]);

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

/// What is subtracted from codes up to `max`: both factors are signed.
fn bias(max: u8) -> u8 {
    if max > 127 { 128 } else { 0 }
}

/// Rows of weights in a tile of the 8-bit GEMM.
const ROWS: usize = 12;

/// AMX for bytes, in the 8-bit GEMM, both factors signed: a group of 12 rows of weights × 16 or 32 rows of activations at a time. Scales come in as elsewhere.
pub(super) struct AmxInt8;

impl GemmIsa for AmxInt8 {
    const LANES: usize = 16;
    const TILE_COLS: [usize; 2] = [ROWS, ROWS];

    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked) {
        // SAFETY: the caller's promises, passed on.
        unsafe { Gemm::<Vnni>::unpack(from, to) };
        if bias(B::MAX_CODE) != 0 {
            to.codes.iter_mut().for_each(|code| *code ^= 128);
        }
    }

    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32) {
        let bias = i32::from(bias(B::MAX_CODE));
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(offset), ACT_GROUP) => {
                    Vnni::prepare_aux::<ACT_GROUP, false>(i32::from(offset) - bias, sums, d, num_groups, aux);
                }
                (GroupKind::Offset(offset), _) => {
                    Vnni::prepare_aux::<SUM_GROUP, false>(i32::from(offset) - bias, sums, d, num_groups, aux);
                }
                (GroupKind::Min, ACT_GROUP) => Vnni::prepare_aux::<ACT_GROUP, true>(0, sums, d, num_groups, aux),
                (GroupKind::Min, _) => Vnni::prepare_aux::<SUM_GROUP, true>(0, sums, d, num_groups, aux),
            }
        }
    }

    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        // SAFETY: the caller's promises, passed on.
        unsafe { Gemm::<Vnni>::transpose(rows, stride, num_rows, num_units, to, to_stride) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        Gemm::<Vnni>::prefetch(address);
    }

    unsafe fn tile<B: Block>(tile: &Tile, registers: usize) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(_), ACT_GROUP) => by_registers::<ACT_GROUP, false>(tile, registers),
                (GroupKind::Offset(_), _) => by_registers::<SUM_GROUP, false>(tile, registers),
                (GroupKind::Min, ACT_GROUP) => by_registers::<ACT_GROUP, true>(tile, registers),
                (GroupKind::Min, _) => by_registers::<SUM_GROUP, true>(tile, registers),
            }
        }
    }
}

unsafe fn by_registers<const GROUP: usize, const MIN: bool>(tile: &Tile, registers: usize) {
    // SAFETY: the caller's promises, passed on. Registers: codes, activations, sums; GROUP is 16 or 32.
    unsafe {
        let config = const {
            let (sums, x) = ((ROWS as u8, 64), (GROUP as u8 / 4, 64));
            Config::new([(ROWS as u8, GROUP as u16), x, sums, x, sums])
        };
        config.load();
        match registers {
            1 => compute::<GROUP, MIN, 1>(tile),
            _ => compute::<GROUP, MIN, 2>(tile),
        }
        release();
    }
}

/// [`tile::compute`] with groups multiplied by AMX.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<const GROUP: usize, const MIN: bool, const R: usize>(tile: &Tile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute::<AmxLanes, GROUP, MIN, 255, R, ROWS>(tile) }
}

/// Sixteen lanes of AVX-512, with dot products by AMX.
struct AmxLanes;

impl TileLanes for AmxLanes {
    lanes_of!(Lanes<Vnni>);

    fn bias(max: u8) -> u8 {
        bias(max)
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [__m512i; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[__m512i; R]; N] {
        const { assert!(N == ROWS && (R == 1 || R == 2)) };
        let mut sums = [[[0; 16]; ROWS]; R];
        // SAFETY: `GROUP` codes of each of 12 rows, as many elements of R registers of activation rows, and R · 12 rows of 16 sums;
        // registers are configured for these shapes.
        unsafe {
            macro_rules! multiply {
                ($($instruction:literal)*) => {
                    asm!(
                        "tileloadd tmm0, [{codes} + {stride}*1]",
                        "tilezero tmm2",
                        "tileloadd tmm1, [{q} + {q_stride}*1]",
                        "tdpbssd tmm2, tmm0, tmm1",
                        "tilestored [{sums} + {sums_stride}*1], tmm2",
                        $($instruction,)*
                        codes = in(reg) codes,
                        stride = in(reg) stride,
                        q = in(reg) q,
                        q_stride = in(reg) PACK_ROWS * 4,
                        sums = in(reg) sums.as_mut_ptr(),
                        sums_stride = in(reg) 64_usize,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                        options(nostack, preserves_flags),
                    )
                };
            }
            if R == 1 {
                multiply!();
            } else {
                multiply!(
                    "tilezero tmm4"
                    "tileloadd tmm3, [{q} + {q_stride}*1 + 64]"
                    "tdpbssd tmm4, tmm0, tmm3"
                    "tilestored [{sums} + {sums_stride}*1 + 768], tmm4"
                );
            }
        }
        const { assert!(ROWS * 64 == 768) };
        let mut dots = [start; N];
        for n in 0..N {
            for r in 0..R {
                // SAFETY: 16 sums.
                unsafe {
                    dots[n][r] = _mm512_add_epi32(dots[n][r], Lanes::<Vnni>::load_int(sums[r][n].as_ptr()));
                }
            }
        }
        dots
    }
}
