//! Tests of the emulator: instructions against the ISA's definitions, control flow, the checks, and real compilers' text.

mod compiled;
mod control;
mod faults;
mod hostile;
mod instructions;
mod matrices;
mod rare;

use super::*;

/// A device's memory, and the parameters of a kernel whose parameters are all pointers.
pub(super) struct Bench {
    pub(super) memory: GlobalMemory,
    pub(super) params: Vec<u8>,
    buffers: Vec<(u64, usize)>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Checks { max_steps: 1 << 22, ..Checks::ALL })
    }

    pub(super) fn with(checks: Checks) -> Self {
        Self { memory: GlobalMemory::with_checks(1 << 28, checks), params: Vec::new(), buffers: Vec::new() }
    }

    /// Adds a parameter: a pointer to these bytes.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        let address = self.memory.alloc(bytes.len()).unwrap();
        self.memory.write(address, bytes).unwrap();
        self.buffers.push((address, bytes.len()));
        self.params.extend(address.to_le_bytes());
        self
    }

    pub(super) fn words(self, words: &[u32]) -> Self {
        self.bytes(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Adds a parameter: a pointer to so many words that nobody has written.
    pub(super) fn room(mut self, words: usize) -> Self {
        let address = self.memory.alloc(4 * words).unwrap();
        self.buffers.push((address, 4 * words));
        self.params.extend(address.to_le_bytes());
        self
    }

    /// Adds a parameter that isn't a pointer.
    pub(super) fn plain(mut self, bytes: &[u8]) -> Self {
        self.params.extend(bytes);
        self
    }

    pub(super) fn run(&mut self, ptx: &str, launch: &Launch) -> Result<(), EmulatorError> {
        let mut module = Module::parse(ptx)?;
        module.load(&mut self.memory)?;
        let kernel = module.kernel("k").unwrap();
        module.launch(kernel, launch, &self.params.clone(), &mut self.memory)
    }

    /// The contents of a buffer, by its number.
    pub(super) fn result(&self, buffer: usize) -> Vec<u32> {
        let (address, bytes) = self.buffers[buffer];
        let mut out = vec![0; bytes];
        self.memory.read(address, &mut out).unwrap();
        out.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    pub(super) fn floats(&self, buffer: usize) -> Vec<f32> {
        self.result(buffer).into_iter().map(f32::from_bits).collect()
    }
}

pub(super) fn threads(x: u32) -> Launch {
    Launch { grid: [1, 1, 1], block: [x, 1, 1], dynamic_shared: 0 }
}

/// A kernel with one pointer parameter for each of `params`, in `%rd0..`; `%r0` is the thread, `%rd20` its byte offset
/// for words.
pub(super) fn kernel(params: usize, body: &str) -> String {
    let declared: Vec<_> = (0..params).map(|index| format!(".param .u64 p{index}")).collect();
    let loads: String = (0..params).map(|index| format!("ld.param.u64 %rd{index}, [p{index}];\n")).collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({})\n{{\n.reg .pred %p<20>;\n\
         .reg .b16 %rs<40>;\n.reg .b32 %r<60>;\n.reg .f32 %f<40>;\n.reg .b64 %rd<40>;\n.reg .f64 %fd<10>;\n{loads}\
         mov.u32 %r0, %tid.x;\nmul.wide.u32 %rd20, %r0, 4;\n{body}\nret;\n}}\n",
        declared.join(", ")
    )
}

/// A small generator of numbers: always the same ones.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    /// In -1..1, a multiple of 1/64: sums of products of those are exact.
    pub(super) fn small(&mut self) -> f32 {
        (self.next() % 127) as f32 / 64.0 - 63.0 / 64.0
    }
}
