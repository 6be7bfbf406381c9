//! Tokenizers and chat templates from files that lie: an error or an answer, never a panic.

use super::Random;
use super::exercise;
use super::gguf_writer::GgufWriter;

const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']|trim }}{% endfor %}\
                        {% if add_generation_prompt %}{{ bos_token ~ ([1, 2.5, none]|tojson) }}{% endif %}";

/// The character that stands for a byte in GPT-2's alphabet.
fn byte_char(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
        byte => u32::from(byte),
    };
    char::from_u32(shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn bpe(pre: &str) -> Vec<u8> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(["th", "the", "\u{120}the", "<s>", "<|im_end|>", "<tool>"].map(String::from));
    let mut kinds = vec![1; 256 + 3];
    kinds.extend([3, 3, 4]);
    GgufWriter::new()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strs("tokenizer.ggml.merges", &["t h", "th e", "\u{120} the"])
        .u32("tokenizer.ggml.bos_token_id", 259)
        .u32("tokenizer.ggml.eos_token_id", 260)
        .bool("tokenizer.ggml.add_bos_token", true)
        .str("tokenizer.chat_template", TEMPLATE)
        .header()
}

fn spm() -> Vec<u8> {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "t", "h", "e", "th", "\u{2581}th", "\u{2581}the", "  "].map(String::from));
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([1, 1, 1, 1, 1, 1, 1, 4]);
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    GgufWriter::new()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .bool("tokenizer.ggml.add_space_prefix", true)
        .str("tokenizer.chat_template", TEMPLATE)
        .header()
}

#[test]
fn sound_vocabularies_work() {
    for file in [bpe("gpt-2"), bpe("llama-bpe"), bpe("deepseek-llm"), spm()] {
        assert_eq!(exercise::text(&file), Ok(()));
    }
}

#[test]
fn flipped_bits_and_extremes() {
    let mut random = Random(7);
    let (mut refusals, mut survivals) = (0, 0);
    for sound in [bpe("smollm"), spm()] {
        for _ in 0..4000 {
            let mut bytes = sound.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = 0xFF,
                    _ => bytes[at] = 0,
                }
            }
            match exercise::text(&bytes) {
                Ok(()) => survivals += 1,
                Err(message) => {
                    assert!(!message.is_empty());
                    refusals += 1;
                }
            }
        }
    }
    // Most flips hit a token's text, which is as good as any other; lengths, types and keys must be refused.
    assert!(refusals > 500 && survivals > 500, "{refusals} refused, {survivals} accepted");
}

#[test]
fn lies_about_the_vocabulary_are_named() {
    let writer = || GgufWriter::new().str("tokenizer.ggml.model", "gpt2");
    let tokens = ["a", "b", "ab"];
    for (file, expected) in [
        (GgufWriter::new(), "tokenizer.ggml.model"),
        (GgufWriter::new().str("tokenizer.ggml.model", "gpt\n2"), "gpt\\n2"),
        (writer(), "tokenizer.ggml.tokens"),
        (writer().strs::<&str>("tokenizer.ggml.tokens", &[]), "tokenizer.ggml.tokens"),
        (writer().u32("tokenizer.ggml.tokens", 3), "tokenizer.ggml.tokens"),
        (writer().strs("tokenizer.ggml.tokens", &tokens), "tokenizer.ggml.merges"),
        (writer().strs("tokenizer.ggml.tokens", &tokens).strs("tokenizer.ggml.merges", &["a c"]), "merge 0"),
        (writer().strs("tokenizer.ggml.tokens", &["a", "a"]).strs("tokenizer.ggml.merges", &["a a"]), "two ids"),
        (writer().strs("tokenizer.ggml.tokens", &tokens).i32s("tokenizer.ggml.token_type", &[1]), "token_type"),
        (writer().strs("tokenizer.ggml.tokens", &tokens).u32("tokenizer.ggml.eos_token_id", 3), "eos_token_id"),
        (writer().strs("tokenizer.ggml.tokens", &tokens).str("tokenizer.ggml.pre", "x\u{7}"), "x\\u{7}"),
    ] {
        let message = exercise::text(&file.header()).unwrap_err();
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}
