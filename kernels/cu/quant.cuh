// Weights of every block type, 32 at a time.
//
// A matrix lies in planes: of each block the same field, block after block, row after row, so that loads of a warp are
// contiguous and aligned although blocks of 18 or 210 bytes are not. `kernels/src/cuda/planes.rs` says which bytes of a
// block are in which plane, and arranges them when a model is loaded.
//
// A unit is 32 elements in two halves of 16, as one load of 16 bytes of packed codes gives them: `at` says where in the
// block each half lies. A weight is `scale · q + min`, q a signed byte; `min` is 0 for types without.
#pragma once
#include "common.cuh"

struct Planes {
    const u8 *plane[5];
    // Codebook of the IQ types: 8 (IQ1, IQ2) or 4 (IQ3) signed levels a point.
    const void *points;
};

struct Unit {
    int q[2][4];
    u32 at[2];
    float scale[2];
    float min[2];
};

// Bytes of a word as lanes: low and high nibbles, and each byte less a constant.
DEVICE int low_nibbles(int word) { return word & 0x0f0f0f0f; }
DEVICE int high_nibbles(int word) { return (word >> 4) & 0x0f0f0f0f; }
DEVICE int less(int bytes, u8 offset) { return __vsub4(bytes, offset * 0x01010101); }

DEVICE int word_of(const int4 &v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEVICE void same_scale(Unit &u, float scale, float min = 0.0f) {
    u.scale[0] = u.scale[1] = scale;
    u.min[0] = u.min[1] = min;
}

// Halves are the low and the high nibbles, less `offset`.
DEVICE void nibbles(Unit &u, const int4 &qs, u8 offset) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u.q[0][i] = less(low_nibbles(word_of(qs, i)), offset);
        u.q[1][i] = less(high_nibbles(word_of(qs, i)), offset);
    }
}

// Four bits, one into bit `to` of each byte.
DEVICE int spread_bits(u32 bits, u32 to) {
    return (int)((((bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21)) << to);
}

// Looks four nibbles up in a table of 16 bytes, given as four words.
DEVICE int look_up(int nibbles_in_bytes, const u32 (&table)[4]) {
    // Each byte's nibble becomes a nibble of a selector of `prmt`, which takes three bits of it; the fourth chooses
    // between the halves of the table.
    u32 n = (u32)nibbles_in_bytes;
    u32 selector = (n & 7) | (n >> 4 & 0x70) | (n >> 8 & 0x700) | (n >> 12 & 0x7000);
    u32 low = __byte_perm(table[0], table[1], selector), high = __byte_perm(table[2], table[3], selector);
    u32 is_high = ((n >> 3 & 0x01010101u) * 0xffu);
    return (int)((low & ~is_high) | (high & is_high));
}

// Codes of Q4_K's and Q5_K's eight scales and minima in twelve bytes: those of group `g` as (scale, min).
DEVICE float2 scale_and_min(const int4 &head, u32 g) {
    float2 d = halves_to_floats((u32)head.x);
    u32 a = (u32)head.y, b = (u32)head.z, c = (u32)head.w, shift = g % 4 * 8;
    u32 scale, min;
    if (g < 4) {
        scale = a >> shift & 63;
        min = b >> shift & 63;
    } else {
        scale = (c >> shift & 15) | (a >> shift >> 6 & 3) << 4;
        min = (c >> shift >> 4 & 15) | (b >> shift >> 6 & 3) << 4;
    }
    return make_float2(d.x * (float)scale, -(d.y * (float)min));
}

// Changes the sign of the bytes whose bit is set: bit `i` is that of byte `i`.
DEVICE int with_signs(int bytes, u32 signs) {
    u32 mask = (u32)spread_bits(signs & 15, 0) * 0xffu;
    return __vsub4((u32)bytes ^ mask, mask);
}

// Eight sign bits from the seven that a file holds: the number of negative elements is even.
DEVICE u32 even_signs(u32 seven) { return seven | (__popc(seven) & 1) << 7; }

// 8 elements of a point of eight levels, with signs.
DEVICE void put_point(Unit &u, u32 eighth, uint2 levels, u32 signs) {
    u.q[eighth / 2][eighth % 2 * 2] = with_signs((int)levels.x, signs);
    u.q[eighth / 2][eighth % 2 * 2 + 1] = with_signs((int)levels.y, signs >> 4);
}

// One digit of four bytes of five ternary digits each.
DEVICE int digits(u32 word, u32 power) {
    u32 out = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 byte = (word >> 8 * i) * power & 0xff;
        out |= (byte * 3 >> 8) << 8 * i;
    }
    return (int)out;
}

// One type (constants are enums, which take no memory on the device): elements of a block and of a group with one scale, whether `min` is used, and how unit `i` of block `b` is
// read.
struct Q4_0 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 16), 8);
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
        u.at[0] = 0, u.at[1] = 16;
    }
};

struct Q4_1 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 1 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 16), 0);
        float2 d = halves_to_floats(load<u32>(w.plane[1] + b * 4));
        same_scale(u, d.x, d.y);
        u.at[0] = 0, u.at[1] = 16;
    }
};

// The fifth bits of Q5_0 and Q5_1: bit `i` is that of element `i`.
DEVICE void fifth_bits(Unit &u, u32 bits, u8 offset) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u.q[i / 4][i % 4] = less(u.q[i / 4][i % 4] | spread_bits(bits >> 4 * i & 15, 4), offset);
    }
}

struct Q5_0 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 16), 0);
        fifth_bits(u, load<u32>(w.plane[1] + b * 4), 16);
        same_scale(u, half_to_float(load<u16>(w.plane[2] + b * 2)));
        u.at[0] = 0, u.at[1] = 16;
    }
};

struct Q5_1 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 1 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 16), 0);
        fifth_bits(u, load<u32>(w.plane[1] + b * 4), 0);
        float2 d = halves_to_floats(load<u32>(w.plane[2] + b * 4));
        same_scale(u, d.x, d.y);
        u.at[0] = 0, u.at[1] = 16;
    }
};

// 32 codes as they are.
DEVICE void bytes(Unit &u, const u8 *from) {
    int4 first = load_stream(from), second = load_stream(from + 16);
#pragma unroll
    for (u32 i = 0; i < 4; i++) u.q[0][i] = word_of(first, i), u.q[1][i] = word_of(second, i);
}

struct Q8_0 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        bytes(u, w.plane[0] + b * 32);
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
        u.at[0] = 0, u.at[1] = 16;
    }
};
// Its sums are for activations; as a weight it reads as Q8_0.
struct Q8_1 : Q8_0 {};

struct Q8_K {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        bytes(u, w.plane[0] + b * 256 + i * 32);
        same_scale(u, load<float>(w.plane[1] + b * 4));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

struct Q4_K {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 1 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 128 + i * 16), 0);
        int4 head = load<int4>(w.plane[1] + b * 16);
        u32 pair = i / 2;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float2 s = scale_and_min(head, 2 * pair + h);
            u.scale[h] = s.x, u.min[h] = s.y;
            u.at[h] = pair * 64 + h * 32 + i % 2 * 16;
        }
    }
};

struct Q5_K {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 1 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 128 + i * 16), 0);
        int4 high = load<int4>(w.plane[1] + b * 32 + i % 2 * 16), head = load<int4>(w.plane[2] + b * 16);
        u32 pair = i / 2;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float2 s = scale_and_min(head, 2 * pair + h);
            u.scale[h] = s.x, u.min[h] = s.y;
            u.at[h] = pair * 64 + h * 32 + i % 2 * 16;
#pragma unroll
            for (u32 j = 0; j < 4; j++) u.q[h][j] |= (word_of(high, j) >> (2 * pair + h) & 0x01010101) << 4;
        }
    }
};

struct Q6_K {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        nibbles(u, load_stream(w.plane[0] + b * 128 + i * 16), 0);
        u32 half = i / 4, j = i % 4;
        int4 high = load<int4>(w.plane[1] + b * 64 + half * 32 + j % 2 * 16);
        float d = half_to_float(load<u16>(w.plane[3] + b * 2));
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u.at[h] = half * 128 + h * 64 + j * 16;
            u.scale[h] = d * (float)load<i8>(w.plane[2] + b * 16 + u.at[h] / 16);
            u.min[h] = 0.0f;
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                int two = word_of(high, k) >> (4 * h + j / 2 * 2) & 0x03030303;
                u.q[h][k] = less(u.q[h][k] | two << 4, 32);
            }
        }
    }
};

// Q2_K, Q3_K and TQ2_0 keep four elements in a byte: elements `i`, `32 + i`, `64 + i` and `96 + i` of half a block. A unit
// takes two of the four from 16 bytes.
DEVICE void two_bits(Unit &u, const u8 *qs, u32 i) {
    u32 half = i / 4, side = i % 2, parts = i % 4 / 2 * 2;
    int4 v = load_stream(qs + half * 32 + side * 16);
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u.at[h] = half * 128 + (parts + h) * 32 + side * 16;
#pragma unroll
        for (u32 k = 0; k < 4; k++) u.q[h][k] = word_of(v, k) >> 2 * (parts + h) & 0x03030303;
    }
}

struct Q2_K {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 1 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        two_bits(u, w.plane[0] + b * 64, i);
        float2 d = halves_to_floats(load<u32>(w.plane[2] + b * 4));
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 packed = load<u8>(w.plane[1] + b * 16 + u.at[h] / 16);
            u.scale[h] = d.x * (float)(packed & 15);
            u.min[h] = -(d.y * (float)(packed >> 4));
        }
    }
};

struct Q3_K {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        two_bits(u, w.plane[0] + b * 64, i);
        int4 high = load<int4>(w.plane[1] + b * 32 + i % 2 * 16);
        const u8 *scales = w.plane[2] + b * 12;
        float d = half_to_float(load<u16>(w.plane[3] + b * 2));
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 g = u.at[h] / 16;
            u32 six = (load<u8>(scales + g % 8) >> (g / 8 * 4) & 15) | (load<u8>(scales + 8 + g % 4) >> (g / 4 * 2) & 3) << 4;
            u.scale[h] = d * ((float)six - 32.0f);
            u.min[h] = 0.0f;
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                int bit = word_of(high, k) >> (u.at[h] / 32) & 0x01010101;
                u.q[h][k] = less(u.q[h][k] | bit << 2, 4);
            }
        }
    }
};

struct TQ2_0 {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        two_bits(u, w.plane[0] + b * 64, i);
#pragma unroll
        for (u32 k = 0; k < 8; k++) u.q[k / 4][k % 4] = less(u.q[k / 4][k % 4], 1);
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
    }
};

struct TQ1_0 {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        const u32 powers[5] = {1, 3, 9, 27, 81};
        const u8 *qs = w.plane[0] + b * 48;
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
        // Digit `i` of bytes 0 to 31; then digits 0 to 4 of bytes 32 to 47; then four digits of four bytes.
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 sixteenth = 2 * i + h;
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                u32 word, digit;
                if (sixteenth < 10) {
                    word = load<u32>(qs + h * 16 + k * 4), digit = i;
                } else if (sixteenth < 15) {
                    word = load<u32>(qs + 32 + k * 4), digit = sixteenth - 10;
                } else {
                    word = load<u32>(w.plane[1] + b * 4), digit = k;
                }
                u32 power = powers[0];
#pragma unroll
                for (u32 n = 1; n < 5; n++) power = digit == n ? powers[n] : power;
                u.q[h][k] = less(digits(word, power), 1);
            }
        }
        same_scale(u, half_to_float(load<u16>(w.plane[2] + b * 2)));
    }
};

DEVICE void levels(Unit &u, const int4 &qs, const u32 (&table)[4]) {
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        u.q[0][k] = look_up(low_nibbles(word_of(qs, k)), table);
        u.q[1][k] = look_up(high_nibbles(word_of(qs, k)), table);
    }
}

// −127, −104, −83, −65, −49, −35, −22, −10, 1, 13, 25, 38, 53, 69, 89, 113
#define IQ4_LEVELS {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}
// Twice 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives.
#define FP4_LEVELS {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}

struct IQ4_NL {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        const u32 table[4] = IQ4_LEVELS;
        levels(u, load_stream(w.plane[0] + b * 16), table);
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
        u.at[0] = 0, u.at[1] = 16;
    }
};

struct IQ4_XS {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        const u32 table[4] = IQ4_LEVELS;
        levels(u, load_stream(w.plane[0] + b * 128 + i * 16), table);
        uint2 head = load<uint2>(w.plane[1] + b * 8);
        u32 six = (head.y >> 4 * i & 15) | (head.x >> (16 + 2 * i) & 3) << 4;
        same_scale(u, half_to_float((u16)head.x) * ((float)six - 32.0f));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

struct MXFP4 {
    enum : u32 { LEN = 32, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32, Unit &u) {
        const u32 table[4] = FP4_LEVELS;
        levels(u, load_stream(w.plane[0] + b * 16), table);
        // Half of 2^(e − 127), for the levels are doubled; the two smallest are subnormal.
        u32 e = load<u8>(w.plane[1] + b);
        same_scale(u, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23));
        u.at[0] = 0, u.at[1] = 16;
    }
};

// Half of a scale of 4 exponent and 3 mantissa bits without a sign, for the levels are doubled.
DEVICE float half_ue4m3(u32 bits) {
    u32 exponent = bits >> 3 & 15, mantissa = bits & 7;
    if ((bits & 0xff) == 0x7f) return 0.0f;
    return exponent == 0 ? (float)mantissa / 1024.0f : __uint_as_float((exponent + 119) << 23 | mantissa << 20);
}

struct NVFP4 {
    enum : u32 { LEN = 64, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        const u32 table[4] = FP4_LEVELS;
        int4 qs = load_stream(w.plane[0] + b * 32 + i * 16);
        u32 scales = load<u32>(w.plane[1] + b * 4);
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
#pragma unroll
            for (u32 k = 0; k < 2; k++) {
                u.q[h][k] = look_up(low_nibbles(word_of(qs, 2 * h + k)), table);
                u.q[h][k + 2] = look_up(high_nibbles(word_of(qs, 2 * h + k)), table);
            }
            u.scale[h] = half_ue4m3(scales >> 8 * (2 * i + h));
            u.min[h] = 0.0f;
            u.at[h] = i * 32 + h * 16;
        }
    }
};

struct Q1_0 {
    enum : u32 { LEN = 128, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        u32 bits = load<u32>(w.plane[0] + b * 16 + i * 4);
#pragma unroll
        for (u32 k = 0; k < 8; k++) u.q[k / 4][k % 4] = less(spread_bits(bits >> 4 * k & 15, 1), 1);
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

struct Q2_0 {
    enum : u32 { LEN = 64, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        uint2 v = load<uint2>(w.plane[0] + b * 16 + i * 8);
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            u32 byte = (k < 4 ? v.x : v.y) >> 8 * (k % 4);
            int codes = (int)((byte & 3) | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18);
            u.q[k / 4][k % 4] = less(codes, 1);
        }
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

// The codebook types: unit `i` is elements `32·i ..+ 32`, four points of eight or eight of four.
struct IQ1_S {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        u32 low = load<u32>(w.plane[0] + b * 32 + i * 4), word = load<u16>(w.plane[1] + b * 16 + i * 2);
        // Points are those of the shift down.
        u32 shift = word & 0x8000 ? 0 : 0x02020202;
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 point = (low >> 8 * l & 0xff) | (word >> 3 * l & 7) << 8;
            uint2 levels = __ldg((const uint2 *)w.points + point);
            put_point(u, l, make_uint2(__vadd4(levels.x, shift), __vadd4(levels.y, shift)), 0);
        }
        float d = half_to_float(load<u16>(w.plane[2] + b * 2)) * 0.125f;
        same_scale(u, d * (float)(2 * (word >> 12 & 7) + 1));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

struct IQ1_M {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        u32 low = load<u32>(w.plane[0] + b * 32 + i * 4), high = load<u16>(w.plane[1] + b * 16 + i * 2);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 bits = high >> 4 * l, shift = bits & 8 ? 0 : 0x02020202;
            uint2 levels = __ldg((const uint2 *)w.points + ((low >> 8 * l & 0xff) | (bits & 7) << 8));
            put_point(u, l, make_uint2(__vadd4(levels.x, shift), __vadd4(levels.y, shift)), 0);
        }
        uint2 words = load<uint2>(w.plane[2] + b * 8);
        u32 bits = (words.x >> 12 & 0xf) | (words.x >> 24 & 0xf0) | (words.y >> 4 & 0xf00) | (words.y >> 16 & 0xf000);
        float d = half_to_float((u16)bits) * 0.125f;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 g = 2 * i + h, word = (g < 8 ? words.x : words.y) >> (g / 4 % 2 * 16);
            u.scale[h] = d * (float)(2 * (word >> 3 * (g % 4) & 7) + 1);
            u.min[h] = 0.0f;
            u.at[h] = i * 32 + h * 16;
        }
    }
};

struct IQ2_XXS {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        uint2 v = load<uint2>(w.plane[0] + b * 64 + i * 8);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            uint2 levels = __ldg((const uint2 *)w.points + (v.x >> 8 * l & 0xff));
            put_point(u, l, levels, even_signs(v.y >> 7 * l & 127));
        }
        same_scale(u, half_to_float(load<u16>(w.plane[1] + b * 2)) * ((float)(v.y >> 28) + 0.5f) * 0.25f);
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

// Scales of IQ2_XS and IQ2_S: nibbles, two in a byte.
DEVICE void nibble_scales(Unit &u, float d, u32 byte, u32 i) {
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u.scale[h] = d * ((float)(byte >> 4 * h & 15) + 0.5f) * 0.25f;
        u.min[h] = 0.0f;
        u.at[h] = i * 32 + h * 16;
    }
}

struct IQ2_XS {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        uint2 v = load<uint2>(w.plane[0] + b * 64 + i * 8);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 word = (l < 2 ? v.x : v.y) >> 16 * (l % 2) & 0xffff;
            put_point(u, l, __ldg((const uint2 *)w.points + (word & 511)), even_signs(word >> 9));
        }
        nibble_scales(u, half_to_float(load<u16>(w.plane[2] + b * 2)), load<u8>(w.plane[1] + b * 8 + i), i);
    }
};

struct IQ2_S {
    enum : u32 { LEN = 256, GROUP = 16, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        u32 low = load<u32>(w.plane[0] + b * 32 + i * 4), signs = load<u32>(w.plane[1] + b * 32 + i * 4);
        u32 high = load<u8>(w.plane[2] + b * 8 + i);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 point = (low >> 8 * l & 0xff) | (high >> 2 * l & 3) << 8;
            put_point(u, l, __ldg((const uint2 *)w.points + point), signs >> 8 * l);
        }
        nibble_scales(u, half_to_float(load<u16>(w.plane[4] + b * 2)), load<u8>(w.plane[3] + b * 8 + i), i);
    }
};

struct IQ3_XXS {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        uint2 v = load<uint2>(w.plane[0] + b * 64 + i * 8);
        u32 word = load<u32>(w.plane[1] + b * 32 + i * 4);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 two = (l < 2 ? v.x : v.y) >> 16 * (l % 2);
            const u32 *points = (const u32 *)w.points;
            put_point(u, l, make_uint2(__ldg(points + (two & 0xff)), __ldg(points + (two >> 8 & 0xff))),
                      even_signs(word >> 7 * l & 127));
        }
        same_scale(u, half_to_float(load<u16>(w.plane[2] + b * 2)) * ((float)(word >> 28) + 0.5f) * 0.5f);
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

struct IQ3_S {
    enum : u32 { LEN = 256, GROUP = 32, MIN = 0 };
    DEVICE static void load_unit(const Planes &w, u64 b, u32 i, Unit &u) {
        uint2 v = load<uint2>(w.plane[0] + b * 64 + i * 8);
        u32 high = load<u8>(w.plane[1] + b * 8 + i), signs = load<u32>(w.plane[2] + b * 32 + i * 4);
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            u32 two = (l < 2 ? v.x : v.y) >> 16 * (l % 2);
            const u32 *points = (const u32 *)w.points;
            u32 first = (two & 0xff) | (high >> 2 * l & 1) << 8, second = (two >> 8 & 0xff) | (high >> (2 * l + 1) & 1) << 8;
            put_point(u, l, make_uint2(__ldg(points + first), __ldg(points + second)), signs >> 8 * l);
        }
        u32 scales = load<u8>(w.plane[3] + b * 4 + i / 2);
        same_scale(u, half_to_float(load<u16>(w.plane[4] + b * 2)) * (2.0f * (float)(scales >> 4 * (i % 2) & 15) + 1.0f));
        u.at[0] = i * 32, u.at[1] = i * 32 + 16;
    }
};

// Calls `each(type, name)` for every block type: kernels are made by it.
#define EACH_QUANT(each)                                                                                                \
    each(Q4_0, q4_0) each(Q4_1, q4_1) each(Q5_0, q5_0) each(Q5_1, q5_1) each(Q8_0, q8_0) each(Q8_1, q8_1)              \
    each(Q2_K, q2_k) each(Q3_K, q3_k) each(Q4_K, q4_k) each(Q5_K, q5_k) each(Q6_K, q6_k) each(Q8_K, q8_k)              \
    each(IQ1_S, iq1_s) each(IQ1_M, iq1_m) each(IQ2_XXS, iq2_xxs) each(IQ2_XS, iq2_xs) each(IQ2_S, iq2_s)               \
    each(IQ3_XXS, iq3_xxs) each(IQ3_S, iq3_s) each(IQ4_NL, iq4_nl) each(IQ4_XS, iq4_xs) each(TQ1_0, tq1_0)             \
    each(TQ2_0, tq2_0) each(MXFP4, mxfp4) each(NVFP4, nvfp4) each(Q1_0, q1_0) each(Q2_0, q2_0)
