//! From text to programs: tokens, the module's declarations, a kernel's body, and each instruction.
//!
//! A kernel whose body has an instruction that isn't known is kept with the reason, so that the others of its module
//! run; a text that isn't PTX at all is refused as a whole.

mod body;
mod collective;
mod instr;
mod lexer;
mod memory;
mod module;
mod operand;

pub(super) use module::{Parsed, parse};
