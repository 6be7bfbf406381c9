//! The candle executor.
