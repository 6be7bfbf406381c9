//! Matrix instructions: each shape against a product of plain matrices, through the formulas of the ISA's tables.

use half::{bf16, f16};

use super::{Bench, Random, kernel, threads};

/// Where an element of a fragment lies: (row, column) for lane and number of the element, as the ISA lists them.
type Place = fn(usize, usize) -> (usize, usize);

struct Shape {
    name: &'static str,
    types: &'static str,
    k: usize,
    rows: usize,
    /// Elements a lane has of A, B and C.
    counts: [usize; 3],
    a: Place,
    b: Place,
    c: Place,
}

fn c16(lane: usize, i: usize) -> (usize, usize) {
    (lane >> 2 | if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1))
}

const SHAPES: [Shape; 7] = [
    Shape {
        name: "m16n8k8",
        types: "f16",
        k: 8,
        rows: 16,
        counts: [4, 2, 4],
        a: |lane, i| ((lane >> 2) + if i < 2 { 0 } else { 8 }, (lane % 4) * 2 + (i & 1)),
        b: |lane, i| ((lane % 4) * 2 + i, lane >> 2),
        c: c16,
    },
    Shape {
        name: "m16n8k16",
        types: "f16",
        k: 16,
        rows: 16,
        counts: [8, 4, 4],
        a: |lane, i| {
            let first = i < 2 || (4..6).contains(&i);
            ((lane >> 2) + if first { 0 } else { 8 }, (lane % 4) * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        },
        b: |lane, i| ((lane % 4) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane >> 2),
        c: c16,
    },
    Shape {
        name: "m16n8k16",
        types: "s8",
        k: 16,
        rows: 16,
        counts: [8, 4, 4],
        a: |lane, i| ((lane >> 2) + if i < 4 { 0 } else { 8 }, (lane % 4) * 4 + (i & 3)),
        b: |lane, i| ((lane % 4) * 4 + i, lane >> 2),
        c: c16,
    },
    Shape {
        name: "m16n8k32",
        types: "s8",
        k: 32,
        rows: 16,
        counts: [16, 8, 4],
        a: |lane, i| {
            let first = i < 4 || (8..12).contains(&i);
            ((lane >> 2) + if first { 0 } else { 8 }, (lane % 4) * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
        },
        b: |lane, i| ((lane % 4) * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, lane >> 2),
        c: c16,
    },
    Shape {
        name: "m8n8k16",
        types: "s8",
        k: 16,
        rows: 8,
        counts: [4, 4, 2],
        a: |lane, i| (lane >> 2, (lane % 4) * 4 + i),
        b: |lane, i| ((lane % 4) * 4 + i, lane >> 2),
        c: |lane, i| (lane >> 2, (lane % 4) * 2 + i),
    },
    Shape {
        name: "m16n8k4",
        types: "tf32",
        k: 4,
        rows: 16,
        counts: [2, 1, 4],
        a: |lane, i| ((lane >> 2) + 8 * i, lane % 4),
        b: |lane, _| (lane % 4, lane >> 2),
        c: c16,
    },
    Shape {
        name: "m16n8k8",
        types: "tf32",
        k: 8,
        rows: 16,
        counts: [4, 2, 4],
        a: |lane, i| ((lane >> 2) + if i % 2 == 0 { 0 } else { 8 }, lane % 4 + if i < 2 { 0 } else { 4 }),
        b: |lane, i| (lane % 4 + 4 * i, lane >> 2),
        c: c16,
    },
];

/// A type of elements: bits, a random value, and its meaning.
struct Element {
    name: &'static str,
    bits: usize,
    random: fn(&mut Random) -> u32,
    value: fn(u32) -> f64,
}

const HALF: Element = Element {
    name: "f16",
    bits: 16,
    random: |random| f16::from_f32(random.small()).to_bits().into(),
    value: |bits| f16::from_bits(bits as u16).to_f64(),
};
const BRAIN: Element = Element {
    name: "bf16",
    bits: 16,
    random: |random| bf16::from_f32(random.small()).to_bits().into(),
    value: |bits| bf16::from_bits(bits as u16).to_f64(),
};
const SIGNED: Element =
    Element { name: "s8", bits: 8, random: |random| random.next() & 0xff, value: |bits| f64::from(bits as u8 as i8) };
const UNSIGNED: Element =
    Element { name: "u8", bits: 8, random: |random| random.next() & 0xff, value: |bits| f64::from(bits as u8) };
const E4M3: Element = Element {
    name: "e4m3",
    bits: 8,
    // Exponents around 1: the sums stay exact.
    random: |random| random.next() & 0x87 | (random.next() % 4 + 5) << 3,
    value: |bits| {
        let magnitude = (1.0 + f64::from(bits & 7) / 8.0) * f64::from(bits >> 3 & 15).exp2() / 128.0;
        if bits & 0x80 != 0 { -magnitude } else { magnitude }
    },
};

const E5M2: Element = Element {
    name: "e5m2",
    bits: 8,
    random: |random| random.next() & 0x83 | (random.next() % 4 + 13) << 2,
    value: |bits| {
        let magnitude = (1.0 + f64::from(bits & 3) / 4.0) * f64::from(bits >> 2 & 31).exp2() / 32768.0;
        if bits & 0x80 != 0 { -magnitude } else { magnitude }
    },
};
/// The 13 lowest bits mean nothing, whatever they are.
const TF32: Element = Element {
    name: "tf32",
    bits: 32,
    random: |random| random.small().to_bits() | random.next() & 0x1fff,
    value: |bits| f32::from_bits(bits & !0x1fff).into(),
};

/// Fragments of random matrices, multiplied by the instruction and by hand.
fn product(shape: &Shape, a: &Element, b: &Element, accumulator: &str) {
    let mut random = Random(42);
    let Shape { name, k, rows, counts, .. } = *shape;
    let mut matrix_a = vec![vec![0.0; k]; rows];
    let mut matrix_b = vec![vec![0.0; 8]; k];
    let mut matrix_c = vec![vec![0.0; 8]; rows];
    let mut pack = |element: &Element, count: usize, place: Place, matrix: &mut [Vec<f64>]| -> Vec<u32> {
        let per_word = 32 / element.bits;
        let mut words = vec![0; 32 * count / per_word];
        for lane in 0..32 {
            for i in 0..count {
                let bits = (element.random)(&mut random);
                let (row, column) = place(lane, i);
                matrix[row][column] = (element.value)(bits);
                words[lane * count / per_word + i / per_word] |= bits << (element.bits * (i % per_word));
            }
        }
        words
    };
    let words_a = pack(a, counts[0], shape.a, &mut matrix_a);
    let words_b = pack(b, counts[1], shape.b, &mut matrix_b);
    let c_element = match accumulator {
        "f16" => HALF,
        "f32" => Element {
            name: "f32",
            bits: 32,
            random: |random| random.small().to_bits(),
            value: |bits| f32::from_bits(bits).into(),
        },
        _ => Element {
            name: "s32",
            bits: 32,
            random: |random| random.next() & 0xffff,
            value: |bits| f64::from(bits as i32),
        },
    };
    let words_c = pack(&c_element, counts[2], shape.c, &mut matrix_c);

    let per_lane = [words_a.len() / 32, words_b.len() / 32, words_c.len() / 32];
    let mut body = String::new();
    let mut registers = Vec::new();
    for (operand, count) in per_lane.into_iter().enumerate() {
        body += &format!("mad.wide.u32 %rd30, %r0, {}, %rd{operand};\n", 4 * count);
        let names: Vec<_> = (0..count).map(|n| format!("%r{}", 10 * (operand + 1) + n)).collect();
        for (n, name) in names.iter().enumerate() {
            body += &format!("ld.global.u32 {name}, [%rd30+{}];\n", 4 * n);
        }
        registers.push(format!("{{{}}}", names.join(", ")));
    }
    let d: Vec<_> = (0..per_lane[2]).map(|n| format!("%r{}", 40 + n)).collect();
    let (a_name, b_name) = (a.name, b.name);
    body += &format!(
        "mma.sync.aligned.{name}.row.col.{accumulator}.{a_name}.{b_name}.{accumulator} {{{}}}, {}, {}, {};\n",
        d.join(", "),
        registers[0],
        registers[1],
        registers[2]
    );
    body += &format!("mad.wide.u32 %rd30, %r0, {}, %rd3;\n", 4 * per_lane[2]);
    for (n, d) in d.iter().enumerate() {
        body += &format!("st.global.u32 [%rd30+{}], {d};\n", 4 * n);
    }
    let mut bench = Bench::new().words(&words_a).words(&words_b).words(&words_c).room(32 * per_lane[2]);
    bench.run(&kernel(4, &body), &threads(32)).unwrap();
    let got = bench.result(3);
    for lane in 0..32 {
        for i in 0..counts[2] {
            let (row, column) = (shape.c)(lane, i);
            let exact: f64 =
                matrix_c[row][column] + (0..k).map(|n| matrix_a[row][n] * matrix_b[n][column]).sum::<f64>();
            let wanted = match accumulator {
                "f16" => f64::from(f16::from_f32(exact as f32).to_f32()),
                "f32" => f64::from(exact as f32),
                _ => exact,
            };
            let per_word = 32 / c_element.bits;
            let word = got[(lane * counts[2] + i) / per_word];
            let value = (c_element.value)(word >> (c_element.bits * (i % per_word) % 32));
            assert_eq!(value, wanted, "{name} {a_name} {b_name} {accumulator}: row {row}, column {column}");
        }
    }
}

#[test]
fn every_shape_multiplies_matrices() {
    for shape in &SHAPES {
        match shape.types {
            "f16" => {
                product(shape, &HALF, &HALF, "f32");
                product(shape, &HALF, &HALF, "f16");
                product(shape, &BRAIN, &BRAIN, "f32");
            }
            "tf32" => product(shape, &TF32, &TF32, "f32"),
            _ => {
                product(shape, &SIGNED, &SIGNED, "s32");
                product(shape, &UNSIGNED, &SIGNED, "s32");
                product(shape, &SIGNED, &UNSIGNED, "s32");
                product(shape, &UNSIGNED, &UNSIGNED, "s32");
            }
        }
        if shape.name == "m16n8k32" {
            for [a, b] in [[&E4M3, &E4M3], [&E4M3, &E5M2], [&E5M2, &E4M3], [&E5M2, &E5M2]] {
                product(shape, a, b, "f32");
            }
        }
    }
}

#[test]
fn matrices_move_between_shared_memory_and_fragments() {
    // Four 8 x 8 matrices of halves, rows of 16 bytes: element (i, r, c) is 64 i + 8 r + c. Lane l gives row l.
    let load = |transpose: &str| {
        kernel(
            1,
            &format!(
                ".shared .align 16 .b8 tile[1024];\nmov.u32 %r1, tile;\nmad.lo.u32 %r2, %r0, 16, %r1;\n\
                 mul.lo.u32 %r3, %r0, 8;\nadd.u32 %r4, %r3, 1;\nshl.b32 %r5, %r4, 16;\nor.b32 %r5, %r5, %r3;\n\
                 st.shared.u32 [%r2], %r5;\nadd.u32 %r5, %r5, 0x20002;\nst.shared.u32 [%r2+4], %r5;\n\
                 add.u32 %r5, %r5, 0x20002;\nst.shared.u32 [%r2+8], %r5;\nadd.u32 %r5, %r5, 0x20002;\n\
                 st.shared.u32 [%r2+12], %r5;\nbar.sync 0;\n\
                 ldmatrix.sync.aligned.m8n8.x4{transpose}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r2];\n\
                 add.u32 %r6, %r2, 512;\n\
                 stmatrix.sync.aligned.m8n8.x4{transpose}.shared.b16 [%r6], {{%r10, %r11, %r12, %r13}};\nbar.sync 0;\n\
                 ld.shared.u32 %r14, [%r6+4];\nmovmatrix.sync.aligned.m8n8.trans.b16 %r15, %r10;\n\
                 mad.wide.u32 %rd30, %r0, 24, %rd0;\nst.global.v2.u32 [%rd30], {{%r10, %r11}};\n\
                 st.global.v2.u32 [%rd30+8], {{%r12, %r13}};\nst.global.v2.u32 [%rd30+16], {{%r14, %r15}};"
            ),
        )
    };
    for transposed in [false, true] {
        let mut bench = Bench::new().room(192);
        bench.run(&load(if transposed { ".trans" } else { "" }), &threads(32)).unwrap();
        let got = bench.result(0);
        for lane in 0..32u32 {
            let element = |i: u32, j: u32, transposed: bool| {
                let (row, column) = (lane / 4, lane % 4 * 2 + j);
                64 * i + if transposed { 8 * column + row } else { 8 * row + column }
            };
            let words = &got[lane as usize * 6..][..6];
            for i in 0..4 {
                let wanted = element(i, 0, transposed) | element(i, 1, transposed) << 16;
                assert_eq!(words[i as usize], wanted, "matrix {i}, lane {lane}, transposed {transposed}");
            }
            // Stored the way it was loaded: the same rows again.
            assert_eq!(words[4], (8 * lane + 2) | ((8 * lane + 3) << 16));
            assert_eq!(words[5], element(0, 0, !transposed) | element(0, 1, !transposed) << 16);
        }
    }
}
