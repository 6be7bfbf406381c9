//! How much text and how many items one rendering of a template may make.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// Bytes of the longest text or list that one operation may make.
pub(super) const MAX_RESULT: usize = 64 << 20;
/// Bytes that all operations of one rendering may make together.
const MAX_TOTAL: usize = 512 << 20;
/// What an item of a list counts for.
pub(super) const ITEM_BYTES: usize = size_of::<Value>();

/// How much text a rendering has made.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// Counts `len` bytes.
    pub(super) fn spend(&self, len: usize) -> Result<(), Error> {
        let before = self.0.fetch_add(len.min(MAX_TOTAL), Ordering::Relaxed);
        if len > MAX_RESULT || before.saturating_add(len) > MAX_TOTAL {
            return Err(invalid("the template makes more text than it may; it may never end"));
        }
        Ok(())
    }

    /// Counts the text that it returns.
    pub(super) fn text(&self, text: String) -> Result<Value, Error> {
        self.spend(text.len())?;
        Ok(Value::from(text))
    }
}

/// An operation that the template may not do.
pub(super) fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Whether a constant of a template's source is larger than any operation may make it (the compiler computes
/// operations on constants itself).
pub(crate) fn is_too_large(constant: &Value) -> bool {
    let len = constant.len().unwrap_or(0);
    let bytes = if constant.as_str().is_some() { len } else { len.saturating_mul(ITEM_BYTES) };
    bytes > MAX_RESULT
}
