//! The decoded program: what the parser makes of PTX text and what the executor runs.
//!
//! Registers live in three files of a warp, by class: predicates (a bit a lane), words (everything up to 32 bits; narrower
//! values are kept zero-extended) and doubles (64 bits). Immediates and special registers are registers too, filled
//! before the warp starts, so that no operand needs a decision while the program runs.

use super::ops::convert::Conversion;

/// Lanes of a warp.
pub(super) const LANES: usize = 32;
/// A 32-bit register of a warp.
pub(super) type Word = [u32; LANES];
/// A 64-bit register of a warp.
pub(super) type Double = [u64; LANES];
/// Index into a register file.
pub(super) type Index = u32;

/// Start of the shared window of the generic address space.
pub(super) const SHARED_WINDOW: u64 = 1 << 32;
/// Start of the local window.
pub(super) const LOCAL_WINDOW: u64 = 2 << 32;
/// Start of the window that kernel parameters are seen through.
pub(super) const PARAM_WINDOW: u64 = 3 << 32;
/// Addresses from here on are global.
pub(super) const GLOBAL_START: u64 = 4 << 32;

/// Special registers that sit at fixed indices of the word file; the position in the list is the index.
pub(super) const SPECIALS: [&str; 24] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%lanemask_eq",
    "%lanemask_lt",
    "%lanemask_le",
    "%lanemask_gt",
    "%lanemask_ge",
    "%smid",
    "%nsmid",
    "%dynamic_smem_size",
    "WARP_SZ",
];

/// A function from registers to a register, over all lanes: `W` is a word, `D` a double, the result comes first.
#[derive(Clone, Copy)]
#[allow(clippy::upper_case_acronyms)] // The names are the signatures, letter by letter.
pub(super) enum Map {
    WW(fn(&Word) -> Word),
    WWW(fn(&Word, &Word) -> Word),
    WWWW(fn(&Word, &Word, &Word) -> Word),
    WD(fn(&Double) -> Word),
    DW(fn(&Word) -> Double),
    DWW(fn(&Word, &Word) -> Double),
    DWWD(fn(&Word, &Word, &Double) -> Double),
    DD(fn(&Double) -> Double),
    DDD(fn(&Double, &Double) -> Double),
    DDDD(fn(&Double, &Double, &Double) -> Double),
    DDW(fn(&Double, &Word) -> Double),
    DDWW(fn(&Double, &Word, &Word) -> Double),
    DDDWW(fn(&Double, &Double, &Word, &Word) -> Double),
    WWWWW(fn(&Word, &Word, &Word, &Word) -> Word),
}

/// A comparison of two registers: a bit a lane.
#[derive(Clone, Copy)]
pub(super) enum Compare {
    W(fn(&Word, &Word) -> u32),
    D(fn(&Double, &Double) -> u32),
}

/// How `setp` combines the comparison with its third operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

/// A predicate as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predicate {
    pub(super) index: Index,
    pub(super) negated: bool,
}

/// A register of any class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// Predicate.
    P(Index),
    /// Word, and how many bits of it the program declared: 16 or 32.
    W(Index, u8),
    /// Double.
    D(Index),
    /// `_`: the value isn't wanted.
    Sink,
}

/// State spaces of memory instructions. Constant memory is global memory that nobody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// What an address is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing: the offset is the address.
    None,
    W(Index),
    D(Index),
}

/// A memory operand `[base + offset]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) space: Space,
    pub(super) base: Base,
    pub(super) offset: i64,
}

/// A load or a store of one to four elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) address: Address,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(super) width: u8,
    /// A load of fewer bytes than the register has extends the sign.
    pub(super) signed: bool,
    /// Elements: 1, 2, 4 or 8.
    pub(super) count: u8,
    /// `.volatile`, `.relaxed` and stronger: other threads may use the same bytes without a race.
    pub(super) strong: bool,
    pub(super) registers: [Register; 8],
}

/// What an atomic instruction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtomicKind {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    Cas,
    Inc,
    Dec,
}

/// Types that need to be told apart while the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bits(u8),
    Unsigned(u8),
    Signed(u8),
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    E4m3,
    E5m2,
}

impl Type {
    /// Bytes of a value.
    pub(super) fn bytes(self) -> u8 {
        match self {
            Self::Bits(bits) | Self::Unsigned(bits) | Self::Signed(bits) => bits / 8,
            Self::E4m3 | Self::E5m2 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F16x2 | Self::Bf16x2 | Self::F32 | Self::Tf32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Modes of `shfl.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Modes of `vote.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Operations of `redux.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// What a block-wide barrier computes from the predicates of its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarrierReduce {
    And,
    Or,
    Popc,
}

/// A block-wide barrier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    pub(super) id: Index,
    /// Word register with the number of threads; all of the block without.
    pub(super) threads: Option<Index>,
    /// Whether the thread waits (`sync`) or only counts (`arrive`).
    pub(super) waits: bool,
    /// Whether all lanes of a warp have to come together.
    pub(super) aligned: bool,
    pub(super) reduce: Option<(BarrierReduce, Register, Predicate)>,
}

/// A warp-wide matrix multiply-add.
#[derive(Clone, Debug)]
pub(super) struct Mma {
    pub(super) k: u8,
    pub(super) a_type: Type,
    pub(super) b_type: Type,
    /// F32, F16 or Signed(32), for C and D alike.
    pub(super) accumulator: Type,
    pub(super) saturate: bool,
    pub(super) d: Vec<Index>,
    pub(super) a: Vec<Index>,
    pub(super) b: Vec<Index>,
    pub(super) c: Vec<Index>,
}

/// An instruction's work.
pub(super) enum Op {
    /// A function of registers; what the map doesn't take of `a` is unused.
    Map {
        map: Map,
        d: Index,
        a: [Index; 4],
    },
    /// Word addition, subtraction or multiply-add through the carry flag.
    Carry {
        kind: CarryKind,
        reads: bool,
        writes: bool,
        wide: bool,
        d: Index,
        a: [Index; 3],
    },
    Setp {
        compare: Compare,
        d: Register,
        inverse: Register,
        a: Index,
        b: Index,
        combine: Option<(Logic, Predicate)>,
    },
    /// `setp` on two halves in a word: `d` of the lower, `upper` of the upper ones.
    SetpPacked {
        compare: Compare,
        d: Register,
        upper: Register,
        a: Index,
        b: Index,
        combine: Option<(Logic, Predicate)>,
    },
    /// `set`: all ones, or 1.0, where the comparison holds; `packed` in both halves of a word by themselves.
    Set {
        compare: Compare,
        d: Index,
        a: Index,
        b: Index,
        combine: Option<(Logic, Predicate)>,
        truth: u32,
        packed: bool,
    },
    SelectW {
        d: Index,
        a: Index,
        b: Index,
        p: Index,
    },
    SelectD {
        d: Index,
        a: Index,
        b: Index,
        p: Index,
    },
    /// Predicate logic: `logic` None copies `a`.
    Logic {
        logic: Option<Logic>,
        d: Index,
        a: Predicate,
        b: Predicate,
    },
    /// Copies between registers of any widths, `from` little end first, into `to`.
    Pack {
        to: Vec<Register>,
        from: Vec<Register>,
        unit: u8,
    },
    Convert {
        conversion: Conversion,
        d: Register,
        a: Register,
    },
    MoveW {
        d: Index,
        a: Index,
    },
    MoveD {
        d: Index,
        a: Index,
    },
    Clock {
        d: Register,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic {
        kind: AtomicKind,
        ty: Type,
        address: Address,
        d: Register,
        b: Register,
        c: Register,
    },
    /// Adds or subtracts a window from a 64-bit address.
    Window {
        space: Space,
        to_generic: bool,
        d: Register,
        a: Register,
    },
    IsSpace {
        space: Space,
        d: Index,
        a: Index,
    },
    Branch {
        target: u32,
    },
    BranchTable {
        index: Index,
        targets: Vec<u32>,
    },
    Exit,
    Trap,
    Nop,
    Barrier(Box<Barrier>),
    WarpSync {
        mask: Index,
    },
    Shuffle {
        mode: Shuffle,
        d: Register,
        valid: Register,
        a: Index,
        b: Index,
        c: Index,
        mask: Index,
    },
    Vote {
        mode: Vote,
        d: Register,
        a: Predicate,
        mask: Index,
    },
    Match {
        all: bool,
        d: Index,
        valid: Register,
        a: Register,
        mask: Index,
    },
    ActiveMask {
        d: Index,
    },
    Reduce {
        reduce: Reduce,
        signed: bool,
        d: Index,
        a: Index,
        mask: Index,
    },
    Elect {
        d: Register,
        elected: Register,
        mask: Index,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u8,
        source_bytes: Option<Index>,
        ignore: Option<Predicate>,
    },
    CopyCommit,
    /// None waits for everything, committed or not.
    CopyWait {
        pending: Option<u32>,
    },
    MatrixLoad {
        address: Address,
        transpose: bool,
        d: Vec<Index>,
    },
    MatrixStore {
        address: Address,
        transpose: bool,
        a: Vec<Index>,
    },
    MatrixTranspose {
        d: Index,
        a: Index,
    },
    Mma(Box<Mma>),
}

/// What `Op::Carry` adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CarryKind {
    Add,
    Sub,
    MadLow,
    MadHigh,
}

/// An instruction with its guard.
pub(super) struct Instr {
    pub(super) op: Op,
    pub(super) guard: Option<Predicate>,
    /// Line of the text.
    pub(super) line: u32,
}

/// A register that holds the same value in all lanes of all warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    Value(u64),
    /// Address of a module variable, plus an offset.
    Global {
        variable: u32,
        offset: i64,
    },
}

/// A variable of the module, in global or constant memory.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) align: u64,
    /// Whole contents; zero where the text doesn't say.
    pub(super) bytes: Vec<u8>,
    /// Places (byte offset, variable, addend) of 64-bit addresses in the contents.
    pub(super) pointers: Vec<(usize, u32, i64)>,
    /// Where it has been placed.
    pub(super) address: Option<u64>,
}

/// A kernel that can run.
pub(super) struct Program {
    pub(super) code: Vec<Instr>,
    pub(super) words: u32,
    pub(super) doubles: u32,
    pub(super) predicates: u32,
    pub(super) word_constants: Vec<(Index, Constant)>,
    pub(super) double_constants: Vec<(Index, Constant)>,
    pub(super) param_bytes: u32,
    /// Bytes of statically declared shared memory; dynamic memory begins at `dynamic_start`.
    pub(super) shared_bytes: u32,
    pub(super) dynamic_start: u32,
    /// Bytes a thread.
    pub(super) local_bytes: u32,
    /// `.maxntid` as a number of threads.
    pub(super) max_threads: Option<u32>,
}

/// An entry of a module.
pub(super) struct Kernel {
    pub(super) name: String,
    /// The program, or the line and text of the first thing that isn't known.
    pub(super) program: Result<Program, (u32, String)>,
}
