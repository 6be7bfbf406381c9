//! Block formats of GGUF.

/// The one table of types. A row: variant, ggml's id, elements a block, bytes a block, documentation.
macro_rules! quant_types {
    ($($name:ident = $id:literal, $block_len:literal, $block_bytes:literal, $doc:literal;)*) => {
        /// Element and block types of GGUF and safetensors files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "the names are those of the file format")]
        pub enum QuantType {
            $(#[doc = $doc] $name,)*
        }

        impl QuantType {
            /// Every type, by id.
            pub fn all() -> &'static [Self] {
                &[$(Self::$name),*]
            }

            /// The type with ggml's id; `None` for ids that were removed or are unknown.
            pub fn from_ggml(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// ggml's id, as in GGUF files.
            pub fn ggml_id(self) -> u32 {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// The name that the field uses, e.g. `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Elements in a block; 1 for plain numbers.
            pub fn block_len(self) -> usize {
                match self {
                    $(Self::$name => $block_len,)*
                }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => $block_bytes,)*
                }
            }
        }
    };
}

quant_types! {
    F32 = 0, 1, 4, "32-bit float.";
    F16 = 1, 1, 2, "16-bit float.";
    Q4_0 = 2, 32, 18, "4 bits, one f16 scale per 32.";
    Q4_1 = 3, 32, 20, "4 bits, f16 scale and minimum per 32.";
    Q5_0 = 6, 32, 22, "5 bits, one f16 scale per 32.";
    Q5_1 = 7, 32, 24, "5 bits, f16 scale and minimum per 32.";
    Q8_0 = 8, 32, 34, "8 bits, one f16 scale per 32.";
    Q8_1 = 9, 32, 36, "8 bits, f16 scale and scaled sum per 32: activations only.";
    Q2_K = 10, 256, 84, "2 bits, 16 sub-blocks of 16.";
    Q3_K = 11, 256, 110, "3 bits, 16 sub-blocks of 16.";
    Q4_K = 12, 256, 144, "4 bits, 8 sub-blocks of 32.";
    Q5_K = 13, 256, 176, "5 bits, 8 sub-blocks of 32.";
    Q6_K = 14, 256, 210, "6 bits, 16 sub-blocks of 16.";
    Q8_K = 15, 256, 292, "8 bits, one f32 scale per 256: activations only.";
    IQ2_XXS = 16, 256, 66, "2.06 bits, codebook.";
    IQ2_XS = 17, 256, 74, "2.31 bits, codebook.";
    IQ3_XXS = 18, 256, 98, "3.06 bits, codebook.";
    IQ1_S = 19, 256, 50, "1.56 bits, codebook.";
    IQ4_NL = 20, 32, 18, "4 bits through a non-linear table, one f16 scale per 32.";
    IQ3_S = 21, 256, 110, "3.44 bits, codebook.";
    IQ2_S = 22, 256, 82, "2.56 bits, codebook.";
    IQ4_XS = 23, 256, 136, "4.25 bits through a non-linear table.";
    I8 = 24, 1, 1, "8-bit integer.";
    I16 = 25, 1, 2, "16-bit integer.";
    I32 = 26, 1, 4, "32-bit integer.";
    I64 = 27, 1, 8, "64-bit integer.";
    F64 = 28, 1, 8, "64-bit float.";
    IQ1_M = 29, 256, 56, "1.75 bits, codebook.";
    BF16 = 30, 1, 2, "bfloat16.";
    TQ1_0 = 34, 256, 54, "ternary, 1.69 bits.";
    TQ2_0 = 35, 256, 66, "ternary, 2.06 bits.";
    MXFP4 = 39, 32, 17, "4-bit floats, one power-of-two scale per 32 (OCP microscaling).";
    NVFP4 = 40, 64, 36, "4-bit floats, one 8-bit float scale per 16.";
    Q1_0 = 41, 128, 18, "1 bit, one f16 scale per 128.";
    Q2_0 = 42, 64, 18, "2 bits, one f16 scale per 64.";
}

impl QuantType {
    /// Bytes of a row of `elements`; `None` if that is not a whole number of blocks or overflows.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}
