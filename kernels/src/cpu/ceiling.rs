//! What this machine can do at most, measured: how fast it reads memory, and how many multiply-adds it does. Results are
//! quoted as a share of these, taken in the same run: on a shared machine absolute numbers drift by half.

use std::{
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::Isa;

/// A buffer that is larger than the caches, its pages touched.
#[derive(Debug)]
pub struct ReadBuffer {
    words: Vec<u64>,
}

/// Places of a thread's part that are read in turn. With one, a core has too few reads under way: on a Xeon with two cores 18
/// to 23 GB/s, where four streams, prefetching and huge pages read 30 in the same minute (2026-11-23).
const STREAMS: usize = 4;
/// How far ahead of each stream the prefetch is, in words: 1 KiB. Half and twice as much read as fast.
const PREFETCH_WORDS: usize = 128;
/// Words in a cache line.
const LINE: usize = 8;

impl ReadBuffer {
    /// `bytes` are rounded down to whole megabytes, at least one. 1 GiB is beyond any cache of today.
    pub fn new(bytes: usize) -> Self {
        let len = (bytes >> 20).max(1) << 17;
        let mut words = Vec::with_capacity(len);
        ask_for_huge_pages(&mut words);
        words.extend(0..len as u64);
        Self { words }
    }

    /// Bytes a second that `num_threads` threads read together, each its own part in order: the best of `passes`.
    pub fn read_bandwidth(&self, num_threads: usize, passes: usize) -> f64 {
        let part = self.words.len().div_ceil(num_threads.max(1));
        let best = (0..passes.max(1))
            .map(|_| {
                timed_together(num_threads, |thread| {
                    let from = (thread * part).min(self.words.len());
                    black_box(read(&self.words[from..(from + part).min(self.words.len())]));
                })
            })
            .min()
            .unwrap_or(Duration::MAX);
        size_of_val(&self.words[..]) as f64 / best.as_secs_f64()
    }
}

/// Runs `work` on threads that start together; the time until the last is done.
fn timed_together(num_threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let barrier = Barrier::new(num_threads.max(1));
    let epoch = Instant::now();
    let (first, last) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..num_threads.max(1) {
            let (barrier, work, first, last) = (&barrier, &work, &first, &last);
            scope.spawn(move || {
                barrier.wait();
                first.fetch_min(epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
                work(thread);
                last.fetch_max(epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
            });
        }
    });
    Duration::from_nanos(last.into_inner().saturating_sub(first.into_inner()).max(1))
}

/// Before the pages of this capacity are touched. Where the system refuses, they stay small.
fn ask_for_huge_pages(words: &mut Vec<u64>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = words.as_mut_ptr().addr().next_multiple_of(PAGE);
        let end = (words.as_mut_ptr().addr() + words.capacity() * size_of::<u64>()) / PAGE * PAGE;
        let at = words.as_mut_ptr().with_addr(start).cast();
        // SAFETY: whole pages inside this allocation; the advice changes no contents.
        let _ = unsafe { rustix::mm::madvise(at, end.saturating_sub(start), rustix::mm::Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = words;
}

/// Some function of all words, so that none can be skipped.
fn read(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.is_available() {
        // SAFETY: just checked.
        return unsafe { x86::read_avx2(words) };
    }
    read_streams(words, |_| ())
}

/// `prefetch` gets the address of the line that its stream needs soon, perhaps beyond the words.
#[inline(always)]
fn read_streams(words: &[u64], prefetch: impl Fn(*const u64)) -> u64 {
    let part = words.len() / STREAMS / LINE;
    let (lines, rest) = words.as_chunks::<LINE>();
    let mut acc = [[0; LINE]; STREAMS];
    for at in 0..part {
        for (stream, acc) in acc.iter_mut().enumerate() {
            let line = &lines[stream * part + at];
            prefetch(line.as_ptr().wrapping_add(PREFETCH_WORDS));
            for (acc, word) in acc.iter_mut().zip(line) {
                *acc ^= word;
            }
        }
    }
    let tail = lines[part * STREAMS..].as_flattened().iter().chain(rest);
    acc.as_flattened().iter().chain(tail).fold(0, |a, b| a ^ b)
}

/// One call's worth of multiply-adds in registers; how many.
type Round = unsafe fn() -> u64;

/// 8-bit multiply-adds a second that `num_threads` threads do in registers with the dot product of `isa` (one product and one
/// addition count as one); `None` where the ISA has none or the CPU lacks it.
pub fn int8_peak(isa: Isa, num_threads: usize, duration: Duration) -> Option<f64> {
    peak(isa, num_threads, duration, rounds::int8(isa))
}

/// As [`int8_peak`] for f32: fused multiply-adds.
pub fn f32_peak(isa: Isa, num_threads: usize, duration: Duration) -> Option<f64> {
    peak(isa, num_threads, duration, rounds::f32(isa))
}

/// As [`int8_peak`] for products of bf16 that are summed in f32; `None` where the CPU has no such instruction beside those
/// of `isa`.
pub fn bf16_peak(isa: Isa, num_threads: usize, duration: Duration) -> Option<f64> {
    peak(isa, num_threads, duration, rounds::bf16(isa))
}

/// Multiply-adds a second of a round that [`rounds`] has for this ISA.
fn peak(isa: Isa, num_threads: usize, duration: Duration, round: Option<Round>) -> Option<f64> {
    let round = round.filter(|_| isa.is_available())?;
    let (total, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let elapsed = timed_together(num_threads, |thread| {
        let start = Instant::now();
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            // SAFETY: the CPU has the ISA (checked above), and `rounds` detected what else the round needs.
            done += unsafe { round() };
            if thread == 0 && start.elapsed() >= duration {
                stop.store(true, Ordering::Relaxed);
            }
        }
        total.fetch_add(done, Ordering::Relaxed);
    });
    Some(total.into_inner() as f64 / elapsed.as_secs_f64())
}

#[cfg(target_arch = "x86_64")]
use x86 as rounds;

/// Of other CPUs only the 8-bit peak of NEON is known.
#[cfg(not(target_arch = "x86_64"))]
mod rounds {
    use super::{Isa, Round};

    pub(super) fn int8(isa: Isa) -> Option<Round> {
        match isa {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(crate::cpu::neon::dots),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(crate::cpu::neon::dots_dotprod),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(crate::cpu::neon::matrix_products),
            _ => None,
        }
    }

    pub(super) fn f32(_: Isa) -> Option<Round> {
        None
    }

    pub(super) fn bf16(_: Isa) -> Option<Round> {
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::hint::black_box;

    use super::{Isa, Round};

    /// Steps in a call: long against the clock's resolution, short against a time slice.
    const STEPS: u64 = 20_000;
    /// Independent sums: more than latency × throughput.
    const CHAINS: usize = 16;

    /// A round that needs no more than the ISA.
    pub(super) fn int8(isa: Isa) -> Option<Round> {
        match isa {
            Isa::Avx2 => Some(dots_avx2),
            Isa::AvxVnni => Some(dots_avxvnni),
            Isa::Avx512 => Some(dots_avx512),
            Isa::Avx512Vnni | Isa::Avx512Bf16 => Some(dots_vnni),
            Isa::Amx => Some(crate::cpu::avx512::amx::dots),
            Isa::Scalar | Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => None,
        }
    }

    /// As [`int8`].
    pub(super) fn f32(isa: Isa) -> Option<Round> {
        match isa {
            Isa::Avx2 | Isa::AvxVnni => Some(fma_avx2),
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => Some(fma_avx512),
            Isa::Scalar | Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => None,
        }
    }

    /// As [`int8`], and what is detected here.
    pub(super) fn bf16(isa: Isa) -> Option<Round> {
        match isa {
            Isa::Amx => Some(crate::cpu::avx512::amx::dots_bf16),
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
                is_x86_feature_detected!("avx512bf16").then_some(dots_bf16 as Round)
            }
            _ => None,
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn read_avx2(words: &[u64]) -> u64 {
        let read_once = crate::cpu::ahead::ReadOnce::detect();
        super::read_streams(words, |line| read_once.ask(line.cast()))
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn dots_vnni() -> u64 {
        let (codes, x) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        let mut acc = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm512_dpbusd_epi32(*acc, codes, x);
            }
        }
        black_box(acc);
        STEPS * CHAINS as u64 * 64
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn dots_avx512() -> u64 {
        let (codes, x) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        let ones = _mm512_set1_epi16(black_box(1));
        let mut acc = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for acc in &mut acc {
                // The sum goes in, so that the products can't be computed once for all.
                let pairs = _mm512_maddubs_epi16(_mm512_xor_si512(codes, *acc), x);
                *acc = _mm512_add_epi32(*acc, _mm512_madd_epi16(pairs, ones));
            }
        }
        black_box(acc);
        STEPS * CHAINS as u64 * 64
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn dots_avxvnni() -> u64 {
        let (codes, x) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(1)));
        // All in registers, of which there are 16: ten sums cover a latency of five at two a cycle.
        let mut acc = [_mm256_setzero_si256(); 10];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm256_dpbusd_avx_epi32(*acc, codes, x);
            }
        }
        black_box(acc);
        STEPS * acc.len() as u64 * 32
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn dots_avx2() -> u64 {
        let (codes, x) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(1)));
        let ones = _mm256_set1_epi16(black_box(1));
        let mut acc = [_mm256_setzero_si256(); CHAINS / 2];
        for _ in 0..STEPS {
            for acc in &mut acc {
                // The sum goes in, so that the products can't be computed once for all.
                let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(codes, *acc), x);
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(acc);
        STEPS * (CHAINS / 2) as u64 * 32
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn fma_avx2() -> u64 {
        let (x, y) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.5)));
        let mut acc = [_mm256_setzero_ps(); CHAINS / 2];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, x, y);
            }
        }
        black_box(acc);
        STEPS * (CHAINS / 2) as u64 * 8
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn fma_avx512() -> u64 {
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.5)));
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm512_fmadd_ps(*acc, x, y);
            }
        }
        black_box(acc);
        STEPS * CHAINS as u64 * 16
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn dots_bf16() -> u64 {
        let half = _mm512_set1_ps(black_box(0.5));
        let (x, y) = (_mm512_cvtne2ps_pbh(half, half), _mm512_cvtne2ps_pbh(half, half));
        let mut acc = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm512_dpbf16_ps(*acc, x, y);
            }
        }
        black_box(acc);
        STEPS * CHAINS as u64 * 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for len in [0, 1, 7, 31, 32, 33, 100, 4099] {
            let words: Vec<u64> = (0..len).map(|i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
            assert_eq!(read(&words), words.iter().fold(0, |a, b| a ^ b), "{len} words");
        }
    }

    #[test]
    fn ceilings_are_of_this_world() {
        let bandwidth = ReadBuffer::new(64 << 20).read_bandwidth(1, 2);
        assert!((1e8..1e13).contains(&bandwidth), "{bandwidth}");
        assert!(int8_peak(Isa::Scalar, 1, Duration::from_millis(1)).is_none());
        for isa in Isa::ALL {
            for measure in [int8_peak, f32_peak, bf16_peak] {
                if let Some(peak) = measure(isa, 1, Duration::from_millis(5)) {
                    assert!((1e6..1e13).contains(&peak), "{} {peak}", isa.name());
                }
            }
        }
    }
}
