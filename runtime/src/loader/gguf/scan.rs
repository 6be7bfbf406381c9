//! The walk over a mapped GGUF header that believes nothing.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Magic, version, tensor count, key count, then
//! the key-value pairs, then the tensor directory, then padding to `general.alignment`, then tensor data.
//!
//! Bounds: a length is compared with the bytes that remain before anything is done with it, a count with the bytes
//! that its smallest encoding would need. Memory grows with what was walked, never with what was claimed. Only header
//! bytes are read, so only the header's pages are faulted in.

use std::collections::HashSet;
use std::ops::Range;

use shimmy_kernels::quant::QuantType;

/// `GGUF` and the version.
const VERSION_AT: usize = 4;
/// Smallest key-value pair: an 8-byte key length, a one-byte key, a 4-byte type, a one-byte value.
const MIN_PAIR_BYTES: usize = 14;
/// Smallest tensor record: an 8-byte name length, a one-byte name, a 4-byte axis count, a 4-byte type, an 8-byte offset.
const MIN_TENSOR_BYTES: usize = 25;
/// The format's limit on a key's length.
const MAX_KEY_BYTES: usize = 65_535;
/// ggml's limit on the number of axes.
const MAX_AXES: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;
/// Far above any page size; larger claims are damage.
const MAX_ALIGNMENT: u32 = 1 << 20;

/// The value types of the format, with their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one value; `None` for strings and arrays, which carry their length.
    pub(super) fn fixed_bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// Where a key's value lies.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// The value's bytes; of a string, the text without its length.
    Scalar { kind: ValueType, bytes: Range<usize> },
    /// The elements' bytes.
    Array(ArrayPlace),
}

/// Where an array lies.
#[derive(Debug, Clone)]
pub(super) struct ArrayPlace {
    pub(super) item: ValueType,
    pub(super) len: usize,
    /// All elements; of strings, with the length before each.
    pub(super) bytes: Range<usize>,
    /// Of strings: where elements 0, 64, 128, … begin, relative to `bytes.start`.
    pub(super) marks: Vec<usize>,
}

/// Every how many strings the scan notes a position: finding one then takes at most 63 steps, and the notes are at
/// most a 64th of the array.
pub(super) const MARK_EVERY: usize = 64;

/// One record of the tensor directory. Names, shapes and offsets are decoded by `gguf-rs`; here is what it can't tell.
#[derive(Debug, Clone)]
pub(super) struct TensorPlace {
    pub(super) dtype: QuantType,
    /// In the file.
    pub(super) bytes: Range<usize>,
}

/// Bytes of the header that `gguf-rs` gets to see as zeros.
#[derive(Debug, Clone)]
pub(super) struct Patch {
    pub(super) replaced: Range<usize>,
    pub(super) zeros: usize,
}

/// What the walk found.
#[derive(Debug)]
pub(super) struct Scan {
    /// In file order.
    pub(super) pairs: Vec<(String, Place)>,
    /// In file order.
    pub(super) tensors: Vec<TensorPlace>,
    /// Ascending, disjoint.
    pub(super) patches: Vec<Patch>,
    /// Where the tensor directory ends, before padding.
    pub(super) header_end: usize,
}

/// A name from the file as it may stand in a message: escaped and of bounded length.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let escaped = name.escape_debug();
    let mut text: String = escaped.clone().take(MOST).collect();
    if escaped.count() > MOST {
        text.push('…');
    }
    format!("`{text}`")
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: impl FnOnce() -> String) -> Result<&'a [u8], String> {
        if count > self.remaining() {
            return Err(format!(
                "{} needs {count} bytes at byte {}, but the file ends at byte {}: it is truncated or damaged, \
                 download it again",
                what(),
                self.at,
                self.bytes.len()
            ));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N], String> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N, what)?);
        Ok(value)
    }

    fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length or count that has to fit into the rest of the file at `min_bytes` each.
    fn count(&mut self, min_bytes: usize, what: impl Fn() -> String) -> Result<usize, String> {
        let claimed = self.u64(&what)?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(claimed) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!(
                "{} is {claimed}, but the {} bytes that remain in the file hold at most {most}: it is truncated or \
                 damaged, download it again",
                what(),
                self.remaining()
            )),
        }
    }

    /// The text's place, without its length.
    fn string(&mut self, what: impl Fn() -> String) -> Result<Range<usize>, String> {
        let len = self.count(1, || format!("the length of {}", what()))?;
        let start = self.at;
        self.at += len;
        Ok(start..self.at)
    }

    fn name(&mut self, what: impl Fn() -> String) -> Result<&'a str, String> {
        let place = self.string(&what)?;
        let bytes = &self.bytes[place.clone()];
        let name = std::str::from_utf8(bytes)
            .map_err(|_| format!("{} is not UTF-8: {}", what(), shown(&String::from_utf8_lossy(bytes))))?;
        if name.is_empty() {
            return Err(format!("{} is empty", what()));
        }
        if name.len() > MAX_KEY_BYTES {
            return Err(format!("{} has {} bytes; the format allows {MAX_KEY_BYTES}", what(), name.len()));
        }
        Ok(name)
    }
}

/// Walks the header of a whole mapped file.
///
/// # Errors
/// What is wrong, with the name of the key or tensor and the numbers.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, String> {
    let mut cursor = Cursor { bytes, at: VERSION_AT.min(bytes.len()) };
    check_version(cursor.u32(|| "the version".into())?)?;
    let num_tensors = cursor.count(MIN_TENSOR_BYTES, || "the number of tensors".into())?;
    let num_pairs = cursor.count(MIN_PAIR_BYTES, || "the number of metadata keys".into())?;

    let mut patches = Vec::new();
    let mut pairs = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..num_pairs {
        let key = cursor.name(|| format!("metadata key {index}"))?;
        if !seen.insert(key) {
            return Err(format!("metadata key {} occurs twice", shown(key)));
        }
        pairs.push((key.to_owned(), scan_value(&mut cursor, key, &mut patches)?));
    }
    let alignment = alignment(bytes, &pairs)?;

    let mut seen = HashSet::new();
    let mut directory = Vec::new();
    for index in 0..num_tensors {
        let name = cursor.name(|| format!("the name of tensor {index}"))?;
        if !seen.insert(name) {
            return Err(format!("tensor {} occurs twice", shown(name)));
        }
        directory.push(scan_tensor(&mut cursor, name, &mut patches)?);
    }
    let header_end = cursor.at;
    let tensors = place_tensors(&directory, header_end, alignment, bytes.len())?;
    Ok(Scan { pairs, tensors, patches, header_end })
}

fn check_version(version: u32) -> Result<(), String> {
    match version {
        2 | 3 => Ok(()),
        1 => Err("GGUF version 1 is not supported (2 and 3 are): convert the model again".into()),
        // A version is a small number; only its bytes in the other order have an empty low half.
        _ if version & 0xffff == 0 && version != 0 => Err("big-endian GGUF is not supported".into()),
        _ => Err(format!("GGUF version {version} is not supported (2 and 3 are)")),
    }
}

fn scan_value(cursor: &mut Cursor<'_>, key: &str, patches: &mut Vec<Patch>) -> Result<Place, String> {
    let about = || format!("metadata key {}", shown(key));
    let id = cursor.u32(|| format!("the type of {}", about()))?;
    let kind = ValueType::from_id(id).ok_or_else(|| format!("{} has the unknown value type {id}", about()))?;
    match kind {
        ValueType::String => {
            let bytes = cursor.string(|| format!("the text of {}", about()))?;
            Ok(Place::Scalar { kind, bytes })
        }
        ValueType::Array => {
            let id = cursor.u32(|| format!("the element type of {}", about()))?;
            let item =
                ValueType::from_id(id).ok_or_else(|| format!("{} has the unknown element type {id}", about()))?;
            let length_at = cursor.at;
            let place = scan_array(cursor, item, &about)?;
            patches.push(Patch { replaced: length_at..place.bytes.end, zeros: 8 });
            Ok(Place::Array(place))
        }
        _ => {
            let width = kind.fixed_bytes().unwrap_or(0);
            let start = cursor.at;
            let value = cursor.take(width, about)?;
            if kind == ValueType::Bool && value[0] > 1 {
                return Err(format!("{} is a bool with the value {}", about(), value[0]));
            }
            Ok(Place::Scalar { kind, bytes: start..cursor.at })
        }
    }
}

fn scan_array(cursor: &mut Cursor<'_>, item: ValueType, about: &impl Fn() -> String) -> Result<ArrayPlace, String> {
    // A string is at least its 8-byte length.
    let min_bytes = match item {
        ValueType::Array => return Err(format!("{} is an array of arrays, which is not supported", about())),
        ValueType::String => 8,
        fixed => fixed.fixed_bytes().unwrap_or(1),
    };
    let len = cursor.count(min_bytes, || format!("the number of elements of {}", about()))?;
    let start = cursor.at;
    let mut marks = Vec::new();
    if item == ValueType::String {
        for index in 0..len {
            if index % MARK_EVERY == 0 {
                marks.push(cursor.at - start);
            }
            cursor.string(|| format!("element {index} of {}", about()))?;
        }
    } else {
        // No overflow: `count` checked that `len` times `min_bytes` remain.
        cursor.take(len * min_bytes, about)?;
    }
    Ok(ArrayPlace { item, len, bytes: start..cursor.at, marks })
}

fn alignment(bytes: &[u8], pairs: &[(String, Place)]) -> Result<usize, String> {
    let Some((key, place)) = pairs.iter().find(|(key, _)| key == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let Place::Scalar { kind: ValueType::U32, bytes: place } = place else {
        return Err(format!("metadata key `{key}` is not a u32"));
    };
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[place.clone()]);
    let value = u32::from_le_bytes(value);
    if !value.is_power_of_two() || value > MAX_ALIGNMENT {
        return Err(format!("metadata key `{key}` is {value}; it must be a power of two up to {MAX_ALIGNMENT}"));
    }
    Ok(value as usize)
}

/// A directory record with its claims checked against themselves, not yet against the file.
struct Record<'a> {
    name: &'a str,
    dtype: QuantType,
    offset: u64,
    len: usize,
}

fn scan_tensor<'a>(cursor: &mut Cursor<'a>, name: &'a str, patches: &mut Vec<Patch>) -> Result<Record<'a>, String> {
    let about = || format!("tensor {}", shown(name));
    let num_axes = cursor.u32(about)?;
    if num_axes > MAX_AXES {
        return Err(format!("{} has {num_axes} axes; the format allows {MAX_AXES}", about()));
    }
    // Innermost first, as in the file.
    let mut axes = [1_u64; MAX_AXES as usize];
    for axis in &mut axes[..num_axes as usize] {
        *axis = cursor.u64(about)?;
    }
    let axes = &axes[..num_axes as usize];
    let type_at = cursor.at;
    let id = cursor.u32(about)?;
    patches.push(Patch { replaced: type_at..cursor.at, zeros: 4 });
    let offset = cursor.u64(about)?;

    if axes.contains(&0) {
        return Err(format!("{} has an axis of length 0: {axes:?}", about()));
    }
    let dtype = QuantType::from_ggml(id).ok_or_else(|| match removed_type(id) {
        Some(old) => format!("{} has type {id} ({old}), which GGUF no longer has: quantise the model again", about()),
        None => format!("{} has the unknown type {id}", about()),
    })?;
    let too_large = || format!("{} of shape {axes:?} (innermost first) is larger than any memory", about());
    let columns = usize::try_from(axes.first().copied().unwrap_or(1)).map_err(|_| too_large())?;
    let rows = axes.iter().skip(1).try_fold(1_usize, |rows, &axis| rows.checked_mul(usize::try_from(axis).ok()?));
    let rows = rows.ok_or_else(too_large)?;
    if columns % dtype.block_len() != 0 {
        return Err(format!(
            "{} of type {} has rows of {columns} elements, which is not a multiple of the block length {}",
            about(),
            dtype.name(),
            dtype.block_len()
        ));
    }
    let len = dtype.row_bytes(columns).and_then(|row| row.checked_mul(rows)).ok_or_else(too_large)?;
    // Block types of less than a byte an element: the element count must fit as well.
    columns.checked_mul(rows).ok_or_else(too_large)?;
    Ok(Record { name, dtype, offset, len })
}

/// Types that llama.cpp once wrote and later dropped.
fn removed_type(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}

/// Checks every tensor's place against the file and against its neighbours.
fn place_tensors(
    records: &[Record<'_>],
    header_end: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<Vec<TensorPlace>, String> {
    // No overflow: a mapping is smaller than `isize::MAX`, the alignment at most 2^20.
    let data_at = header_end.next_multiple_of(alignment);
    let mut places = Vec::with_capacity(records.len());
    for record in records {
        let Record { name, dtype, offset, len } = *record;
        if offset % alignment as u64 != 0 {
            return Err(format!(
                "tensor {} is at offset {offset}, which is not a multiple of the alignment {alignment}",
                shown(name)
            ));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data_at.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        match range {
            Some(bytes) if bytes.end <= file_bytes => places.push(TensorPlace { dtype, bytes }),
            _ => {
                return Err(format!(
                    "tensor {} ({}, {len} bytes at offset {offset}) ends beyond the file, whose tensor data has {} \
                     bytes: the file is truncated or damaged, download it again",
                    shown(name),
                    dtype.name(),
                    file_bytes.saturating_sub(data_at)
                ));
            }
        }
    }
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_unstable_by_key(|&index| places[index].bytes.start);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if places[second].bytes.start < places[first].bytes.end {
            return Err(format!(
                "tensors {} (bytes {:?}) and {} (bytes {:?}) overlap",
                shown(records[first].name),
                places[first].bytes,
                shown(records[second].name),
                places[second].bytes
            ));
        }
    }
    Ok(places)
}
