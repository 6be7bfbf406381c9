//! safetensors headers that lie.

use proptest::prelude::*;

use super::exercise;
use super::{Random, refused, survives};

const SOUND: &str = concat!(
    r#"{"__metadata__":{"format":"pt"},"#,
    r#""a.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"#,
    r#""b.weight":{"dtype":"BF16","shape":[4],"data_offsets":[32,40]}}"#
);
const DATA: [u8; 40] = [9; 40];

fn file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

fn claims(bytes: &[u8], expected: &str) {
    refused(expected, bytes, expected, exercise::safetensors);
}

/// The sound file with a piece of its header replaced.
fn with(from: &str, to: &str) -> Vec<u8> {
    assert!(SOUND.contains(from));
    file(SOUND.replace(from, to), &DATA)
}

#[test]
fn the_sound_file_is_accepted() {
    assert_eq!(survives(&file(SOUND, &DATA), exercise::safetensors), Ok(()));
}

#[test]
fn header_lengths() {
    for length in [SOUND.len() as u64 + 41, 1 << 26, 1 << 40, 1 << 63, u64::MAX, u64::MAX - 7] {
        let mut bytes = file(SOUND, &DATA);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        claims(&bytes, &format!("its header should have {length} bytes, but the file has {}", bytes.len()));
    }
    for short in 0..8 {
        claims(&file(SOUND, &DATA)[..short], "truncated or damaged");
    }
}

#[test]
fn headers_that_are_no_header() {
    claims(&file("", &[]), "its header is damaged");
    claims(&file("[]", &[]), "its header is damaged");
    claims(&file("{", &[]), "its header is damaged");
    claims(&file(b"{\"\xff\":1}", &[]), "invalid UTF-8");
    claims(&file(r#"{"a":1}"#, &[]), "its header is damaged");
    claims(&file("[".repeat(100_000), &[]), "its header is damaged");
    claims(&file(r#"{"a":"#.repeat(100_000), &[]), "its header is damaged");
}

#[test]
fn shapes_types_and_places() {
    claims(&with("[2,4]", "[2,5]"), "its header is damaged");
    claims(&with("[2,4]", "[-2,-4]"), "its header is damaged");
    claims(&with("[2,4]", "[4294967296,4294967296]"), "overflow");
    claims(&with("[2,4]", "[1e400]"), "its header is damaged");
    claims(&with("[2,4]", "[2.5]"), "its header is damaged");
    claims(&with("\"F32\"", "\"F99\""), "F99");
    claims(&with("[32,40]", "[24,32]"), "b.weight");
    claims(&with("[32,40]", "[40,32]"), "b.weight");
    claims(&with("[32,40]", "[32,18446744073709551615]"), "its header is damaged");
    claims(&with("[0,32]", "[-1,31]"), "its header is damaged");
    claims(&with("b.weight", "a.weight"), "invalid offset for tensor `a.weight`");
    claims(&file(SOUND, &DATA[1..]), "its tensors don't end where the file ends");
    claims(&file(SOUND, &[0; 41]), "its tensors don't end where the file ends");
}

#[test]
fn sizes_whose_sum_wraps() {
    // Eight tensors of the most bytes whose bits can be counted: their end plus the header's length passes 2^64.
    let piece = (1_u64 << 61) - 1;
    let tensors: Vec<String> = (0..8)
        .map(|index| {
            let (start, end) = (index * piece, (index + 1) * piece);
            format!(r#""t{index}":{{"dtype":"U8","shape":[{piece}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    claims(&file(format!("{{{}}}", tensors.join(",")), &[0; 16]), "its tensors don't end where the file ends");
}

#[test]
fn truncation_at_every_byte() {
    let bytes = file(SOUND, &DATA);
    for end in 0..bytes.len() {
        assert!(survives(&bytes[..end], exercise::safetensors).is_err(), "accepted when cut at byte {end}");
    }
}

#[test]
fn every_single_bit_flip_of_the_header() {
    let mut bytes = file(SOUND, &DATA);
    let mut refusals = 0;
    for bit in 0..(8 + SOUND.len()) * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        refusals += usize::from(survives(&bytes, exercise::safetensors).is_err());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(refusals > SOUND.len() * 4, "{refusals} flips refused");
}

#[test]
fn many_bit_flips_at_once() {
    let bytes = file(SOUND, &DATA);
    let mut random = Random(2);
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(8) {
            damaged[random.below(8 + SOUND.len())] ^= 1 << random.below(8);
        }
        let _ = survives(&damaged, exercise::safetensors);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = survives(&bytes, exercise::safetensors);
        let _ = survives(&file(&bytes, &[]), exercise::safetensors);
    }

    #[test]
    fn any_header_of_the_right_form(
        shape in prop::collection::vec(prop_oneof![0_u64..5, any::<u64>()], 0..5),
        start in prop_oneof![0_u64..40, any::<u64>()],
        end in prop_oneof![0_u64..40, any::<u64>()],
        dtype in prop::sample::select(vec!["F32", "F16", "BF16", "I64", "F4", "F6_E2M3", "F8_E4M3", "BOOL", "C64"]),
        data in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let header = serde_json::json!({ "t": { "dtype": dtype, "shape": shape, "data_offsets": [start, end] } });
        let _ = survives(&file(header.to_string(), &data), exercise::safetensors);
    }
}
