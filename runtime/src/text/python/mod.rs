//! What Jinja templates expect of Python: how values print ([`value`]), `tojson` ([`json`]), tests and methods that
//! minijinja lacks or does otherwise, and the functions that transformers adds ([`environment`]). Everything that makes
//! text counts it against a budget ([`budget`]).

mod budget;
mod environment;
mod json;
mod value;

pub(crate) use budget::is_too_large;
pub(crate) use environment::{ADD, CONCAT, MUL, Raised, install};
pub(crate) use value::from_json;
