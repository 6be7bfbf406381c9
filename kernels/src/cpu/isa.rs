//! Instruction sets that the kernels are written for, and which of them this CPU has.

/// A level of the CPU. Each has kernels of its own in a folder beside this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust: the reference.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// [`Self::Avx2`] and AVX-VNNI: `vpdpbusd` on 256-bit registers, on CPUs without AVX-512.
    AvxVnni,
    /// AVX-512 F, BW, VL and DQ, and all of [`Self::Avx2`].
    Avx512,
    /// [`Self::Avx512`] and VNNI.
    Avx512Vnni,
    /// [`Self::Avx512Vnni`] and BF16: `vdpbf16ps`.
    Avx512Bf16,
    /// [`Self::Avx512Bf16`] and AMX for bytes and bf16.
    Amx,
    /// NEON, which every 64-bit ARM CPU has.
    Neon,
    /// [`Self::Neon`] and the dot product instructions of ARMv8.2.
    NeonDotprod,
    /// [`Self::NeonDotprod`] and the 8-bit matrix multiplication of ARMv8.6.
    NeonI8mm,
}

impl Isa {
    /// All levels: of each kind of CPU, the least first.
    pub const ALL: [Self; 10] = [
        Self::Scalar,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Amx,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
    ];

    /// Name in logs and in `REQUIRE_ISA`: with a comma-separated list of names there, tests fail where the CPU lacks one of them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// Whether this CPU (and the system: registers must be saved) has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            };
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2(),
                Self::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
                Self::Avx512 => avx512(),
                Self::Avx512Vnni => avx512() && is_x86_feature_detected!("avx512vnni"),
                Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
                Self::Amx => Self::Avx512Bf16.is_available() && super::avx512::amx::is_usable(),
                Self::Neon | Self::NeonDotprod | Self::NeonI8mm => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let neon = || std::arch::is_aarch64_feature_detected!("neon");
            match self {
                Self::Scalar => true,
                Self::Neon => neon(),
                Self::NeonDotprod => neon() && std::arch::is_aarch64_feature_detected!("dotprod"),
                Self::NeonI8mm => Self::NeonDotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
                Self::Avx2 | Self::AvxVnni | Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Scalar
        }
    }

    /// The highest level that this CPU has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }
}

/// Names of the features of this CPU that matter to inference, whether or not a kernel uses them yet.
pub fn detected_features() -> Vec<&'static str> {
    let mut names = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detect {
            ($($name:tt)*) => { $(if is_x86_feature_detected!($name) { names.push($name); })* };
        }
        detect!("avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512dq" "avx512vbmi" "avx512vnni"
            "avx512bf16" "avx512fp16");
        names.extend(amx_features());
        if names.contains(&"amx-tile") && !Isa::Amx.is_available() {
            names.push("(amx not used)");
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! detect {
            ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { names.push($name); })* };
        }
        detect!("neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2");
    }
    names
}

/// Those of AMX, which Rust 1.95 can't detect yet: bits 24, 25 and 22 of EDX of CPUID leaf 7, and whether the system saves tiles:
/// bits 17 and 18 of XCR0.
#[cfg(target_arch = "x86_64")]
pub(super) fn amx_features() -> Vec<&'static str> {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// # Safety
    /// The CPU must have XSAVE, and the system must have enabled it.
    #[target_feature(enable = "xsave")]
    unsafe fn saves_tiles() -> bool {
        const TILES: u64 = 0b11 << 17;
        // SAFETY: the caller's promise.
        unsafe { _xgetbv(0) & TILES == TILES }
    }

    // Detection of AVX implies that the system enabled XSAVE.
    if !is_x86_feature_detected!("avx") || !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return Vec::new();
    }
    // SAFETY: just checked.
    if !unsafe { saves_tiles() } {
        return Vec::new();
    }
    let bits = __cpuid_count(7, 0).edx;
    [(24, "amx-tile"), (25, "amx-int8"), (22, "amx-bf16")]
        .into_iter()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| name)
        .collect()
}
