//! A small writer of GGUF files for tests, which can also write what no honest writer would: the counts and offsets
//! are open to lies.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part, as a private module")]

/// Ids of the value types.
pub mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// A tensor record. `offset: None` places the data after that of the tensor before.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    /// Innermost first, as in the file.
    pub axes: Vec<u64>,
    /// ggml's id.
    pub dtype: u32,
    pub data: Vec<u8>,
    pub offset: Option<u64>,
}

/// What to write. Change the public fields to lie.
#[derive(Debug, Clone)]
pub struct GgufWriter {
    pub magic: [u8; 4],
    pub version: u32,
    /// How data is padded; write `general.alignment` yourself if it isn't 32.
    pub alignment: usize,
    /// `None`: the true number.
    pub num_tensors: Option<u64>,
    /// `None`: the true number.
    pub num_pairs: Option<u64>,
    /// Each an encoded key, type and value.
    pub pairs: Vec<Vec<u8>>,
    pub tensors: Vec<Tensor>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            num_tensors: None,
            num_pairs: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
        }
    }
}

/// An 8-byte length and the bytes.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl GgufWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// A value whose bytes are already encoded.
    pub fn pair(mut self, key: impl AsRef<[u8]>, kind: u32, value: impl AsRef<[u8]>) -> Self {
        self.pairs.push([&string(key)[..], &kind.to_le_bytes(), value.as_ref()].concat());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, value_type::U32, value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.pair(key, value_type::F32, value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.pair(key, value_type::BOOL, [u8::from(value)])
    }

    pub fn str(self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pair(key, value_type::STRING, string(value))
    }

    /// An array whose elements are already encoded, with a claimed length.
    pub fn array(self, key: &str, item: u32, len: u64, elements: &[u8]) -> Self {
        self.pair(key, value_type::ARRAY, [&item.to_le_bytes()[..], &len.to_le_bytes(), elements].concat())
    }

    pub fn strs<T: AsRef<[u8]>>(self, key: &str, values: &[T]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(string).collect();
        self.array(key, value_type::STRING, values.len() as u64, &elements)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, value_type::I32, values.len() as u64, &elements)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, value_type::F32, values.len() as u64, &elements)
    }

    /// A tensor; the shape is row-major, outermost axis first.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, shape: &[u64], dtype: u32, data: Vec<u8>) -> Self {
        let axes = shape.iter().rev().copied().collect();
        self.tensors.push(Tensor { name: name.as_ref().to_vec(), axes, dtype, data, offset: None });
        self
    }

    /// A matrix or vector of f32.
    pub fn tensor_f32(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        self.tensor(name, shape, 0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Everything up to the end of the tensor directory, without padding.
    pub fn header(&self) -> Vec<u8> {
        let num_tensors = self.num_tensors.unwrap_or(self.tensors.len() as u64);
        let num_pairs = self.num_pairs.unwrap_or(self.pairs.len() as u64);
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(num_tensors.to_le_bytes());
        bytes.extend(num_pairs.to_le_bytes());
        bytes.extend(self.pairs.concat());
        let mut next = 0;
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.axes.len() as u32).to_le_bytes());
            bytes.extend(tensor.axes.iter().flat_map(|axis| axis.to_le_bytes()));
            bytes.extend(tensor.dtype.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(next as u64).to_le_bytes());
            next += tensor.data.len().next_multiple_of(self.alignment);
        }
        bytes
    }

    /// The whole file.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&tensor.data);
        }
        bytes
    }
}
