//! Block formats of GGUF files.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`QuantType`] and the one table that every match over types is generated from |
//! | `block.rs` | [`Block`]: what a format with kernels provides; the scalar reference built on it |
//! | `float.rs` | rows of F32, F16 and BF16 |
//! | `fit.rs` | helpers of the quantisers |
//! | `codebook.rs`, `grids.rs` | helpers of the codebook formats, and their codebooks |
//! | `<type>.rs` | one format: layout, quantiser, codes and scales |
//!
//! Sizes and layouts follow the GGUF specification and ggml's type list; `golden/` holds blocks and the values that ggml reads in them.

mod block;
mod codebook;
pub(crate) mod fit;
pub(crate) mod float;
mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_1;
mod q8_k;
mod tq1_0;
mod tq2_0;

pub(crate) use block::dequantize_row as dequantize_blocks;
pub use block::{Block, GroupKind};
pub use float::f16_to_f32;
pub use iq1_m::BlockIq1M;
pub use iq1_s::BlockIq1S;
pub use iq2_s::BlockIq2S;
pub use iq2_xs::BlockIq2Xs;
pub use iq2_xxs::BlockIq2Xxs;
pub use iq3_s::BlockIq3S;
pub use iq3_xxs::BlockIq3Xxs;
pub use iq4_nl::BlockIq4Nl;
#[cfg(target_arch = "x86_64")]
pub(crate) use iq4_nl::LEVELS as IQ4_LEVELS;
pub use iq4_xs::BlockIq4Xs;
pub use mxfp4::BlockMxfp4;
pub use nvfp4::BlockNvfp4;
pub use q1_0::BlockQ1_0;
pub use q2_0::BlockQ2_0;
pub use q2_k::BlockQ2K;
pub use q3_k::BlockQ3K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;
pub use q8_1::BlockQ8_1;
pub use q8_k::BlockQ8K;
pub use tq1_0::BlockTq1_0;
pub use tq2_0::BlockTq2_0;
#[cfg(any(target_arch = "x86_64", feature = "cuda"))]
pub(crate) use {
    iq1_s::POINTS as IQ1_POINTS, iq2_s::POINTS as IQ2_S_POINTS, iq2_xs::POINTS as IQ2_XS_POINTS,
    iq2_xxs::POINTS as IQ2_XXS_POINTS, iq3_s::POINTS as IQ3_S_POINTS, iq3_xxs::POINTS as IQ3_XXS_POINTS,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use {mxfp4::LEVELS as FP4_LEVELS, nvfp4::HALF_SCALES as NVFP4_HALF_SCALES};

use crate::error::{Error, Result};

/// The table. Columns: variant, ggml's id, name, elements in a block, bytes of a block, and what computes on it:
/// `float`, `block(<struct>)` or `none`. The first argument names the macro that gets the rows, after the rest.
macro_rules! quant_table {
    ($callback:ident $($args:tt)*) => {
        $crate::quant::$callback! { $($args)*
            #[doc = "32-bit float."]
            F32 0 "F32" 1 4 float;
            #[doc = "16-bit float (IEEE half)."]
            F16 1 "F16" 1 2 float;
            #[doc = "4 bits and a scale for 32."]
            Q4_0 2 "Q4_0" 32 18 block(BlockQ4_0);
            #[doc = "4 bits, a scale and a minimum for 32."]
            Q4_1 3 "Q4_1" 32 20 block(BlockQ4_1);
            #[doc = "5 bits and a scale for 32."]
            Q5_0 6 "Q5_0" 32 22 block(BlockQ5_0);
            #[doc = "5 bits, a scale and a minimum for 32."]
            Q5_1 7 "Q5_1" 32 24 block(BlockQ5_1);
            #[doc = "8 bits and a scale for 32."]
            Q8_0 8 "Q8_0" 32 34 block(BlockQ8_0);
            #[doc = "8 bits, a scale and a scaled sum for 32 (activations)."]
            Q8_1 9 "Q8_1" 32 36 block(BlockQ8_1);
            #[doc = "2 bits, 4-bit scales and minima for 16, in blocks of 256."]
            Q2_K 10 "Q2_K" 256 84 block(BlockQ2K);
            #[doc = "3 bits, 6-bit scales for 16, in blocks of 256."]
            Q3_K 11 "Q3_K" 256 110 block(BlockQ3K);
            #[doc = "4 bits, 6-bit scales and minima for 32, in blocks of 256."]
            Q4_K 12 "Q4_K" 256 144 block(BlockQ4K);
            #[doc = "5 bits, 6-bit scales and minima for 32, in blocks of 256."]
            Q5_K 13 "Q5_K" 256 176 block(BlockQ5K);
            #[doc = "6 bits, 8-bit scales for 16, in blocks of 256."]
            Q6_K 14 "Q6_K" 256 210 block(BlockQ6K);
            #[doc = "8 bits, one f32 scale and sums for 16, in blocks of 256 (activations)."]
            Q8_K 15 "Q8_K" 256 292 block(BlockQ8K);
            #[doc = "Codebook, 2.06 bits."]
            IQ2_XXS 16 "IQ2_XXS" 256 66 block(BlockIq2Xxs);
            #[doc = "Codebook, 2.31 bits."]
            IQ2_XS 17 "IQ2_XS" 256 74 block(BlockIq2Xs);
            #[doc = "Codebook, 3.06 bits."]
            IQ3_XXS 18 "IQ3_XXS" 256 98 block(BlockIq3Xxs);
            #[doc = "Codebook, 1.56 bits."]
            IQ1_S 19 "IQ1_S" 256 50 block(BlockIq1S);
            #[doc = "4-bit index into 16 uneven levels, a scale for 32."]
            IQ4_NL 20 "IQ4_NL" 32 18 block(BlockIq4Nl);
            #[doc = "Codebook, 3.44 bits."]
            IQ3_S 21 "IQ3_S" 256 110 block(BlockIq3S);
            #[doc = "Codebook, 2.56 bits."]
            IQ2_S 22 "IQ2_S" 256 82 block(BlockIq2S);
            #[doc = "4-bit index into 16 uneven levels, 6-bit scales for 32, in blocks of 256."]
            IQ4_XS 23 "IQ4_XS" 256 136 block(BlockIq4Xs);
            #[doc = "8-bit integer."]
            I8 24 "I8" 1 1 none;
            #[doc = "16-bit integer."]
            I16 25 "I16" 1 2 none;
            #[doc = "32-bit integer."]
            I32 26 "I32" 1 4 none;
            #[doc = "64-bit integer."]
            I64 27 "I64" 1 8 none;
            #[doc = "64-bit float."]
            F64 28 "F64" 1 8 none;
            #[doc = "Codebook, 1.75 bits."]
            IQ1_M 29 "IQ1_M" 256 56 block(BlockIq1M);
            #[doc = "16-bit float with the exponent of f32."]
            BF16 30 "BF16" 1 2 float;
            #[doc = "Ternary, five in a byte."]
            TQ1_0 34 "TQ1_0" 256 54 block(BlockTq1_0);
            #[doc = "Ternary, four in a byte."]
            TQ2_0 35 "TQ2_0" 256 66 block(BlockTq2_0);
            #[doc = "OCP MXFP4: e2m1 with an e8m0 scale for 32."]
            MXFP4 39 "MXFP4" 32 17 block(BlockMxfp4);
            #[doc = "NVFP4: e2m1 with a ue4m3 scale for 16, four of them in a block."]
            NVFP4 40 "NVFP4" 64 36 block(BlockNvfp4);
            #[doc = "A sign bit, and a scale for 128."]
            Q1_0 41 "Q1_0" 128 18 block(BlockQ1_0);
            #[doc = "2 bits and a scale for 64."]
            Q2_0 42 "Q2_0" 64 18 block(BlockQ2_0);
        }
    };
}

macro_rules! define_quant_type {
    ($($(#[$doc:meta])* $variant:ident $id:literal $name:literal $len:literal $bytes:literal $kind:ident $(($block:ident))?;)*) => {
        /// Element and block types of GGUF and safetensors files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "the names are those of the file format")]
        pub enum QuantType { $($(#[$doc])* $variant,)* }

        const ALL: &[QuantType] = &[$(QuantType::$variant,)*];

        impl QuantType {
            /// The type that a GGUF file names with this number; `None` if it is none of ggml's.
            pub const fn from_ggml(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// Number of the type in GGUF files.
            pub const fn ggml_id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// Name as written by the field's tools: `Q4_K`, `F16`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Elements in a block; rows hold a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $len,)* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)* }
            }

            /// Whether every kernel of this crate computes on it.
            pub const fn has_kernels(self) -> bool {
                match self { $(Self::$variant => define_quant_type!(@kernels $kind),)* }
            }
        }

        $($(const _: () = assert!(size_of::<$block>() == $bytes && <$block as Block>::LEN == $len);)?)*
    };
    (@kernels none) => { false };
    (@kernels $kind:ident) => { true };
}
quant_table!(define_quant_type);

/// `with_block!(dtype, |B| body, other)`: `body` with the type `B` bound to the block struct of `dtype`; `other` for float
/// types and types without kernels.
macro_rules! with_block {
    ($dtype:expr, |$b:ident| $body:expr, $other:expr) => {
        $crate::quant::quant_table!(with_block_match[$dtype][$b][$body][$other])
    };
}
macro_rules! with_block_match {
    ([$dtype:expr] [$b:ident] [$body:expr] [$other:expr]
     $($(#[$doc:meta])* $variant:ident $id:literal $name:literal $len:literal $bytes:literal $kind:ident $(($block:ident))?;)*) => {
        match $dtype {
            $($crate::quant::QuantType::$variant => $crate::quant::with_block_arm!($kind $(($block))? [$b] [$body] [$other]),)*
        }
    };
}
macro_rules! with_block_arm {
    (block ($block:ident) [$b:ident] [$body:expr] [$other:expr]) => {{
        type $b = $crate::quant::$block;
        $body
    }};
    ($kind:ident [$b:ident] [$body:expr] [$other:expr]) => {
        $other
    };
}
pub(crate) use {define_quant_type, quant_table, with_block, with_block_arm, with_block_match};

impl QuantType {
    /// All types, in the order of their numbers.
    pub const fn all() -> &'static [Self] {
        ALL
    }

    /// The type of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }

    /// F32, F16 or BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bytes of a row; `None` if it is not a whole number of blocks or the size overflows.
    pub const fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The error for a type without kernels.
    pub fn no_kernel(self) -> Error {
        let known: Vec<_> = ALL.iter().filter(|dtype| dtype.has_kernels()).map(|dtype| dtype.name()).collect();
        Error::NoKernel { dtype: self.name(), known: known.join(", ") }
    }

    /// Bytes of a row of `elements`, as an error where [`Self::row_bytes`] has none.
    pub(crate) fn checked_row_bytes(self, what: &'static str, elements: usize) -> Result<usize> {
        self.row_bytes(elements).ok_or(Error::RowLength {
            what,
            dtype: self.name(),
            block: self.block_len(),
            got: elements,
        })
    }

    /// Turns the bytes of `dst.len()` elements into f32. Scalar: the reference.
    ///
    /// # Errors
    /// [`Error::NoKernel`]; [`Error::RowLength`] if `dst` is not a whole number of blocks; [`Error::Length`] if `src` has another size.
    pub fn dequantize_row(self, src: &[u8], dst: &mut [f32]) -> Result<()> {
        let bytes = self.checked_row_bytes("dequantize_row", dst.len())?;
        if src.len() != bytes {
            return Err(Error::Length { what: "dequantize_row: bytes", expected: bytes, got: src.len() });
        }
        with_block!(
            self,
            |B| {
                block::dequantize_row::<B>(bytemuck::cast_slice(src), dst);
                Ok(())
            },
            float::to_f32(self, src, dst)
        )
    }

    /// Turns `src` into the bytes of this type. Scalar, for tests, tools and converters; its choice of scales is simple and is
    /// not that of any other quantiser bit by bit.
    ///
    /// # Errors
    /// As [`Self::dequantize_row`], with `dst` the bytes.
    pub fn quantize_row(self, src: &[f32], dst: &mut [u8]) -> Result<()> {
        let bytes = self.checked_row_bytes("quantize_row", src.len())?;
        if dst.len() != bytes {
            return Err(Error::Length { what: "quantize_row: bytes", expected: bytes, got: dst.len() });
        }
        with_block!(
            self,
            |B| {
                block::quantize_row::<B>(src, bytemuck::cast_slice_mut(dst));
                Ok(())
            },
            float::from_f32(self, src, dst)
        )
    }
}

impl std::fmt::Display for QuantType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
pub(crate) mod tests;
