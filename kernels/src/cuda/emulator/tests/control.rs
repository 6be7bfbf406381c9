//! Control flow, exchanges between lanes, barriers and atomics.

use super::{Bench, Launch, kernel, threads};

fn run(params: usize, body: &str, bench: Bench, launch: &Launch) -> Bench {
    let mut bench = bench;
    bench.run(&kernel(params, body), launch).unwrap();
    bench
}

const STORE: &str = "add.u64 %rd30, %rd0, %rd20;\nst.global.u32 [%rd30], %r10;";

#[test]
fn nested_branches_and_loops_of_different_lengths_meet_again() {
    // Each lane sums 0..=lane, skipping multiples of 3, with an early exit from the loop at 20; then all vote.
    let body = "
        mov.u32 %r10, 0;
        mov.u32 %r1, 0;
    LOOP:
        rem.u32 %r2, %r1, 3;
        setp.eq.u32 %p1, %r2, 0;
        @%p1 bra SKIP;
        setp.gt.u32 %p2, %r1, 9;
        @%p2 bra HIGH;
        add.u32 %r10, %r10, %r1;
        bra SKIP;
    HIGH:
        mad.lo.u32 %r10, %r1, 2, %r10;
    SKIP:
        setp.eq.u32 %p3, %r1, 20;
        @%p3 bra DONE;
        add.u32 %r1, %r1, 1;
        setp.le.u32 %p4, %r1, %r0;
        @%p4 bra LOOP;
    DONE:
        vote.sync.ballot.b32 %r3, %p3, 0xffffffff;
        xor.b32 %r10, %r10, %r3;
    ";
    let bench = run(1, &format!("{body}{STORE}"), Bench::new().room(32), &threads(32));
    for (lane, got) in bench.result(0).into_iter().enumerate() {
        let sum: u32 = (0..=lane.min(20) as u32).filter(|n| n % 3 != 0).map(|n| if n > 9 { 2 * n } else { n }).sum();
        assert_eq!(got, sum ^ !0 << 20, "lane {lane}");
    }
}

#[test]
fn lanes_that_exit_early_are_not_waited_for() {
    let body = format!(
        "setp.lt.u32 %p1, %r0, 5;\n@%p1 ret;\nbar.sync 0;\nactivemask.b32 %r10;\n\
         redux.sync.add.s32 %r10, %r0, %r10;\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().words(&[7; 32]), &threads(32));
    let wanted: u32 = (5..32).sum();
    assert_eq!(bench.result(0), [[7; 5].as_slice(), &[wanted; 27]].concat());
}

#[test]
fn tables_of_jumps_spread_the_lanes() {
    let body = format!(
        "and.b32 %r1, %r0, 3;\nTS: .branchtargets A, B, C, A;\nbrx.idx %r1, TS;\n\
         A: mov.u32 %r10, 100; bra END;\nB: mov.u32 %r10, 200; bra END;\nC: mov.u32 %r10, 300;\nEND:\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().room(32), &threads(32));
    let wanted: Vec<u32> = (0..32).map(|lane| [100, 200, 300, 100][lane % 4]).collect();
    assert_eq!(bench.result(0), wanted);
}

#[test]
fn exchanges_follow_the_isas_bounds() {
    // Mode, b, c (bound and segment), and the source lane with whether it is inside.
    type Source = fn(i32) -> (i32, bool);
    let cases: [(&str, &str, Source); 7] = [
        ("bfly", "5, 31", |lane| (lane ^ 5, true)),
        ("idx", "9, 31", |_| (9, true)),
        ("up", "3, 0", |lane| (lane - 3, lane >= 3)),
        ("down", "4, 31", |lane| (lane + 4, lane + 4 <= 31)),
        // Segments of eight lanes: c = (32 - 8) << 8 | 7.
        ("down", "2, 6175", |lane| (lane + 2, lane % 8 + 2 <= 7)),
        ("idx", "11, 6175", |lane| (lane / 8 * 8 + 3, true)),
        ("up", "2, 6144", |lane| (lane - 2, lane % 8 >= 2)),
    ];
    for (mode, rest, source) in cases {
        let body = format!(
            "mul.lo.u32 %r1, %r0, 10;\nshfl.sync.{mode}.b32 %r10|%p1, %r1, {rest}, -1;\n\
             @%p1 add.u32 %r10, %r10, 1;\n{STORE}"
        );
        let bench = run(1, &body, Bench::new().room(32), &threads(32));
        for (lane, got) in (0..32).zip(bench.result(0)) {
            let (from, inside) = source(lane);
            let wanted = if inside { from * 10 + 1 } else { lane * 10 };
            assert_eq!(got as i32, wanted, "{mode} {rest}, lane {lane}");
        }
    }
}

#[test]
fn an_exchange_in_diverged_code_waits_for_its_lanes() {
    // Odd lanes take a detour; both arms then come to the same exchange over all lanes.
    let body = format!(
        "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p1, %r1, 1;\nmov.u32 %r2, %r0;\n@%p1 bra ODD;\nbra MEET;\n\
         ODD:\nadd.u32 %r2, %r2, 100;\nMEET:\nshfl.sync.bfly.b32 %r10, %r2, 1, 31, -1;\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().room(32), &threads(32));
    let wanted: Vec<u32> = (0..32).map(|lane| if lane % 2 == 0 { lane + 101 } else { lane - 1 }).collect();
    assert_eq!(bench.result(0), wanted);
}

#[test]
fn votes_and_matches_agree_with_their_definitions() {
    let body = format!(
        "and.b32 %r1, %r0, 6;\nsetp.gt.u32 %p1, %r0, 10;\nvote.sync.any.pred %p2, %p1, -1;\n\
         vote.sync.all.pred %p3, %p1, -1;\nvote.sync.uni.pred %p4, %p1, -1;\nmatch.any.sync.b32 %r2, %r1, -1;\n\
         match.all.sync.b32 %r3|%p5, %r1, -1;\nselp.u32 %r4, 1, 0, %p2;\n@%p3 add.u32 %r4, %r4, 2;\n\
         @%p4 add.u32 %r4, %r4, 4;\n@%p5 add.u32 %r4, %r4, 8;\nadd.u32 %r4, %r4, %r3;\n\
         xor.b32 %r10, %r2, %r4;\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().room(32), &threads(32));
    for (lane, got) in (0..32u32).zip(bench.result(0)) {
        let set = (0..32u32).filter(|other| other & 6 == lane & 6).fold(0, |set, other| set | 1 << other);
        assert_eq!(got, set ^ 1, "lane {lane}");
    }
}

#[test]
fn a_barrier_orders_the_warps_of_a_block() {
    // Each thread writes its word and reads the one of the thread 37 further on.
    let body = "
        .shared .align 4 .b8 tile[384];
        .reg .u32 %a;
        shl.b32 %a, %r0, 2;
        mov.u32 %r1, tile;
        add.u32 %r2, %r1, %a;
        st.shared.u32 [%r2], %r0;
        bar.sync 0;
        add.u32 %r3, %r0, 37;
        rem.u32 %r3, %r3, 96;
        shl.b32 %r3, %r3, 2;
        add.u32 %r3, %r3, %r1;
        ld.shared.u32 %r10, [%r3];
    ";
    let bench = run(1, &format!("{body}{STORE}"), Bench::new().room(96), &threads(96));
    assert_eq!(bench.result(0), (0..96).map(|thread| (thread + 37) % 96).collect::<Vec<_>>());
}

#[test]
fn named_barriers_hand_over_from_producers_to_consumers() {
    // Warp 0 produces and arrives, warp 1 waits: barrier 1 counts both. Warp 2 takes no part.
    let body = format!(
        ".shared .align 4 .b8 tile[128];\nshr.u32 %r1, %r0, 5;\nand.b32 %r2, %r0, 31;\nshl.b32 %r3, %r2, 2;\n\
         mov.u32 %r4, tile;\nadd.u32 %r4, %r4, %r3;\nmov.u32 %r10, 0;\nsetp.eq.u32 %p1, %r1, 1;\n@%p1 bra TAKE;\n\
         setp.eq.u32 %p2, %r1, 2;\n@%p2 bra END;\nmul.lo.u32 %r5, %r2, 3;\nst.shared.u32 [%r4], %r5;\n\
         bar.arrive 1, 64;\nbra END;\nTAKE:\nbar.sync 1, 64;\nld.shared.u32 %r10, [%r4];\nEND:\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().room(96), &threads(96));
    let wanted: Vec<u32> =
        (0..96).map(|thread| if (32..64).contains(&thread) { (thread - 32) * 3 } else { 0 }).collect();
    assert_eq!(bench.result(0), wanted);
}

#[test]
fn a_barrier_counts_predicates() {
    let body = format!(
        "setp.lt.u32 %p1, %r0, 40;\nbar.red.popc.u32 %r10, 0, %p1;\nbar.red.and.pred %p2, 0, %p1;\n\
         bar.red.or.pred %p3, 0, !%p1;\n@%p2 add.u32 %r10, %r10, 1000;\n@%p3 add.u32 %r10, %r10, 100;\n{STORE}"
    );
    let bench = run(1, &body, Bench::new().room(64), &threads(64));
    assert_eq!(bench.result(0), [140; 64]);
}

#[test]
fn atomics_of_many_blocks_add_up() {
    let body = "
        atom.global.add.u32 %r1, [%rd0], 1;
        atom.global.max.s32 %r2, [%rd0+4], %r1;
        red.global.add.f32 [%rd0+8], 0f3F000000;
        atom.global.cas.b32 %r3, [%rd0+12], 5, 6;
        atom.global.exch.b32 %r4, [%rd0+16], %r1;
        red.global.or.b32 [%rd0+20], %r1;
        red.global.add.noftz.f16x2 [%rd0+24], %r5;
        atom.global.inc.u32 %r6, [%rd0+28], 6;
    ";
    // Halves 1.0 and 2.0, added 128 times.
    let body = format!("mov.u32 %r5, 0x40003c00;\n{body}");
    let launch = Launch { grid: [2, 2, 1], block: [32, 1, 1], dynamic_shared: 0 };
    let bench = run(1, &body, Bench::new().words(&[0, 0, 0, 5, 0, 0, 0, 0]), &launch);
    let halves =
        u32::from(half::f16::from_f32(256.0).to_bits()) << 16 | u32::from(half::f16::from_f32(128.0).to_bits());
    assert_eq!(bench.result(0), [128, 127, 64f32.to_bits(), 6, 127, 127, halves, 128 % 7]);
}

#[test]
fn variables_spaces_and_vectors() {
    let text = "
        .version 8.0\n.target sm_80\n.address_size 64
        .const .align 4 .f32 scale[2] = {0f40000000, 0f3F000000};
        .global .align 1 .b8 bytes[4] = {1, 2, 255, 4};
        .global .align 8 .u64 pointer = generic(bytes)+2;
        .visible .entry k(.param .align 8 .b8 args[24]) {
        .local .align 8 .b8 __local_depot0[32];
        .reg .b32 %r<20>; .reg .b16 %rs<5>; .reg .b64 %rd<20>; .reg .f32 %f<5>; .reg .pred %p<3>;
        ld.param.v2.u32 {%r1, %r2}, [args+8];
        mov.b64 %rd9, args;
        cvta.param.u64 %rd9, %rd9;
        ld.u32 %r3, [%rd9+16];
        mov.u64 %rd1, __local_depot0;
        cvta.local.u64 %rd2, %rd1;
        st.v2.u32 [%rd2+8], {%r1, %r2};
        ld.local.u64 %rd3, [%rd1+8];
        mov.b64 {%r4, %r5}, %rd3;
        add.u32 %r4, %r4, %r5;
        mov.u64 %rd4, pointer;
        ld.global.u64 %rd5, [%rd4];
        ld.s8 %r6, [%rd5];
        ld.global.u8 %rs1, [bytes+3];
        cvt.u32.u16 %r7, %rs1;
        ld.const.f32 %f1, [scale+4];
        isspacep.local %p1, %rd2;
        selp.u32 %r8, 1, 0, %p1;
        ld.param.u64 %rd6, [args];
        st.global.v4.u32 [%rd6], {%r4, %r6, %r7, %r3};
        st.global.v2.f32 [%rd6+16], {%f1, %f1};
        st.global.u32 [%rd6+24], %r8;
        ret;
        }";
    let mut plain = Vec::new();
    for word in [30u32, 12, 77, 0] {
        plain.extend(word.to_le_bytes());
    }
    let mut bench = Bench::new().room(7).plain(&plain);
    bench.run(text, &threads(1)).unwrap();
    let half = 0.5f32.to_bits();
    assert_eq!(bench.result(0), [42, u32::MAX, 4, 77, half, half, 1]);
}

#[test]
fn functions_are_put_in_place_where_they_are_called() {
    let function = "
        .func (.param .b32 result) collatz(.param .b32 start, .param .b32 limit)
        {
        .reg .pred %p<3>; .reg .b32 %r<6>;
        ld.param.u32 %r1, [start];
        ld.param.u32 %r5, [limit];
        mov.u32 %r2, 0;
    LOOP:
        setp.le.u32 %p1, %r1, 1;
        @%p1 bra END;
        add.u32 %r2, %r2, 1;
        setp.ge.u32 %p1, %r2, %r5;
        st.param.b32 [result], 999;
        @%p1 ret;
        and.b32 %r3, %r1, 1;
        setp.eq.u32 %p2, %r3, 0;
        shr.u32 %r4, %r1, 1;
        @!%p2 mad.lo.u32 %r4, %r1, 3, 1;
        mov.u32 %r1, %r4;
        bra LOOP;
    END:
        st.param.b32 [result], %r2;
        ret;
        }
        .visible .entry k";
    let call = |argument: &str, guard: &str, to: &str| {
        format!(
            "{{ .param .b32 a; st.param.b32 [a], {argument}; .param .b32 b; st.param.b32 [b], 20; .param .b32 r;\n\
             st.param.b32 [r], 5;\n{guard} call.uni (r), collatz, (a, b);\nld.param.b32 {to}, [r]; }}\n"
        )
    };
    let body = format!(
        "setp.lt.u32 %p1, %r0, 20;\n{}{}mad.lo.u32 %r10, %r11, 1000, %r10;\n{STORE}",
        call("%r0", "@%p1", "%r10"),
        call("6", "", "%r11")
    );
    let text = kernel(1, &body).replace(".visible .entry k", function);
    let mut bench = Bench::new().room(32);
    bench.run(&text, &threads(32)).unwrap();
    let steps = |start: u32| {
        let (mut n, mut steps) = (start, 0);
        while n > 1 && steps < 20 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        if steps >= 20 { 999 } else { steps }
    };
    let wanted: Vec<u32> = (0..32).map(|lane| if lane < 20 { steps(lane) } else { 5 } + 8000).collect();
    assert_eq!(bench.result(0), wanted);
    // A recursion isn't possible this way, and says so.
    let endless = text.replace("mov.u32 %r2, 0;", &call("1", "", "%r2"));
    assert!(bench.run(&endless, &threads(32)).unwrap_err().to_string().contains("calls itself"));
}
