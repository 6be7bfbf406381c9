//! GGUF headers that lie.

use proptest::prelude::*;

use super::exercise;
use super::gguf_writer::{GgufWriter, string, value_type};
use super::{Random, refused, survives};

/// A small sound file with every kind of thing in it.
fn sound() -> GgufWriter {
    GgufWriter::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .f32("llama.rope.freq_base", 10_000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strs("tokenizer.ggml.tokens", &["<s>", "a", "b", "ab"])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.0, -2.0, -3.0])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1])
        .tensor_f32("token_embd.weight", &[4, 8], &[0.5; 32])
        .tensor("blk.0.attn_q.weight", &[2, 32], 3, vec![7; 40])
        .tensor_f32("output_norm.weight", &[8], &[1.0; 8])
}

/// The sound file with another second tensor.
fn with_tensor(change: impl FnOnce(&mut super::gguf_writer::Tensor)) -> Vec<u8> {
    let mut writer = sound();
    change(&mut writer.tensors[1]);
    writer.build()
}

fn claims(bytes: &[u8], expected: &str) {
    refused(expected, bytes, expected, exercise::gguf);
}

#[test]
fn the_sound_file_is_accepted() {
    assert_eq!(survives(&sound().build(), exercise::gguf), Ok(()));
}

#[test]
fn absurd_counts() {
    for count in [4, 1000, 1 << 31, 1 << 60, u64::MAX] {
        let writer = GgufWriter { num_tensors: Some(count), ..sound() };
        // A small lie runs into tensor data; a large one is refused by its number.
        let expected = if count > 1000 { format!("the number of tensors is {count}") } else { String::new() };
        claims(&writer.build(), &expected);
    }
    for count in [8, 1 << 60, u64::MAX] {
        let writer = GgufWriter { num_pairs: Some(count), ..sound() };
        let expected = if count > 8 { format!("the number of metadata keys is {count}") } else { String::new() };
        claims(&writer.build(), &expected);
    }
}

#[test]
fn absurd_lengths() {
    use value_type::{F32, STRING, U64};
    for length in [1 << 20, 1 << 60, u64::MAX] {
        let key = [&b"GGUF\x03\0\0\0"[..], &[0; 8], &1_u64.to_le_bytes(), &length.to_le_bytes(), &[b'k'; 64]].concat();
        claims(&key, &format!("the length of metadata key 0 is {length}"));
        claims(&sound().pair("k", STRING, length.to_le_bytes()).build(), &format!("metadata key `k` is {length}"));
        let element = [&1_u64.to_le_bytes()[..], b"a", &length.to_le_bytes()].concat();
        claims(&sound().array("k", STRING, 2, &element).build(), &format!("element 1 of metadata key `k` is {length}"));
    }
    for length in [1_000_000_000, 1 << 61, u64::MAX] {
        for item in [F32, STRING, U64, value_type::U8] {
            let bytes = sound().array("k", item, length, &[0; 64]).build();
            claims(&bytes, &format!("the number of elements of metadata key `k` is {length}"));
        }
    }
    claims(&sound().u32(&"k".repeat(70_000), 1).build(), "has 70000 bytes; the format allows 65535");
}

#[test]
fn values_that_are_none() {
    claims(&sound().pair("k", 13, [0; 8]).build(), "metadata key `k` has the unknown value type 13");
    claims(&sound().pair("k", u32::MAX, [0; 8]).build(), "unknown value type 4294967295");
    claims(&sound().array("k", 99, 1, &[0; 8]).build(), "metadata key `k` has the unknown element type 99");
    claims(&sound().array("k", value_type::ARRAY, 1, &[0; 32]).build(), "an array of arrays");
    claims(&sound().pair("k", value_type::BOOL, [2]).build(), "metadata key `k` is a bool with the value 2");
}

#[test]
fn names_that_are_none() {
    claims(&sound().pair(b"a\xffb", value_type::U8, [0]).build(), "metadata key 7 is not UTF-8: `a\u{fffd}b`");
    claims(&sound().pair("", value_type::U8, [0]).build(), "metadata key 7 is empty");
    claims(&sound().u32("llama.block_count", 2).build(), "metadata key `llama.block_count` occurs twice");
    claims(&with_tensor(|tensor| tensor.name = vec![0xc3, 0x28]), "the name of tensor 1 is not UTF-8");
    claims(&with_tensor(|tensor| tensor.name.clear()), "the name of tensor 1 is empty");
    let twice = with_tensor(|tensor| tensor.name = b"token_embd.weight".to_vec());
    claims(&twice, "tensor `token_embd.weight` occurs twice");
    // Names in messages are escaped and cut.
    claims(&sound().u32("a\x1b[31m\n", 1).u32("a\x1b[31m\n", 1).build(), r"`a\u{1b}[31m\n` occurs twice");
    let long = "n".repeat(5000);
    claims(&sound().u32(&long, 1).u32(&long, 1).build(), "nnn…` occurs twice");
}

#[test]
fn shapes_that_fit_nowhere() {
    let name = "tensor `blk.0.attn_q.weight`";
    let cases: [(&[u64], &str); 8] = [
        (&[0, 2], "has an axis of length 0: [0, 2]"),
        (&[32, 0], "has an axis of length 0: [32, 0]"),
        (&[32, 2, 1, 1, 1], "has 5 axes; the format allows 4"),
        (&[u64::MAX - 31, 2], "is larger than any memory"),
        (&[1 << 32, 1 << 32], "is larger than any memory"),
        (&[1 << 62, 1 << 62, 1 << 62, 1 << 62], "is larger than any memory"),
        (&[33, 2], "of type Q4_1 has rows of 33 elements, which is not a multiple of the block length 32"),
        (&[32, 4000], "(Q4_1, 80000 bytes at offset 128) ends beyond the file"),
    ];
    for (axes, expected) in cases {
        let bytes = with_tensor(|tensor| tensor.axes = axes.to_vec());
        claims(&bytes, expected);
        claims(&bytes, name);
    }
    // A negative number, as a writer with signed sizes would store it.
    claims(&with_tensor(|tensor| tensor.axes = vec![-32_i64 as u64]), "ends beyond the file");
}

#[test]
fn types_that_are_none() {
    claims(&with_tensor(|tensor| tensor.dtype = 4), "has type 4 (Q4_2), which GGUF no longer has");
    claims(&with_tensor(|tensor| tensor.dtype = 31), "has type 31 (Q4_0_4_4), which GGUF no longer has");
    claims(&with_tensor(|tensor| tensor.dtype = 99), "tensor `blk.0.attn_q.weight` has the unknown type 99");
    claims(&with_tensor(|tensor| tensor.dtype = u32::MAX), "has the unknown type 4294967295");
}

#[test]
fn places_that_are_taken_or_outside() {
    claims(&with_tensor(|tensor| tensor.offset = Some(0)), "`token_embd.weight`");
    claims(&with_tensor(|tensor| tensor.offset = Some(0)), "overlap");
    claims(&with_tensor(|tensor| tensor.offset = Some(96)), "overlap");
    claims(&with_tensor(|tensor| tensor.offset = Some(160)), "overlap");
    claims(&with_tensor(|tensor| tensor.offset = Some(129)), "offset 129, which is not a multiple of the alignment 32");
    for offset in [1 << 20, 1 << 40, 1 << 63, u64::MAX - 31] {
        claims(
            &with_tensor(|tensor| tensor.offset = Some(offset)),
            &format!("at offset {offset}) ends beyond the file"),
        );
    }
}

#[test]
fn alignments_that_are_none() {
    for value in [0, 3, 24, 1 << 21, u32::MAX] {
        let expected = format!("metadata key `general.alignment` is {value}; it must be a power of two");
        claims(&sound().u32("general.alignment", value).build(), &expected);
    }
    claims(&sound().str("general.alignment", "32").build(), "metadata key `general.alignment` is not a u32");
}

#[test]
fn versions_and_byte_orders() {
    let version = |version| GgufWriter { version, ..sound() }.build();
    claims(&version(1), "GGUF version 1 is not supported");
    claims(&version(0), "GGUF version 0 is not supported");
    claims(&version(4), "GGUF version 4 is not supported");
    claims(&version(3_u32.swap_bytes()), "big-endian GGUF is not supported");
    claims(&GgufWriter { magic: *b"FUGG", ..sound() }.build(), "big-endian GGUF is not supported");
    claims(&GgufWriter { magic: *b"GGUG", ..sound() }.build(), "it is not a model file");
}

#[test]
fn truncation_at_every_byte() {
    let bytes = sound().build();
    for end in 0..bytes.len() {
        assert!(survives(&bytes[..end], exercise::gguf).is_err(), "accepted when cut at byte {end}");
    }
}

#[test]
fn every_single_bit_flip_of_the_header() {
    let header = sound().header().len();
    let mut bytes = sound().build();
    let mut refusals = 0;
    for bit in 0..header * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        refusals += usize::from(survives(&bytes, exercise::gguf).is_err());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // Flips inside values, and in letters of names, leave a sound file; those in the structure must be noticed.
    assert!(refusals > header * 8 / 3, "{refusals} of {} flips refused", header * 8);
}

#[test]
fn many_bit_flips_at_once() {
    let header = sound().header().len();
    let bytes = sound().build();
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(8) {
            damaged[random.below(header)] ^= 1 << random.below(8);
        }
        let _ = survives(&damaged, exercise::gguf);
    }
}

#[test]
fn numbers_replaced_by_extremes() {
    let header = sound().header().len();
    let bytes = sound().build();
    let extremes = [0_u64, 1, 255, 1 << 31, u32::MAX.into(), 1 << 32, 1 << 60, 1 << 63, u64::MAX];
    for at in 4..header - 8 {
        for extreme in extremes {
            for width in [4, 8] {
                let mut damaged = bytes.clone();
                damaged[at..at + width].copy_from_slice(&extreme.to_le_bytes()[..width]);
                let _ = survives(&damaged, exercise::gguf);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_after_the_magic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = survives(&[b"GGUF", &bytes[..]].concat(), exercise::gguf);
    }

    #[test]
    fn any_bytes_after_the_counts(
        num_tensors in 0_u64..4,
        num_pairs in 0_u64..4,
        bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..16, 1 => any::<u8>()], 0..400),
    ) {
        let head = [&b"GGUF\x03\0\0\0"[..], &num_tensors.to_le_bytes(), &num_pairs.to_le_bytes(), &bytes].concat();
        let _ = survives(&head, exercise::gguf);
    }

    #[test]
    fn any_value_for_a_key(kind in 0_u32..14, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = survives(&sound().pair("k", kind, &bytes).build(), exercise::gguf);
        let elements = string(&bytes);
        let _ = survives(&sound().array("k", kind, 1, &elements).build(), exercise::gguf);
    }
}
