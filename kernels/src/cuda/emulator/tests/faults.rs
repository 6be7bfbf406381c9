//! What has to be found: each fault with its place, and programs that only look like it.

use super::{Bench, Checks, EmulatorError, Fault, Launch, kernel, threads};

fn fault(params: usize, body: &str, mut bench: Bench, launch: &Launch) -> Fault {
    match bench.run(&kernel(params, body), launch) {
        Err(EmulatorError::Fault(fault)) => *fault,
        other => panic!("a fault expected: {other:?}"),
    }
}

#[test]
fn an_access_beyond_the_end_names_thread_and_address() {
    let body = "add.u64 %rd30, %rd0, %rd20;\nst.global.u32 [%rd30], %r0;";
    let bench = Bench::new().words(&[0; 40]);
    let start = u64::from_le_bytes(bench.params[..8].try_into().unwrap());
    let launch = Launch { grid: [1, 1, 1], block: [8, 8, 1], dynamic_shared: 0 };
    let body = body.replace("%rd0, %rd20", "%rd0, %rd21");
    let body = format!("mov.u32 %r1, %tid.y;\nmad.lo.u32 %r2, %r1, 8, %r0;\nmul.wide.u32 %rd21, %r2, 4;\n{body}");
    let fault = fault(1, &body, bench, &launch);
    assert_eq!((fault.thread, fault.address, fault.block), ([0, 5, 0], Some(start + 160), [0, 0, 0]));
    let text = fault.to_string();
    assert!(text.starts_with("kernel k, PTX line ") && text.contains("outside of any allocation"), "{text}");
    let line = kernel(1, &body).lines().position(|line| line.starts_with("st.global")).unwrap() + 1;
    assert_eq!(fault.line as usize, line);
}

#[test]
fn addresses_are_checked_in_every_space() {
    let cases = [
        ("ld.global.u32 %r1, [%rd0+2];", "misaligned"),
        ("ld.global.v2.u32 {%r1, %r2}, [%rd0+4];", "misaligned"),
        ("ld.global.u32 %r1, [%rd0+-4];", "outside of any allocation"),
        ("mov.u64 %rd1, 0;\nld.global.u32 %r1, [%rd1];", "outside of any allocation"),
        (".shared .b32 x;\nmov.u32 %r2, x;\nld.shared.u32 %r1, [%r2+4];", "shared memory"),
        (".shared .b32 x;\nst.shared.u16 [x+1], 0;", "misaligned"),
        (".local .b32 x;\nmov.u64 %rd2, x;\nst.local.u32 [%rd2+16], %r0;", "local memory"),
        ("ld.param.u64 %rd1, [p0+8];", "parameters"),
        ("atom.global.add.u32 %r1, [%rd0+64], 1;", "outside of any allocation"),
        ("trap;", "traps"),
        ("bar.sync 16;", "doesn't exist"),
        ("bar.sync 1, 33;", "whole warps"),
    ];
    for (body, wanted) in cases {
        let fault = fault(1, body, Bench::new().words(&[0; 16]), &threads(1));
        assert!(fault.what.contains(wanted), "{body}: {fault}");
    }
}

#[test]
fn freed_memory_is_gone() {
    let mut bench = Bench::new().words(&[0; 16]);
    let address = u64::from_le_bytes(bench.params[..8].try_into().unwrap());
    bench.memory.free(address);
    assert_eq!(bench.memory.used(), 0);
    let again = bench.memory.alloc(64).unwrap();
    assert_ne!(address, again);
    let text = kernel(1, "ld.global.u32 %r1, [%rd0];");
    assert!(matches!(bench.run(&text, &threads(1)), Err(EmulatorError::Fault(_))));
}

#[test]
fn memory_is_finite_and_copies_keep_what_is_unwritten() {
    let mut memory = super::GlobalMemory::new(4096);
    let (a, b) = (memory.alloc(1024).unwrap(), memory.alloc(3072).unwrap());
    assert!(a % 256 == 0 && b % 256 == 0 && memory.alloc(1).is_none());
    memory.write(a + 8, &[1, 2, 3]).unwrap();
    memory.copy(a + 7, b, 5).unwrap();
    let mut out = [0; 5];
    memory.read(b, &mut out).unwrap();
    assert_eq!(out, [255, 1, 2, 3, 255]);
    assert!(memory.write(a + 1020, &[0; 5]).is_err() && memory.read(b + 3072, &mut [0]).is_err());
}

#[test]
fn unwritten_memory_is_found_when_read() {
    let read = "ld.global.u32 %r1, [%rd0+4];";
    let write = "st.global.u8 [%rd0+4], %r0;\nst.global.u16 [%rd0+6], %r0;";
    assert!(fault(1, read, Bench::new().room(4), &threads(1)).what.contains("nobody has written"));
    // Three of the four bytes written: still one that isn't.
    let body = format!("{write}\n{read}");
    let body = body.replace("u16 [%rd0+6], %r0", "u16 [%rd0+6], 0");
    assert!(fault(1, &body, Bench::new().room(4), &threads(1)).what.contains("nobody has written"));
    let body = format!("st.global.u8 [%rd0+5], 0;\n{body}");
    Bench::new().room(4).run(&kernel(1, &body), &threads(1)).unwrap();
    Bench::with(Checks::FAST).room(4).run(&kernel(1, read), &threads(1)).unwrap();
    let shared = ".shared .b32 x;\nld.shared.u32 %r1, [x];";
    assert!(fault(1, shared, Bench::new().room(4), &threads(1)).what.contains("nobody has written"));
}

#[test]
fn barriers_that_would_hang_are_faults() {
    // Half of the warps leave for another barrier.
    let body = "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra A;\nbar.sync 1;\nbra B;\nA:\nbar.sync 2;\nB:";
    assert!(fault(1, body, Bench::new().room(4), &threads(64)).what.contains("hangs: 32 threads wait, 64"));
    // Half of a warp waits at one place, the other half at another.
    let body = "setp.lt.u32 %p1, %r0, 16;\n@%p1 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0;\nB:";
    assert!(fault(1, body, Bench::new().room(4), &threads(32)).what.contains("diverged"));
    let body = "setp.lt.u32 %p1, %r0, 16;\n@%p1 bar.sync 0, 64;";
    let wrong = fault(1, body, Bench::new().room(4), &threads(64)).what;
    assert!(wrong.contains("hangs") || wrong.contains("diverged"), "{wrong}");
}

#[test]
fn endless_loops_end() {
    let found = fault(1, "L:\nbra L;", Bench::new().room(4), &threads(1));
    assert!(found.what.contains("no end"), "{found}");
    let found = fault(1, "L:\nbar.sync 0;\nbra L;", Bench::new().room(4), &threads(64));
    assert!(found.what.contains("no end"), "{found}");
}

#[test]
fn exchanges_with_lanes_that_are_not_there_are_faults() {
    let body = "setp.lt.u32 %p1, %r0, 8;\n@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff;\nbar.sync 0;";
    assert!(fault(1, body, Bench::new().room(4), &threads(32)).what.contains("don't come"));
    let body = "shfl.sync.idx.b32 %r1, %r0, 20, 31, -1;";
    assert!(fault(1, body, Bench::new().room(4), &threads(16)).what.contains("isn't there"));
    let body = "shfl.sync.idx.b32 %r1, %r0, 0, 31, 0xffff;";
    assert!(fault(1, body, Bench::new().room(4), &threads(32)).what.contains("isn't in its mask"));
    let body = "setp.ne.u32 %p1, %r0, 3;\n@%p1 bar.warp.sync 0xffffffff;\nbar.sync 0;";
    assert!(fault(1, body, Bench::new().room(4), &threads(32)).what.contains("don't come"));
}

/// Threads write their word and read a neighbour's with `between` in the middle.
fn neighbour(between: &str, distance: u32, threads: u32) -> String {
    let body = format!(
        ".shared .align 4 .b8 tile[512];\nshl.b32 %r1, %r0, 2;\nmov.u32 %r2, tile;\nadd.u32 %r3, %r1, %r2;\n\
         st.shared.u32 [%r3], %r0;\n{between}\nadd.u32 %r4, %r0, {distance};\nrem.u32 %r4, %r4, {threads};\n\
         shl.b32 %r4, %r4, 2;\nadd.u32 %r4, %r4, %r2;\nld.shared.u32 %r5, [%r4];"
    );
    kernel(1, &body)
}

#[test]
fn races_on_shared_memory_are_found_and_only_they() {
    let run = |text: &str, count: u32| match Bench::new().room(1).run(text, &threads(count)) {
        Ok(()) => None,
        Err(EmulatorError::Fault(fault)) => Some(fault.what),
        Err(other) => panic!("{other}"),
    };
    // Inside a warp: lockstep isn't enough, nor is a vote.
    assert!(run(&neighbour("", 1, 32), 32).unwrap().contains("race"));
    assert!(
        run(&neighbour("activemask.b32 %r6;\nvote.sync.ballot.b32 %r6, %p1, -1;", 1, 32), 32).unwrap().contains("race")
    );
    assert_eq!(run(&neighbour("bar.warp.sync -1;", 1, 32), 32), None);
    assert_eq!(run(&neighbour("bar.sync 0;", 1, 32), 32), None);
    // Between warps.
    assert!(run(&neighbour("bar.warp.sync -1;", 32, 128), 128).is_some());
    assert_eq!(run(&neighbour("bar.sync 0;", 32, 128), 128), None);
    // A thread's own word is nobody else's.
    assert_eq!(run(&neighbour("", 0, 128), 128), None);
    // Writing again after others have read needs another barrier.
    let again = |between: &str| {
        let text = neighbour("bar.sync 0;", 40, 128);
        let at = text.rfind("ret;").unwrap();
        format!("{}{between}\nst.shared.u32 [%r3], %r5;\n{}", &text[..at], &text[at..])
    };
    assert!(run(&again(""), 128).unwrap().contains("race: a write of shared memory with a read"));
    assert_eq!(run(&again("bar.sync 0;"), 128), None);
    // Two pairs of warps, each with a barrier of its own: no order across.
    let pairs = "shr.u32 %r6, %r0, 6;\nadd.u32 %r6, %r6, 1;\nbar.sync %r6, 64;";
    assert!(run(&neighbour(pairs, 64, 128), 128).is_some());
    // Atomics don't race with each other.
    let atomics = kernel(1, ".shared .b32 x;\nst.shared.u32 [x], 0;\nbar.sync 0;\natom.shared.add.u32 %r1, [x], 1;");
    assert!(run(&atomics, 64).unwrap().contains("race"), "all threads write the zero");
    let atomics = kernel(
        1,
        ".shared .b32 x;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 st.shared.u32 [x], 0;\nbar.sync 0;\natom.shared.add.u32 %r1, [x], 1;",
    );
    assert_eq!(run(&atomics, 64), None);
}

#[test]
fn an_asynchronous_copy_has_to_be_waited_for() {
    let text = |wait: &str| {
        kernel(
            1,
            &format!(
                ".shared .align 16 .b8 x[32];\nmov.u32 %r1, x;\ncp.async.ca.shared.global [%r1], [%rd0], 4;\n\
                 cp.async.commit_group;\ncp.async.cg.shared.global [%r1+16], [%rd0+16], 16, 8;\n\
                 cp.async.commit_group;\n{wait}\nld.shared.u32 %r2, [%r1];\nst.global.u32 [%rd0], %r2;\n\
                 cp.async.wait_all;\nld.shared.v4.u32 {{%r2, %r3, %r4, %r5}}, [%r1+16];\n\
                 st.global.v4.u32 [%rd0+16], {{%r5, %r4, %r3, %r2}};"
            ),
        )
    };
    let mut bench = Bench::new().words(&[5, 6, 7, 8, 9, 10, 11, 12]);
    bench.run(&text("cp.async.wait_group 1;"), &threads(1)).unwrap();
    assert_eq!(bench.result(0), [5, 6, 7, 8, 0, 0, 10, 9]);
    let error = Bench::new().words(&[0; 8]).run(&text("cp.async.wait_group 2;"), &threads(1)).unwrap_err();
    assert!(error.to_string().contains("has not been waited for"), "{error}");
}

#[test]
fn launches_are_checked_before_they_start() {
    let text = kernel(1, "");
    let shapes = [
        ([1, 1, 1], [1025, 1, 1], 0),
        ([0, 1, 1], [1, 1, 1], 0),
        ([1, 1, 1], [0, 1, 1], 0),
        ([1, 1, 1], [1, 1, 1], 1 << 20),
    ];
    for (grid, block, dynamic_shared) in shapes {
        let error = Bench::new().room(1).run(&text, &Launch { grid, block, dynamic_shared });
        assert!(matches!(error, Err(EmulatorError::Launch { .. })), "{grid:?} {block:?}: {error:?}");
    }
    assert!(matches!(Bench::new().run(&text, &threads(1)), Err(EmulatorError::Launch { .. })));
    let unknown = kernel(1, "tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [p0, {%r1}];");
    let error = Bench::new().room(1).run(&unknown, &threads(1)).unwrap_err();
    assert!(matches!(&error, EmulatorError::Unsupported { kernel, .. } if kernel == "k"), "{error}");
}
