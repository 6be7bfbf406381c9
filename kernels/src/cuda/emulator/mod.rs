//! A GPU in software: runs the PTX of our kernels, instruction by instruction, and refuses what a GPU would forgive.
//!
//! It is the proof of the kernels on machines without a GPU: the text that ships is parsed ([`Module`]), placed in a
//! memory of its own ([`GlobalMemory`]) and launched, with the checks of a sanitizer ([`Checks`]).
//!
//! What it models: warps of 32 lanes that diverge and come together again, blocks whose warps take turns between
//! barriers, the state spaces, and the results of the PTX ISA. Blocks run one after the other, so that a kernel whose
//! blocks wait for each other doesn't end. Functions are put in place where they are called. What it leaves out: recursion, caches, time, textures, and the last bits
//! of `.approx` instructions and of the tensor cores' sums, which are exact here before they are rounded once.
//!
//! - `parse/`: text to programs; `ir`: programs.
//! - `ops/`: what each arithmetic instruction computes.
//! - `exec/`: launches, blocks, warps.
//! - `memory`: global memory.

mod error;
mod exec;
mod ir;
mod memory;
mod module;
mod ops;
mod parse;
#[cfg(test)]
mod tests;

pub use error::{EmulatorError, Fault};
pub use memory::{Checks, GlobalMemory};
pub use module::{KernelId, Launch, Module};
