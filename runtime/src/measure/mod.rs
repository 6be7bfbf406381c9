//! Measuring an executor: how fast it is ([`speed`]) and how far it is from another one ([`divergence`]).

pub mod divergence;
pub mod speed;
