//! Text that isn't what it should be: an error or a fault, never a panic.

use super::{Bench, Checks, Launch, Module, Random};

const TEXT: &str = include_str!("ptx/gemm.ptx");

fn attempt(text: &str) {
    let Ok(mut module) = Module::parse(text) else { return };
    let checks = Checks { max_steps: 20_000, ..Checks::ALL };
    let mut bench = Bench::with(checks).bytes(&[0; 2048]).bytes(&[0; 4096]).room(512).plain(&[64, 0, 0, 0, 0, 0, 0, 0]);
    if module.load(&mut bench.memory).is_err() {
        return;
    }
    let names: Vec<String> = module.kernel_names().map(str::to_owned).collect();
    for name in names {
        let kernel = module.kernel(&name).unwrap();
        let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], dynamic_shared: 4608 };
        // Whatever comes out: it came out.
        let _ = module.launch(kernel, &launch, &bench.params, &mut bench.memory);
    }
}

#[test]
fn mutations_of_a_real_kernel_never_panic() {
    let mut random = Random(2024);
    let lines: Vec<&str> = TEXT.lines().collect();
    let marks = b"{}[]();,.:@!%|-+0123456789<>=\"\n rfpdbsux";
    for round in 0..1500 {
        let mut text = TEXT.as_bytes().to_vec();
        match round % 4 {
            // Bytes replaced, and bytes removed.
            0 => {
                for _ in 0..=random.next() % 8 {
                    let at = random.next() as usize % text.len();
                    text[at] = marks[random.next() as usize % marks.len()];
                }
            }
            1 => {
                let at = random.next() as usize % text.len();
                text.drain(at..(at + 1 + random.next() as usize % 40).min(TEXT.len()));
            }
            // Lines in each other's place.
            2 => {
                let mut lines = lines.clone();
                let (a, b) = (random.next() as usize % lines.len(), random.next() as usize % lines.len());
                lines.swap(a, b);
                text = lines.join("\n").into_bytes();
            }
            // Numbers of registers and offsets changed.
            _ => {
                let digits: Vec<usize> = (0..text.len()).filter(|&at| text[at].is_ascii_digit()).collect();
                for _ in 0..4 {
                    text[digits[random.next() as usize % digits.len()]] = b'0' + (random.next() % 10) as u8;
                }
            }
        }
        attempt(&String::from_utf8(text).unwrap());
    }
}

#[test]
fn strange_texts_are_refused_with_a_line() {
    for text in [
        "hello",
        ".entry",
        ".entry k(",
        ".entry k() {",
        ".visible .entry k() { .reg .b32 %r<4000000000>; ret; }",
        ".global .b8 x[99999999999999];",
        ".global .align 3 .b8 x;",
        "/* no end",
        "\"no end",
        ".shared .b8 x[1000000000];",
        ".global .u64 p = nowhere;",
        "\u{e9}",
        ".entry k() { } }",
    ] {
        match Module::parse(text) {
            Err(super::EmulatorError::Parse { line, .. }) => assert!(line <= 1, "{text}"),
            Err(other) => panic!("{text}: {other}"),
            Ok(module) => {
                // A fault inside a kernel's body makes only the kernel unusable.
                let kernel = module.kernel("k").unwrap();
                assert!(module.check(kernel).is_err(), "{text}");
            }
        }
    }
}
