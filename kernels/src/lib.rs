//! Quantised block formats and the kernels that compute on them. This crate knows bytes and shapes, no models.
//!
//! | module | what lives there |
//! |---|---|
//! | [`quant`] | block formats: layout, scalar quantise, dequantise and dot (the reference) |
//! | [`cpu`] | SIMD kernels behind a table picked once at start; the worker team |
//! | [`program`] | a model's step as instructions, for any device |
//! | [`candle`] | the matmuls as candle `CustomOp`s |
//! | [`memory`] | freed memory, back to the system |
//! | `cuda` | the CUDA driver, found at run time, and the device API over it (feature `cuda`) |

pub mod candle;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod memory;
pub mod program;
pub mod quant;

pub use error::{Error, Result};
