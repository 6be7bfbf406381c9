//! Typed getters over the key-value pairs of a GGUF header.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::loader::mmap::Bytes;

use super::scan::{ArrayPlace, Place, ValueType};
use super::strings::StringArray;

/// The key-value pairs of a GGUF header. Cloning shares them.
///
/// A getter gives `Ok(None)` when the key is absent and [`Error::BadMetadata`] when its value has another type. Integers
/// of any width count as integers, as writers disagree on widths; a float is not an integer and an integer not a float.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {
    pairs: Arc<BTreeMap<String, Pair>>,
}

#[derive(Debug)]
pub(super) struct Pair {
    /// The whole file.
    pub(super) file: Bytes,
    pub(super) place: Place,
    /// A scalar as `gguf-rs` decoded it. Floats are read from the mapping instead: JSON numbers know no NaN and no
    /// infinity, and `gguf-rs` gives null for them.
    pub(super) decoded: Value,
}

impl Pair {
    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.file[range.clone()]
    }

    fn integer(&self) -> Option<i128> {
        match &self.place {
            Place::Scalar { kind, .. } if is_integer(*kind) => {
                self.decoded.as_i64().map(i128::from).or_else(|| self.decoded.as_u64().map(i128::from))
            }
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match &self.place {
            Place::Scalar { kind, bytes } if is_float(*kind) => Some(read_float(*kind, self.bytes(bytes))),
            _ => None,
        }
    }

    /// The value for a message: what it is and, if it is short, its text.
    fn describe(&self) -> String {
        match &self.place {
            Place::Scalar { kind: ValueType::String, bytes } => {
                let text = String::from_utf8_lossy(self.bytes(bytes));
                match text.char_indices().nth(60) {
                    None => format!("the string {text:?}"),
                    Some((end, _)) => format!("a string of {} bytes that begins with {:?}", bytes.len(), &text[..end]),
                }
            }
            Place::Scalar { kind, .. } => match self.float() {
                Some(value) => format!("the {} {value}", kind.name()),
                None => format!("the {} {}", kind.name(), self.decoded),
            },
            Place::Array(array) => format!("an array of {} {} values", array.len, array.item.name()),
        }
    }

    fn element_to_json(&self, array: &ArrayPlace, bytes: &[u8]) -> Value {
        match array.item {
            ValueType::Bool => Value::from(bytes != [0]),
            kind if is_float(kind) => float_to_json(kind, read_float(kind, bytes)),
            kind => read_integer(kind, bytes).map_or(Value::Null, integer_to_json),
        }
    }

    fn to_json(&self, max_array: usize) -> Value {
        let array = match &self.place {
            Place::Scalar { kind, .. } => {
                return self.float().map_or_else(|| self.decoded.clone(), |value| float_to_json(*kind, value));
            }
            Place::Array(array) => array,
        };
        let first: Vec<Value> = match array.item.fixed_bytes() {
            None => self
                .strings(array)
                .iter()
                .flat_map(StringArray::iter)
                .take(max_array)
                .map(|text| String::from_utf8_lossy(text).into())
                .collect(),
            Some(width) => self
                .bytes(&array.bytes)
                .chunks_exact(width)
                .take(max_array)
                .map(|bytes| self.element_to_json(array, bytes))
                .collect(),
        };
        if array.len <= max_array {
            return first.into();
        }
        json!({ "type": array.item.name(), "length": array.len, "first": first })
    }

    fn strings(&self, array: &ArrayPlace) -> Option<StringArray> {
        // Empty arrays are written with whatever element type the writer had at hand.
        if array.item != ValueType::String && array.len > 0 {
            return None;
        }
        let bytes = self.file.slice(array.bytes.clone())?;
        Some(StringArray::new(bytes, array.len, array.marks.as_slice().into()))
    }
}

fn is_integer(kind: ValueType) -> bool {
    use ValueType::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(kind, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

fn is_float(kind: ValueType) -> bool {
    matches!(kind, ValueType::F32 | ValueType::F64)
}

/// `bytes` has the width of `kind`, a float type: the scan and `chunks_exact` cut it so. Else 0.
fn read_float(kind: ValueType, bytes: &[u8]) -> f64 {
    match kind {
        ValueType::F32 => bytes.try_into().map_or(0.0, |bytes| f32::from_le_bytes(bytes).into()),
        _ => bytes.try_into().map_or(0.0, f64::from_le_bytes),
    }
}

/// `None` if `kind` is not an integer type.
fn read_integer(kind: ValueType, bytes: &[u8]) -> Option<i128> {
    Some(match kind {
        ValueType::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
        ValueType::I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        _ => return None,
    })
}

/// JSON has no NaN and no infinity: those become text.
fn float_to_json(kind: ValueType, value: f64) -> Value {
    if !value.is_finite() {
        return value.to_string().into();
    }
    // As f32, so that 1e-5 prints as 1e-5 and not as its double's 17 digits.
    if kind == ValueType::F32 { (value as f32).into() } else { value.into() }
}

fn integer_to_json(value: i128) -> Value {
    i64::try_from(value).map(Value::from).or_else(|_| u64::try_from(value).map(Value::from)).unwrap_or(Value::Null)
}

impl GgufMetadata {
    pub(super) fn new(pairs: BTreeMap<String, Pair>) -> Self {
        Self { pairs: Arc::new(pairs) }
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.pairs.contains_key(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// Whether the key is there and holds an array.
    pub fn is_array(&self, key: &str) -> bool {
        matches!(self.pairs.get(key), Some(Pair { place: Place::Array(_), .. }))
    }

    fn scalar<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Pair) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(pair) = self.pairs.get(key) else { return Ok(None) };
        match read(pair) {
            Some(value) => Ok(Some(value)),
            None => Err(bad(key, expected, pair.describe())),
        }
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        accepts: impl Fn(ValueType) -> bool,
        read: impl Fn(ValueType, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(pair) = self.pairs.get(key) else { return Ok(None) };
        let array = match &pair.place {
            Place::Array(array) if array.len == 0 => return Ok(Some(Vec::new())),
            Place::Array(array) if accepts(array.item) => array,
            _ => return Err(bad(key, expected, pair.describe())),
        };
        let Some(width) = array.item.fixed_bytes() else { return Err(bad(key, expected, pair.describe())) };
        let mut values = Vec::with_capacity(array.len);
        for (index, bytes) in pair.bytes(&array.bytes).chunks_exact(width).enumerate() {
            match read(array.item, bytes) {
                Some(value) => values.push(value),
                None => {
                    let got = pair.element_to_json(array, bytes);
                    return Err(bad(key, expected, format!("{got} at index {index}")));
                }
            }
        }
        Ok(Some(values))
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not a string or not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        let Some(pair) = self.pairs.get(key) else { return Ok(None) };
        let Place::Scalar { kind: ValueType::String, bytes } = &pair.place else {
            return Err(bad(key, "a string", pair.describe()));
        };
        // `gguf-rs` replaces what is not UTF-8; a template or a pre-tokenizer's name changed so would mislead.
        match std::str::from_utf8(pair.bytes(bytes)) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(bad(key, "UTF-8 text", format!("a broken character at byte {}", error.valid_up_to()))),
        }
    }

    /// An integer from 0.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not an integer or is negative.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.scalar(key, "an integer from 0", |pair| usize::try_from(pair.integer()?).ok())
    }

    /// An integer.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not an integer or is above `i64::MAX`.
    pub fn i64(&self, key: &str) -> Result<Option<i64>> {
        self.scalar(key, "an integer", |pair| i64::try_from(pair.integer()?).ok())
    }

    /// A float. An f64 is rounded; NaN and infinities are passed on.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not a float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.scalar(key, "a float", |pair| pair.float().map(|value| value as f32))
    }

    /// A bool.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.scalar(key, "a bool", |pair| pair.decoded.as_bool())
    }

    /// An array of integers from 0.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not such an array.
    pub fn usizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.array(key, "an array of integers from 0", is_integer, |kind, bytes| {
            usize::try_from(read_integer(kind, bytes)?).ok()
        })
    }

    /// An array of integers.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not such an array.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.array(key, "an array of integers", is_integer, |kind, bytes| {
            i64::try_from(read_integer(kind, bytes)?).ok()
        })
    }

    /// An array of floats.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not such an array.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.array(key, "an array of floats", is_float, |kind, bytes| Some(read_float(kind, bytes) as f32))
    }

    /// An array of bools.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not such an array.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.array(
            key,
            "an array of bools",
            |kind| kind == ValueType::Bool,
            |_, bytes| match bytes {
                [0] => Some(false),
                [1] => Some(true),
                _ => None,
            },
        )
    }

    /// An array of strings, as a view over the mapping.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] if the value is not such an array.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray>> {
        self.scalar(key, "an array of strings", |pair| match &pair.place {
            Place::Array(array) => pair.strings(array),
            Place::Scalar { .. } => None,
        })
    }

    /// Everything as JSON, for people and scripts to look at: an array longer than `max_array` becomes an object with
    /// its `type`, its `length` and its `first` elements; broken UTF-8 is replaced; NaN and infinities are text.
    pub fn to_json(&self, max_array: usize) -> Map<String, Value> {
        self.pairs.iter().map(|(key, pair)| (key.clone(), pair.to_json(max_array))).collect()
    }
}

fn bad(key: &str, expected: &str, got: String) -> Error {
    Error::BadMetadata { key: key.into(), expected: expected.into(), got }
}
