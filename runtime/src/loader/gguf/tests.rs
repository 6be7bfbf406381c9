//! What sound files give; damaged ones are in the root package's `tests/hostile`.

use super::*;
use crate::error::Error;
use crate::loader::{Bytes, Metadata, ModelFile};
use gguf_writer::{GgufWriter, value_type};
use shimmy_kernels::quant::QuantType;

#[path = "../../../../tests/support/gguf_writer.rs"]
mod gguf_writer;

fn metadata(writer: &GgufWriter) -> GgufMetadata {
    open_bytes(&Bytes::from(writer.build())).unwrap().0
}

#[test]
fn every_scalar_type_survives() {
    let meta = metadata(
        &GgufWriter::new()
            .pair("u8", value_type::U8, [200])
            .pair("i8", value_type::I8, (-7_i8).to_le_bytes())
            .pair("u16", value_type::U16, 60_000_u16.to_le_bytes())
            .pair("i16", value_type::I16, (-30_000_i16).to_le_bytes())
            .u32("u32", u32::MAX)
            .pair("i32", value_type::I32, i32::MIN.to_le_bytes())
            .pair("u64", value_type::U64, u64::MAX.to_le_bytes())
            .pair("i64", value_type::I64, i64::MIN.to_le_bytes())
            .pair("f64", value_type::F64, 0.1_f64.to_le_bytes())
            .bool("yes", true)
            .bool("no", false)
            .str("text", "grün\n\"quoted\""),
    );
    assert_eq!(meta.usize("u8").unwrap(), Some(200));
    assert_eq!(meta.i64("i8").unwrap(), Some(-7));
    assert_eq!(meta.usize("u16").unwrap(), Some(60_000));
    assert_eq!(meta.i64("i16").unwrap(), Some(-30_000));
    assert_eq!(meta.usize("u32").unwrap(), Some(u32::MAX as usize));
    assert_eq!(meta.i64("i32").unwrap(), Some(i64::from(i32::MIN)));
    assert_eq!(meta.usize("u64").unwrap(), Some(usize::MAX));
    assert_eq!(meta.i64("i64").unwrap(), Some(i64::MIN));
    assert_eq!(meta.f32("f64").unwrap(), Some(0.1));
    assert_eq!(meta.bool("yes").unwrap(), Some(true));
    assert_eq!(meta.bool("no").unwrap(), Some(false));
    assert_eq!(meta.str("text").unwrap(), Some("grün\n\"quoted\""));
    assert_eq!(meta.usize("absent").unwrap(), None);
    assert!(meta.contains("u8") && !meta.contains("absent"));
    assert_eq!(meta.keys().count(), 12);
}

#[test]
fn floats_are_exact_and_need_not_be_finite() {
    let values = [1e-5, 10_000.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 0.1, -0.0, f32::INFINITY, f32::NEG_INFINITY];
    for value in values {
        let meta = metadata(&GgufWriter::new().f32("x", value).f32s("xs", &[value]));
        assert_eq!(meta.f32("x").unwrap().map(f32::to_bits), Some(value.to_bits()));
        assert_eq!(meta.f32s("xs").unwrap().unwrap()[0].to_bits(), value.to_bits());
    }
    let meta = metadata(&GgufWriter::new().f32("x", f32::NAN));
    assert!(meta.f32("x").unwrap().unwrap().is_nan());
    assert_eq!(meta.to_json(4)["x"], "NaN");
}

#[test]
fn a_wrong_type_is_an_error_that_names_key_and_value() {
    let meta = metadata(
        &GgufWriter::new()
            .u32("n", 7)
            .pair("negative", value_type::I32, (-1_i32).to_le_bytes())
            .str("text", "abc")
            .str("bytes", b"ab\xff")
            .i32s("numbers", &[1, -2])
            .strs("words", &["a"]),
    );
    let message = |error: Error| error.to_string();
    assert_eq!(message(meta.str("n").unwrap_err()), "metadata key `n`: expected a string, got the u32 7");
    assert!(message(meta.usize("negative").unwrap_err()).contains("the i32 -1"));
    assert!(message(meta.f32("n").unwrap_err()).contains("expected a float"));
    assert!(message(meta.bool("text").unwrap_err()).contains("the string \"abc\""));
    assert!(message(meta.str("bytes").unwrap_err()).contains("broken character at byte 2"));
    assert!(message(meta.usizes("numbers").unwrap_err()).contains("-2 at index 1"));
    assert!(message(meta.usizes("n").unwrap_err()).contains("the u32 7"));
    assert!(message(meta.f32s("words").unwrap_err()).contains("an array of 1 string values"));
    assert!(message(meta.strings("numbers").unwrap_err()).contains("an array of 2 i32 values"));
    assert_eq!(meta.i64s("numbers").unwrap(), Some(vec![1, -2]));
}

#[test]
fn strings_are_found_at_any_index() {
    // Across several marks, of every length around the smallest, one of them not UTF-8.
    let words: Vec<Vec<u8>> = (0..300_usize).map(|index| vec![(index % 256) as u8; index % 5]).collect();
    let meta = metadata(&GgufWriter::new().strs("words", &words).u32("after", 1));
    let array = meta.strings("words").unwrap().unwrap();
    assert_eq!((array.len(), array.is_empty()), (300, false));
    assert!(array.iter().eq(words.iter().map(Vec::as_slice)));
    assert_eq!(array.iter().len(), 300);
    for (index, word) in words.iter().enumerate() {
        assert_eq!(array.get(index), Some(word.as_slice()), "{index}");
    }
    assert_eq!(array.get(300), None);
    assert_eq!(array.get(usize::MAX), None);
    assert_eq!(meta.usize("after").unwrap(), Some(1));
}

#[test]
fn empty_arrays_fit_any_getter() {
    let meta = metadata(&GgufWriter::new().array("none", value_type::I32, 0, &[]));
    assert_eq!(meta.f32s("none").unwrap(), Some(vec![]));
    assert_eq!(meta.bools("none").unwrap(), Some(vec![]));
    assert_eq!(meta.strings("none").unwrap().map(|array| array.len()), Some(0));
}

#[test]
fn to_json_shortens_long_arrays_only() {
    let meta = metadata(&GgufWriter::new().i32s("a", &[1, 2, 3]).strs("b", &["x", "y"]).f32("c", 0.1).bool("d", true));
    let json = serde_json::Value::from(meta.to_json(2)).to_string();
    assert_eq!(json, r#"{"a":{"type":"i32","length":3,"first":[1,2]},"b":["x","y"],"c":0.1,"d":true}"#);
}

#[test]
fn what_gguf_rs_sees_is_what_it_would_have_decoded() {
    // The splice must shift nothing: arrays in the middle, at the end, empty and of strings; tensors after them.
    let writer = GgufWriter::new()
        .str("general.architecture", "llama")
        .strs("tokenizer.ggml.tokens", &["a", "bc", ""])
        .u32("llama.block_count", 2)
        .f32s("tokenizer.ggml.scores", &[0.5, 1.5, 2.5])
        .i32s("empty", &[])
        .bool("flag", true)
        .i32s("last", &[-1])
        .tensor_f32("token_embd.weight", &[2, 3], &[0.0; 6])
        .tensor("blk.0.attn_q.weight", &[4, 32], 3, vec![0; 80]);
    let bytes = writer.build();
    let mut container = gguf_rs::GGUFContainer::new(
        gguf_rs::ByteOrder::LE,
        Box::new(std::io::Cursor::new(bytes[4..].to_vec())),
        u64::MAX,
    );
    let plain = container.decode().unwrap();
    let (meta, tensors) = open_bytes(&Bytes::from(bytes)).unwrap();
    assert_eq!(serde_json::to_value(plain.metadata()).unwrap(), serde_json::Value::from(meta.to_json(usize::MAX)));
    for tensor in plain.tensors() {
        let shape: Vec<usize> = tensor.shape.iter().rev().map(|&axis| axis as usize).collect();
        assert_eq!(tensors[&tensor.name].shape, shape);
        assert_eq!(tensors[&tensor.name].dtype.ggml_id(), tensor.kind);
    }
    assert_eq!(plain.tensors().len(), tensors.len());
}

#[test]
fn tensors_are_row_major_and_exact() {
    let values: Vec<f32> = (0..6).map(|value| value as f32).collect();
    let data: Vec<u8> = (0..40).collect();
    let file = ModelFile::from_gguf_bytes(
        GgufWriter::new().tensor_f32("a", &[2, 3], &values).tensor("b", &[2, 32], 3, data.clone()).build(),
    );
    let file = file.unwrap();
    let a = file.require("a", &[2, 3]).unwrap();
    assert_eq!(a.dtype, QuantType::F32);
    assert_eq!(a.data[..], values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    let b = file.tensor("b").unwrap();
    assert_eq!((b.dtype, b.shape.as_slice(), &b.data[..]), (QuantType::Q4_1, &[2, 32][..], &data[..]));
    assert_eq!(file.tensor_bytes(), 64);
    assert!(matches!(file.require("a", &[3, 2]), Err(Error::TensorShape { .. })));
    assert!(matches!(file.require("c", &[1]), Err(Error::MissingTensor { .. })));
}

#[test]
fn every_type_of_the_table_has_the_size_that_it_says() {
    for &dtype in QuantType::all() {
        let columns = dtype.block_len() as u64 * 2;
        let data = vec![0; dtype.block_bytes() * 6];
        let bytes = GgufWriter::new().tensor("t", &[3, columns], dtype.ggml_id(), data).build();
        let file = ModelFile::from_gguf_bytes(bytes).unwrap();
        let view = file.require("t", &[3, columns as usize]).unwrap();
        assert_eq!((view.dtype, view.data.len()), (dtype, dtype.block_bytes() * 6), "{}", dtype.name());
    }
}

#[test]
fn versions_2_and_3_and_other_alignments() {
    for version in [2, 3] {
        let writer = GgufWriter { version, alignment: 64, ..GgufWriter::new() };
        let writer = writer.u32("general.alignment", 64).tensor_f32("a", &[1], &[1.0]).tensor_f32("b", &[1], &[2.0]);
        let file = ModelFile::from_gguf_bytes(writer.build()).unwrap();
        assert_eq!(file.tensor("b").unwrap().data[..], 2.0_f32.to_le_bytes());
    }
}

#[test]
fn a_scalar_tensor_has_no_axes() {
    let file = ModelFile::from_gguf_bytes(GgufWriter::new().tensor_f32("t", &[], &[3.0]).build()).unwrap();
    assert_eq!(file.require("t", &[]).unwrap().num_elements(), 1);
}

fn part(number: u16, count: u16) -> GgufWriter {
    GgufWriter::new()
        .pair("split.no", value_type::U16, number.to_le_bytes())
        .pair("split.count", value_type::U16, count.to_le_bytes())
        .pair("split.tensors.count", value_type::I32, 3_i32.to_le_bytes())
        .tensor_f32(&format!("t{number}"), &[1], &[f32::from(number)])
}

#[test]
fn a_split_set_opens_from_any_part() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (1..=3).map(|number| folder.path().join(format!("m-{number:05}-of-00003.gguf"))).collect();
    for (number, path) in (0..).zip(&paths) {
        let writer = if number == 0 { part(0, 3).str("general.name", "whole") } else { part(number, 3) };
        std::fs::write(path, writer.build()).unwrap();
    }
    for path in paths.iter().map(|path| path.as_path()).chain([folder.path()]) {
        let file = ModelFile::open(path).unwrap();
        assert_eq!((file.path.as_path(), file.parts()), (paths[0].as_path(), paths.as_slice()));
        assert_eq!(file.tensor("t2").unwrap().data[..], 2.0_f32.to_le_bytes());
        let Metadata::Gguf(meta) = &file.metadata else { panic!("not GGUF") };
        assert_eq!(meta.str("general.name").unwrap(), Some("whole"));
    }

    let fails_with = |path: &std::path::Path, expected: &str| {
        let message = ModelFile::open(path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    std::fs::remove_file(&paths[1]).unwrap();
    fails_with(&paths[2], "part 2 of 3 is missing");
    fails_with(&paths[2], "m-00002-of-00003.gguf");
    std::fs::write(&paths[1], part(2, 3).build()).unwrap();
    fails_with(&paths[0], "`split.no` is 2; its name asks for 1");
    std::fs::write(&paths[1], part(1, 4).build()).unwrap();
    fails_with(&paths[0], "`split.count` is not 3");
    let mut twice = part(1, 3);
    twice.tensors[0].name = b"t0".to_vec();
    std::fs::write(&paths[1], twice.build()).unwrap();
    fails_with(&paths[0], "tensor `t0` is in an earlier part as well");
    std::fs::write(&paths[1], part(1, 3).tensor_f32("more", &[1], &[0.0]).build()).unwrap();
    fails_with(&paths[0], "hold 4 tensors; `split.tensors.count` is 3");
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &renamed).unwrap();
    fails_with(&renamed, "its name does not end in");
}

#[test]
fn opening_reads_no_tensor_data() {
    // A sparse file whose data would take 64 GiB: reading it, or making room for it, would not go unnoticed.
    let elements = 1_u64 << 34;
    let header = GgufWriter::new().tensor("huge", &[1 << 10, elements >> 10], 0, Vec::new()).header();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.gguf");
    std::fs::write(&path, &header).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(header.len().next_multiple_of(32) as u64 + elements * 4).unwrap();
    let file = ModelFile::open(&path).unwrap();
    assert_eq!(file.tensor_bytes(), elements * 4);
}
